"""Memory that turned out not to suffice for a stage of a kind of clip, although the plan says that it does."""

import math
from collections.abc import Set

from ovi.stages import Stage

SEVERAL_DEVICES = 2
"""Devices that must have run out of memory before it counts as too little: a single one may be faulty."""


class MemoryLimits:
    """Evidence by stage and kind; true when there is any.

    A device that ran out where one with no more memory finished is itself at fault.
    """

    def __init__(self) -> None:
        self._ran_out: dict[tuple[Stage, int], dict[str, float]] = {}  # slot -> GB
        self._suffices: dict[tuple[Stage, int], float] = {}  # the least GB with which one was finished

    def __bool__(self) -> bool:
        return bool(self._ran_out)

    def ran_out(self, stage: Stage, kind: int, slot: str, memory_gb: float) -> None:
        """A device ran out, with nothing else on it."""
        if memory_gb < self._suffices.get((stage, kind), math.inf):
            self._ran_out.setdefault((stage, kind), {})[slot] = memory_gb

    def finished(self, stage: Stage, kind: int, memory_gb: float) -> None:
        """A device had enough."""
        if memory_gb >= self._suffices.get((stage, kind), math.inf):
            return
        self._suffices[stage, kind] = memory_gb
        slots = self._ran_out.pop((stage, kind), {})
        if smaller := {slot: gb for slot, gb in slots.items() if gb < memory_gb}:
            self._ran_out[stage, kind] = smaller

    def slots(self, stage: Stage, kind: int) -> Set[str]:
        """Devices that ran out."""
        return self._ran_out.get((stage, kind), {}).keys()

    def limits(self) -> dict[tuple[Stage, int], float]:
        """(stage, kind) -> GB that do not suffice, because several devices with so much or more ran out."""
        ordered = {work: sorted(slots.values(), reverse=True) for work, slots in self._ran_out.items()}
        return {work: gb[SEVERAL_DEVICES - 1] for work, gb in ordered.items() if len(gb) >= SEVERAL_DEVICES}
