"""What to do after a failure: again, elsewhere, or not at all. Pure."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field

from ovi.stages import Stage

Item = tuple[Stage, int]
"""A stage and the number of a text, first frame or clip."""


@dataclass(slots=True)
class _History:
    tries: int = 0
    """That failed, charged or not."""
    errors: Counter[str] = field(default_factory=Counter)
    """Place -> failures there that are charged to the item."""
    crashes: Counter[str] = field(default_factory=Counter)
    """Place -> workers that died there while they ran it alone."""
    out_of_memory: int = 0
    """Times that memory did not suffice for it."""
    avoid: set[str] = field(default_factory=set)
    """Places that it had better not run at again."""
    alone: bool = False
    """It ran out of memory: load nothing beside what it needs."""
    too_small_gb: float = 0.0
    """Devices of this memory or less ran out of it even so."""

    @property
    def attempts(self) -> int:
        return self.errors.total() + self.out_of_memory


class FailureBook:
    """Remembers the items that failed, and only these."""

    def __init__(self, *, max_attempts: int, max_crashes: int) -> None:
        self.max_attempts = max_attempts
        self.max_crashes = max_crashes
        self._items: dict[Item, _History] = {}
        self._places: dict[int, str] = {}
        self.on_trial: set[int] = set()
        """Workers that get nothing that failed before: it would say nothing of them."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def joined(self, worker: int, place: str) -> None:
        """A worker runs at a place."""
        self._places[worker] = place

    def _history(self, item: Item) -> _History:
        return self._items.setdefault(item, _History())

    def attempt(self, item: Item) -> int:
        """Number of the next try: 1 when nothing went wrong."""
        history = self._items.get(item)
        return 1 if history is None else 1 + history.tries

    def runs_alone(self, item: Item) -> bool:
        """Whether only the components that the item needs should be loaded."""
        history = self._items.get(item)
        return history is not None and history.alone

    def allows(self, item: Item, worker: int, memory_gb: float) -> bool:
        """Whether the item may go to a worker."""
        history = self._items.get(item)
        if history is None:
            return True
        if worker in self.on_trial:
            return False
        return self._places[worker] not in history.avoid and memory_gb > history.too_small_gb

    def error(self, item: Item, worker: int, *, charged: bool = True) -> bool:
        """An unexpected failure. False when it was tried often enough."""
        history = self._failed_at(item, worker)
        if charged:
            history.errors[self._places[worker]] += 1
        return history.attempts < self.max_attempts

    def _failed_at(self, item: Item, worker: int) -> _History:
        history = self._history(item)
        history.tries += 1
        history.avoid.add(self._places[worker])
        return history

    def out_of_memory(self, item: Item, worker: int, memory_gb: float) -> bool:
        """First alone on any device, then on a larger one. False when it was tried often enough."""
        history = self._history(item)
        history.tries += 1
        history.out_of_memory += 1
        if history.alone:
            history.avoid.add(self._places[worker])
            history.too_small_gb = max(history.too_small_gb, memory_gb)
        history.alone = True
        return history.attempts < self.max_attempts

    def crash(self, item: Item, worker: int, *, charged: bool = True) -> bool:
        """The worker died while it ran this item alone. False when that happened too often."""
        history = self._failed_at(item, worker)
        if charged:
            history.crashes[self._places[worker]] += 1
        return history.crashes.total() < self.max_crashes

    def excuse(self, place: str) -> None:
        """What failed at a place was the place's fault: nothing of it is charged to the items."""
        for history in self._items.values():
            history.errors.pop(place, None)
            history.crashes.pop(place, None)

    def places(self, item: Item) -> Set[str]:
        """Where the item failed with nothing else to blame."""
        history = self._items.get(item)
        return history.errors.keys() | history.crashes.keys() if history is not None else frozenset()

    def suspect(self, item: Item) -> None:
        """Something went wrong with it among others: next time it runs alone, without being charged."""
        self._history(item)

    def is_suspect(self, item: Item) -> bool:
        """Whether the item failed before: it then runs in a batch of its own."""
        return item in self._items

    def clear(self, item: Item) -> None:
        """It ended well."""
        self._items.pop(item, None)

    def relax_item(self, item: Item) -> None:
        """Let one item go back to places that it avoided."""
        history = self._history(item)
        history.avoid.clear()
        history.too_small_gb = 0.0

    def relax(self) -> bool:
        """Let items go back to places that they avoided, when these are all there is. True when that changed anything."""
        changed = bool(self.on_trial)
        self.on_trial.clear()
        for history in self._items.values():
            changed = changed or bool(history.avoid) or history.too_small_gb > 0
            history.avoid.clear()
            history.too_small_gb = 0.0
        return changed
