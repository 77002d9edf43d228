"""The slots of an executor, and which of them can be spared."""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.slot_history import SlotHistory


@dataclass(kw_only=True, slots=True)
class Slot:
    """A slot and the worker that occupies it."""

    name: str
    placement: Placement
    worker: str
    actor: Any
    info: WorkerInfo | None = None
    """None until the worker answers."""
    history: SlotHistory
    idle_since: float = math.inf
    """When the worker became ready, or its last task ended."""
    asked_at: float = math.inf
    """When Ray was asked for a place for the worker."""
    process: int = 0
    """Pid of a worker that has not answered yet, as seen at the last look; 0 while it has no place."""
    looked_at: float = math.inf
    """When it was looked whether it has a process."""
    leaves: bool = False
    """Its node is about to leave: the worker gets no further task."""
    pauses: bool = False
    """Its device goes to another job: the worker gets no further task."""

    def can_stand_in_for(self, other: "Slot") -> bool:
        """Whether the scheduler can tell the workers of the two apart by their names alone."""
        if self is other or self.info is None or other.info is None or self.leaves or self.pauses:
            return False
        device, of_other = (
            (i.vendor, i.device, i.architecture, i.memory_gb, i.declared) for i in (self.info, other.info)
        )
        return device == of_other


@dataclass(kw_only=True, slots=True, frozen=True)
class PausedSlot:
    """A slot whose next worker is started when other jobs leave room for it."""

    name: str
    placement: Placement
    worker: str
    history: SlotHistory


def spare(slots: Sequence[Slot], *, needed: float, busy: Set[str], idle_before: float) -> list[Slot]:
    """Slots beyond those needed: without a worker yet, or idle for long while another worker can do all that theirs can.

    `busy` names the workers that run a task.
    """
    found: list[Slot] = []
    for slot in sorted(slots, key=lambda slot: slot.info is not None):
        staying = [other for other in slots if other not in found]
        is_idle = slot.worker not in busy and slot.idle_since <= idle_before
        has_twin = is_idle and any(other.can_stand_in_for(slot) for other in staying)
        if len(staying) > needed and (slot.info is None or has_twin):
            found.append(slot)
    return found


def least_useful(slots: Sequence[Slot], *, busy: Set[str]) -> list[Slot]:
    """The slots, those first that cost least to give up: without a worker yet, then idle ones, of equal ones the newest."""
    ordered = [*reversed(slots)]
    ordered.sort(key=lambda slot: (slot.info is not None, slot.worker in busy))
    return ordered
