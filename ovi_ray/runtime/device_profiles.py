"""A worker's device as a profile for the scheduler."""

import dataclasses

from ovi.stages import STAGES
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.scheduling.device_profile import BF16_SIZES, COMPONENTS, ComponentSizes, DeviceProfile, StageRates

_CPU_TFLOPS = 0.05  # assumed, until tasks are measured
_GPU_TFLOPS = 150.0


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """The profile of a worker's device: as the cluster profile declares it, or else assumed; measurements correct its rates.

    The scheduler counts the operations of the published model. A smaller model needs fewer for the same clip, so the rates are
    scaled up by the ratio of their weights.
    """
    base = info.declared or _assumed(info)
    sizes = ComponentSizes(**{component.value: size for component, size in info.component_gb.items()})
    bytes_per_weight = 4 if dtype == "float32" else 2
    published = {component: BF16_SIZES.of(component) * bytes_per_weight / 2 for component in COMPONENTS}
    work = {stage: spec.main_component for stage, spec in STAGES.items()}
    rates = {stage.value: base.rates.of(stage) * published[c] / sizes.of(c) for stage, c in work.items()}
    return dataclasses.replace(
        base, memory_gb=min(base.memory_gb, info.memory_gb), sizes=sizes, rates=StageRates(**rates)
    )


def _assumed(info: WorkerInfo) -> DeviceProfile:
    rate = _CPU_TFLOPS if info.vendor == "cpu" else _GPU_TFLOPS
    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        rates=StageRates(**{stage.value: rate for stage in STAGES}),
    )
