"""The consequences of a failure for an item: whether it is tried again, where, and beside what."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from enum import IntEnum

from ovi.stages import Stage
from ovi_ray.scheduling.config import RetryConfig

Item = tuple[Stage, int]
"""A stage and the number of a text, first frame or clip."""


class MemoryStep(IntEnum):
    """How an item runs after it ran out of memory: each time one step further."""

    SHARED = 0
    """Beside whatever components are resident."""
    ALONE = 1
    """With only the components that it needs."""
    LARGER_DEVICE = 2
    """Alone, and on a device with more memory than those that did not suffice."""


@dataclass(slots=True)
class _History:
    failures: int = 0
    """All of them, counted against the item or not."""
    errors: Counter[str] = field(default_factory=Counter)
    """Slot -> errors there that count against the item."""
    crashes: Counter[str] = field(default_factory=Counter)
    """Slot -> workers that died there while running it alone, and count against the item."""
    out_of_memory: int = 0
    avoided_slots: set[str] = field(default_factory=set)
    memory_step: MemoryStep = MemoryStep.SHARED
    too_small_gb: float = 0.0
    """Devices of this memory or less are avoided: it ran out of memory there although it was alone."""

    @property
    def attempts(self) -> int:
        return self.errors.total() + self.out_of_memory

    @property
    def is_restricted(self) -> bool:
        return bool(self.avoided_slots) or self.too_small_gb > 0

    def lift_restrictions(self) -> None:
        self.avoided_slots.clear()
        self.too_small_gb = 0.0


class RetryTracker:
    """Histories of the items that failed and have not succeeded since; true when there are any."""

    def __init__(self, config: RetryConfig) -> None:
        self.config = config
        self._items: dict[Item, _History] = {}

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

    def allows(self, item: Item, slot: str, memory_gb: float) -> bool:
        """Whether the item may run on a device."""
        history = self._items.get(item)
        return history is None or (slot not in history.avoided_slots and memory_gb > history.too_small_gb)

    def charged_slots(self, item: Item) -> Set[str]:
        """Slots where the item failed in a way that counts against it."""
        history = self._items.get(item)
        return history.errors.keys() | history.crashes.keys() if history is not None else frozenset()

    # --- failures; each returns whether the item may be tried again

    def record_error(self, item: Item, slot: str, *, charged: bool = True) -> bool:
        """An unexpected failure. Not charged when the device or another item of the batch may be at fault."""
        history = self._failed_on(item, slot)
        if charged:
            history.errors[slot] += 1
        return history.attempts < self.config.max_attempts

    def record_crash(self, item: Item, slot: str, *, charged: bool = True) -> bool:
        """The worker died while it ran this item alone."""
        history = self._failed_on(item, slot)
        if charged:
            history.crashes[slot] += 1
        return history.crashes.total() < self.config.max_crashes

    def record_out_of_memory(self, item: Item, slot: str, memory_gb: float) -> bool:
        """Memory did not suffice: go one step further, see MemoryStep."""
        history = self._history(item)
        history.failures += 1
        history.out_of_memory += 1
        if history.memory_step is MemoryStep.SHARED:
            history.memory_step = MemoryStep.ALONE
        else:
            history.memory_step = MemoryStep.LARGER_DEVICE
            history.avoided_slots.add(slot)
            history.too_small_gb = max(history.too_small_gb, memory_gb)
        return history.attempts < self.config.max_attempts

    def record_suspicion(self, item: Item) -> None:
        """It was in a batch that failed: next time it runs alone, without being charged."""
        self._history(item)

    # --- what ends or softens a history

    def clear(self, item: Item) -> None:
        """The item succeeded or was given up."""
        self._items.pop(item, None)

    def forgive(self, slot: str) -> None:
        """The failures on a device were its own fault: they do not count against the items any more."""
        for history in self._items.values():
            history.errors.pop(slot, None)
            history.crashes.pop(slot, None)

    def lift_restrictions(self, item: Item) -> None:
        """Let an item run again on the devices that it avoids."""
        self._history(item).lift_restrictions()

    def lift_all_restrictions(self) -> bool:
        """Let every item run anywhere again. Returns whether that changed anything."""
        restricted = [history for history in self._items.values() if history.is_restricted]
        for history in restricted:
            history.lift_restrictions()
        return bool(restricted)

    def _history(self, item: Item) -> _History:
        return self._items.setdefault(item, _History())

    def _failed_on(self, item: Item, slot: str) -> _History:
        history = self._history(item)
        history.failures += 1
        history.avoided_slots.add(slot)
        return history
