"""What to do after a failure: again, elsewhere, or not at all. Pure."""

from dataclasses import dataclass, field

from ovi.stages import Stage

Item = tuple[Stage, int]
"""A stage and the number of a text, first frame or clip."""


@dataclass(slots=True)
class _History:
    attempts: int = 0
    """Failures that were charged to the item."""
    crashes: int = 0
    """Workers that died while they ran it alone."""
    avoid: set[int] = field(default_factory=set)
    """Workers that it had better not run on again."""
    alone: bool = False
    """It ran out of memory: load nothing beside what it needs."""
    too_small_gb: float = 0.0
    """Devices of this memory or less ran out of it even so."""


class FailureBook:
    """Remembers the items that failed, and only these."""

    def __init__(self, *, max_attempts: int, max_crashes: int) -> None:
        self.max_attempts = max_attempts
        self.max_crashes = max_crashes
        self._items: dict[Item, _History] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def _history(self, item: Item) -> _History:
        return self._items.setdefault(item, _History())

    def attempt(self, item: Item) -> int:
        """Number of the next try: 1 when nothing went wrong."""
        history = self._items.get(item)
        return 1 if history is None else 1 + history.attempts + history.crashes

    def runs_alone(self, item: Item) -> bool:
        """Whether only the components that the item needs should be loaded."""
        history = self._items.get(item)
        return history is not None and history.alone

    def allows(self, item: Item, worker: int, memory_gb: float) -> bool:
        """Whether the item may go to a worker."""
        history = self._items.get(item)
        if history is None:
            return True
        return worker not in history.avoid and memory_gb > history.too_small_gb

    def error(self, item: Item, worker: int) -> bool:
        """An unexpected failure. False when it was tried often enough."""
        history = self._history(item)
        history.attempts += 1
        history.avoid.add(worker)
        return history.attempts < self.max_attempts

    def out_of_memory(self, item: Item, worker: int, memory_gb: float) -> bool:
        """First alone on any device, then on a larger one. False when it was tried often enough."""
        history = self._history(item)
        history.attempts += 1
        if history.alone:
            history.avoid.add(worker)
            history.too_small_gb = max(history.too_small_gb, memory_gb)
        history.alone = True
        return history.attempts < self.max_attempts

    def crash(self, item: Item, worker: int) -> bool:
        """The worker died while it ran this item alone. False when that happened too often."""
        history = self._history(item)
        history.crashes += 1
        return history.crashes < self.max_crashes

    def shared_crash(self, item: Item) -> None:
        """The worker died while it ran this item among others: next time it runs alone, without being charged."""
        self._history(item)

    def is_suspect(self, item: Item) -> bool:
        """Whether the item failed before: it then runs in a batch of its own."""
        return item in self._items

    def clear(self, item: Item) -> None:
        """It ended well."""
        self._items.pop(item, None)

    def relax_item(self, item: Item) -> None:
        """Let one item go back to workers that it avoided."""
        history = self._history(item)
        history.avoid.clear()
        history.too_small_gb = 0.0

    def relax(self) -> bool:
        """Let items go back to workers that they avoided, when these are all there is. True when that changed anything."""
        changed = False
        for history in self._items.values():
            changed = changed or bool(history.avoid) or history.too_small_gb > 0
            history.avoid.clear()
            history.too_small_gb = 0.0
        return changed
