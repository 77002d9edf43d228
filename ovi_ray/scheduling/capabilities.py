"""The stages that each device class can run, and the components that have to be swapped for each."""

from typing import NamedTuple

from ovi.config import Component
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.device_profile import COMPONENTS, DeviceProfile


class Swap(NamedTuple):
    """The change of a worker's resident components before a task."""

    components: frozenset[Component]
    """Resident during the task."""
    loads: frozenset[Component]
    """To be loaded."""
    unloads: int
    """Number of components to unload."""
    model_name: str
    """Model whose transformer is resident afterwards; empty when none is."""


class Capabilities:
    """Cached answers per device class, stage and kind of clip."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self.limits: dict[tuple[Stage, int], float] = {}
        """(stage, kind) -> GB that turned out not to suffice, although they should."""
        self._fits: list[dict[Stage, list[bool]]] = []
        self._swaps: dict[tuple[int, frozenset[Component], str, Stage, int], Swap] = {}

    def register(self, profile: DeviceProfile) -> int:
        """Number of the device class; the same for equal profiles."""
        device_class = self._costs.register(profile)
        while len(self._fits) < len(self._costs.profiles):
            known = self._costs.profiles[len(self._fits)]
            self._fits.append({stage: [known.fits(stage, kind) for kind in self._costs.kinds] for stage in Stage})
        return device_class

    @property
    def classes(self) -> range:
        """Numbers of all device classes, with workers or without."""
        return range(len(self._fits))

    def fits(self, device_class: int, stage: Stage, kind: int) -> bool:
        """Whether a class can run a stage of a kind."""
        if self.limits and self._costs.profiles[device_class].memory_gb <= self.limits.get((stage, kind), 0.0):
            return False
        return self._fits[device_class][stage][kind]

    def can_denoise(self, device_class: int) -> bool:
        """Whether a class can denoise any kind."""
        return any(self._fits[device_class][Stage.DENOISE])

    def swap(
        self,
        device_class: int,
        resident: frozenset[Component],
        held_model: str,
        stage: Stage,
        kind: int,
        *,
        alone: bool = False,
    ) -> Swap:
        """The swap for a task: what it needs, beside as much of what is resident as fits; nothing beside it if `alone`."""
        if alone:
            return self._make_swap(device_class, resident, held_model, stage, kind, alone=True)
        key = (device_class, resident, held_model, stage, kind)
        if key not in self._swaps:
            self._swaps[key] = self._make_swap(*key, alone=False)
        return self._swaps[key]

    def _make_swap(
        self,
        device_class: int,
        resident: frozenset[Component],
        held_model: str,
        stage: Stage,
        kind: int,
        *,
        alone: bool,
    ) -> Swap:
        clip, needed = self._costs.kinds[kind], STAGES[stage].components
        uses_model = Component.TRANSFORMER in needed
        wrong_model = uses_model and held_model != clip.model_name
        keepable = resident - {Component.TRANSFORMER} if wrong_model else resident
        kept = needed if alone else self._beside(device_class, stage, kind, needed, keepable)
        model_name = clip.model_name if uses_model else held_model
        if Component.TRANSFORMER not in kept:
            model_name = ""
        return Swap(kept, needed - keepable, len(resident - (kept & keepable)), model_name)

    def _beside(
        self, device_class: int, stage: Stage, kind: int, needed: frozenset[Component], keepable: frozenset[Component]
    ) -> frozenset[Component]:
        """`needed` and as many of the others as fit, those first that take longest to load."""
        profile, kept = self._costs.profiles[device_class], needed
        for component in sorted(keepable - needed, key=lambda c: (-profile.load_seconds(c), COMPONENTS.index(c))):
            if profile.needed_gb(stage, self._costs.kinds[kind], kept | {component}) <= profile.memory_gb:
                kept |= {component}
        return kept

    def swap_seconds(self, device_class: int, swap: Swap) -> float:
        """Expected seconds of a swap's unloads and loads."""
        unload_s = self._costs.profiles[device_class].unload_s
        return self._costs.load_seconds(device_class, swap.loads) + swap.unloads * unload_s
