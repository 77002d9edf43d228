"""A worker's device as a profile for the scheduler."""

import dataclasses

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.scheduling.device_profile import BF16_SIZES, ComponentSizes, DeviceProfile, StageRates

_CPU_TFLOPS = 0.05  # assumed, until tasks are measured
_GPU_TFLOPS = 150.0


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """The profile of a worker's device: as the cluster profile declares it, or else assumed; measurements correct its rates.

    The scheduler counts the operations of the published model. A smaller model needs fewer for the same clip, so the rates are
    scaled up by the ratio of their weights.
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
