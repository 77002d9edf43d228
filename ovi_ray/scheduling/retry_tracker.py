"""The consequences of a failure for an item: whether it is tried again, where, when, and beside what."""

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from ovi.stages import Stage
from ovi_ray.scheduling.config import RetryConfig
from ovi_ray.scheduling.memory_limits import SEVERAL_DEVICES

Item = tuple[Stage, int]
"""A stage and the number of a text, first frame or clip."""


class MemoryStep(IntEnum):
    """Conditions on an item's next attempt after it ran out of memory."""

    SHARED = 0
    """Beside whatever components are resident."""
    ALONE = 1
    """With only the components that it needs."""


@dataclass(slots=True)
class _History:
    failures: int = 0
    """All of them, counted against the item or not."""
    failed_on: dict[str, float] = field(default_factory=dict)
    """Slot where it failed -> GB of the largest device that can refute the failure by finishing the item."""
    tries: Counter[str] = field(default_factory=Counter)
    """Slot -> how often it failed there."""
    charges: Counter[str] = field(default_factory=Counter)
    """Slot -> errors and out of memory there that count against the item."""
    crashes: Counter[str] = field(default_factory=Counter)
    """Slot -> workers that died there while running it alone, and count against the item."""
    avoided_slots: set[str] = field(default_factory=set)
    memory_step: MemoryStep = MemoryStep.SHARED


class RetryTracker:
    """Histories of the items that failed and have not succeeded since; true when there are any."""

    def __init__(self, config: RetryConfig) -> None:
        self.config = config
        self._items: dict[Item, _History] = {}
        self.last_items: set[Item] = set()
        """Items that wait until everything else has started, because a worker died while running each alone."""

    def __bool__(self) -> bool:
        return bool(self._items)

    # --- queries

    def has_failed(self, item: Item) -> bool:
        """Whether the item failed or was in a batch that did. It then runs in a batch of its own."""
        return item in self._items

    def next_attempt(self, item: Item) -> int:
        """Number of the next attempt, from 1."""
        history = self._items.get(item)
        return 1 if history is None else 1 + history.failures

    def runs_alone(self, item: Item) -> bool:
        """Whether only the components that the item needs should be resident."""
        history = self._items.get(item)
        return history is not None and history.memory_step >= MemoryStep.ALONE

    def allows(self, item: Item, slot: str) -> bool:
        """Whether the item may run on a device."""
        history = self._items.get(item)
        return history is None or slot not in history.avoided_slots

    def failed_on(self, item: Item) -> dict[str, float]:
        """Slots where the item failed, and the GB of the largest device that can refute that by finishing it."""
        history = self._items.get(item)
        return history.failed_on if history is not None else {}

    def tries(self, item: Item, slot: str) -> int:
        """Number of failures of the item on a device."""
        history = self._items.get(item)
        return 0 if history is None else history.tries[slot]

    def too_small_gb(self, item: Item) -> float:
        """GB that do not suffice for the item, because it ran out of memory on several devices with so much or more; or 0."""
        ran_out = sorted(gb for gb in self.failed_on(item).values() if gb < math.inf)
        return ran_out[-SEVERAL_DEVICES] if len(ran_out) >= SEVERAL_DEVICES else 0.0

    # --- failures; each returns whether the item may be tried again

    def record_error(self, item: Item, slot: str, *, charged: bool = True) -> bool:
        """An unexpected failure. Not charged when the device may be at fault."""
        history = self._failed_on(item, slot)
        history.avoided_slots.add(slot)
        return self._charge(history, slot, charged=charged)

    def record_crash(self, item: Item, slot: str, *, charged: bool = True) -> bool:
        """The worker died while it ran this item alone."""
        history = self._failed_on(item, slot)
        history.avoided_slots.add(slot)
        self.last_items.add(item)
        history.crashes[slot] += charged
        return history.crashes.total() < self.config.max_crashes

    def record_out_of_memory(self, item: Item, slot: str, memory_gb: float, *, charged: bool = True) -> bool:
        """Memory did not suffice: next time it runs alone, and if it did, elsewhere."""
        history = self._failed_on(item, slot, memory_gb)
        if history.memory_step is MemoryStep.ALONE:
            history.avoided_slots.add(slot)
        history.memory_step = MemoryStep.ALONE
        return self._charge(history, slot, charged=charged)

    def record_suspicion(self, item: Item, *, out_of_memory: bool = False) -> None:
        """It was in a batch that failed: next time it runs in a batch of its own, without being charged."""
        history = self._history(item)
        if out_of_memory:
            history.memory_step = MemoryStep.ALONE

    def _charge(self, history: _History, slot: str, *, charged: bool) -> bool:
        history.charges[slot] += charged
        return history.charges.total() < self.config.max_attempts

    # --- what ends or softens a history

    def clear(self, item: Item) -> None:
        """The item succeeded or was given up."""
        self._items.pop(item, None)
        self.last_items.discard(item)

    def forgive(self, slot: str, stage: Stage) -> None:
        """The failures of a stage on a device were its own fault: they do not count against the items any more."""
        for (of_stage, _), history in self._items.items():
            if of_stage is stage:
                history.charges.pop(slot, None)
                history.crashes.pop(slot, None)
                history.failed_on.pop(slot, None)

    def lift_restrictions(self, item: Item) -> None:
        """Let an item run again on the devices that it avoids."""
        self._history(item).avoided_slots.clear()

    def lift_all_restrictions(self) -> bool:
        """Let every item run anywhere and at any time again. Returns whether that changed anything."""
        restricted = [history for history in self._items.values() if history.avoided_slots]
        for history in restricted:
            history.avoided_slots.clear()
        changes = bool(restricted or self.last_items)
        self.last_items.clear()
        return changes

    def _history(self, item: Item) -> _History:
        return self._items.setdefault(item, _History())

    def _failed_on(self, item: Item, slot: str, refuted_by_gb: float = math.inf) -> _History:
        history = self._history(item)
        history.failures += 1
        history.tries[slot] += 1
        history.failed_on[slot] = refuted_by_gb
        return history
