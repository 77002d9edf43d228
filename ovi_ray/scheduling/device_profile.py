"""A class of devices: memory, supported stages and assumed speeds, and what fits on it.

Seconds are operations over an *achieved* rate. Memory is in GB of 1e9 bytes, work in TFLOP (a multiply-add is two), times in
seconds.
"""

import dataclasses
import math
from dataclasses import dataclass, field

from ovi.config import Component
from ovi.quality import Quality
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.declared import Declared, with_numbers
from ovi_ray.scheduling.workload import ClipKind

COMPONENTS = tuple(Component)


@dataclass(kw_only=True, slots=True, frozen=True)
class ComponentSizes:
    """GB of each component's weights on the device. The defaults are those of the published model in bf16."""

    text_encoder: float = 11.36
    transformer: float = 23.32
    video_vae: float = 1.41
    audio_vae: float = 0.69
    vocoder: float = 0.45

    def of(self, component: Component) -> float:
        """Of one component."""
        return float(getattr(self, component))


BF16_SIZES = ComponentSizes()
INT8_SIZES = ComponentSizes(transformer=12.38)
"""With 8-bit weights, which the transformer alone has."""
STREAMED_SIZES = ComponentSizes(transformer=2.88)
"""With the transformer's blocks in host memory and two buffers for them on the device."""
STREAMED_HOST_GB = 32.21
"""GB of host memory that those blocks take."""


@with_numbers({stage.value: spec.assumed_tflops for stage, spec in STAGES.items()})
class StageRates(Declared):
    """TFLOP/s that a device achieves in each stage: below its peak, and different for attention and convolutions."""

    def of(self, stage: Stage) -> float:
        """Of one stage."""
        return float(getattr(self, stage))


@with_numbers({spec.activations.key: spec.activations.assumed_gb for spec in STAGES.values()})
class ActivationSizes(Declared):
    """GB that a stage needs beside its weights, for each unit of its `Activations`."""

    def of(self, stage: Stage, kind: ClipKind | None) -> float:
        """For a stage of a kind of clip; None where there is no clip (texts, preloads)."""
        activations = STAGES[stage if kind is not None else Stage.ENCODE_TEXT].activations
        units = 1.0 if kind is None else activations.units(kind)
        return float(activations.base_gb + getattr(self, activations.key) * units)


ALL_STAGES = frozenset(Stage)


@dataclass(kw_only=True, slots=True, frozen=True)
class DeviceProfile:
    """A class of devices: memory, stages that may run there, and assumed speeds.

    Workers that join with equal profiles are one device class and share what is learned.
    """

    name: str
    """Name of the class, such as 'h100-80gb'."""
    vendor: str = "cpu"
    """'nvidia', 'amd' or 'cpu'."""
    architecture: str = ""
    """'sm90', 'gfx942', ..."""
    memory_gb: float = math.inf
    """GB for weights and activations together."""
    stages: frozenset[Stage] = ALL_STAGES
    """Stages that may run there, memory permitting."""
    sizes: ComponentSizes = BF16_SIZES
    activations: ActivationSizes = field(default_factory=ActivationSizes)
    rates: StageRates = field(default_factory=StageRates)
    load_gb_per_s: float = 2.0
    """Rate of loading weights onto the device."""
    unload_s: float = 0.3
    """Seconds to drop one component."""
    task_overhead_s: float = 0.05
    """Seconds that each task takes in addition to its work."""
    speed: float = 1.0
    """Factor on every rate."""
    has_fp8_products: bool = False
    """Clips whose quality asks for it may be computed in 8-bit floats here, which takes memory."""

    def load_seconds(self, component: Component) -> float:
        """To load one component."""
        return self.sizes.of(component) / self.load_gb_per_s

    def needed_gb(self, stage: Stage, kind: ClipKind | None, resident: frozenset[Component] | None = None) -> float:
        """For a stage of a kind with `resident` components loaded; by default only those that the stage needs."""
        components = STAGES[stage].components if resident is None else resident
        if kind is not None and kind.computes_in_fp8 and not self.has_fp8_products:
            kind = dataclasses.replace(kind, quality=Quality.EXACT)
        return sum(self.sizes.of(c) for c in COMPONENTS if c in components) + self.activations.of(stage, kind)

    def why_not(self, stage: Stage, kind: ClipKind | None) -> str:
        """Why a stage of a kind cannot run here, for users; empty when it can."""
        if stage not in self.stages:
            return f"{self.name} does not run {stage}"
        needed = self.needed_gb(stage, kind)
        if needed > self.memory_gb:
            return f"{self.name} has {self.memory_gb:.1f} GB and {stage} needs {needed:.1f} GB"
        return ""

    def fits(self, stage: Stage, kind: ClipKind | None) -> bool:
        """Whether a stage of a kind can run here with only its own components resident."""
        return not self.why_not(stage, kind)

    def prior_seconds(self, stage: Stage, operations: float) -> float:
        """Of one task of `operations` TFLOP, before anything is measured."""
        return operations / (self.rates.of(stage) * self.speed) + self.task_overhead_s
