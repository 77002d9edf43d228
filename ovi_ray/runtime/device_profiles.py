"""A job in the scheduler's terms: its clips as a workload, a worker's device as a profile."""

import dataclasses

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.scheduling.device_profile import BF16_SIZES, ComponentSizes, DeviceProfile, StageRates


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """A worker's device as the scheduler sees it; its speeds are a first guess that measuring corrects.

    What a cluster profile declares of it goes before what is assumed. A smaller model than the published one does less work
    for the same clip: the rates are scaled by its weights.
    """
    bytes_per_weight = 4 if dtype == "float32" else 2
    sizes = ComponentSizes(**{component.value: size for component, size in info.component_gb.items()})
    base = info.declared or _assumed(info)

    def scaled(stage: Stage, component: Component) -> float:
        return base.rates.of(stage) * BF16_SIZES.of(component) * bytes_per_weight / 2 / sizes.of(component)

    return dataclasses.replace(
        base,
        memory_gb=min(base.memory_gb, info.memory_gb),
        sizes=sizes,
        rates=StageRates(
            encode_text=scaled(Stage.ENCODE_TEXT, Component.TEXT_ENCODER),
            encode_first_frame=scaled(Stage.ENCODE_FIRST_FRAME, Component.VIDEO_VAE),
            denoise=scaled(Stage.DENOISE, Component.TRANSFORMER),
            decode=scaled(Stage.DECODE, Component.VIDEO_VAE),
        ),
    )


def _assumed(info: WorkerInfo) -> DeviceProfile:
    rate = _CPU_TFLOPS if info.vendor == "cpu" else _GPU_TFLOPS
    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        rates=StageRates(encode_text=rate, encode_first_frame=rate, denoise=rate, decode=rate),
    )


_CPU_TFLOPS = 0.05
_GPU_TFLOPS = 150.0
