"""A worker's device as a profile for the scheduler."""

import dataclasses

from ovi.config import Component
from ovi.stages import STAGES
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.scheduling.assumed_speeds import assumed_rates
from ovi_ray.scheduling.device_profile import (
    BF16_SIZES,
    COMPONENTS,
    INT8_SIZES,
    STREAMED_SIZES,
    ComponentSizes,
    DeviceProfile,
    StageRates,
)


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """The profile of a worker's device: as the cluster profile declares it, or else as its published peak lets expect.

    Measurements correct the rates.

    The scheduler counts the operations of the published model. A smaller model needs fewer for the same clip, so the rates are
    scaled up by the ratio of their weights; those of a profile that was measured with a smaller model already are.
    """
    base = info.declared or _assumed(info)
    sizes = ComponentSizes(**{component.value: size for component, size in info.component_gb.items()})
    bytes_per_weight = 4 if dtype == "float32" else 2
    counted = BF16_SIZES if base.sizes in (INT8_SIZES, STREAMED_SIZES) else base.sizes  # as many weights, in 16 bits
    rated_for = {component: counted.of(component) * bytes_per_weight / 2 for component in COMPONENTS}
    work = {stage: spec.main_component for stage, spec in STAGES.items()}
    computed = {c: sizes.of(c) + (info.streamed_gb if c is Component.TRANSFORMER else 0.0) for c in COMPONENTS}
    rates = {stage.value: base.rates.of(stage) * rated_for[c] / computed[c] for stage, c in work.items()}
    return dataclasses.replace(
        base,
        memory_gb=min(base.memory_gb, info.memory_gb),
        sizes=sizes,
        rates=StageRates(**rates),
        has_fp8_products=info.has_fp8_products,
    )


def _assumed(info: WorkerInfo) -> DeviceProfile:
    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        rates=assumed_rates(info.device, info.vendor, info.architecture),
    )
