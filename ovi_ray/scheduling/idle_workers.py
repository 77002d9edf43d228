"""The idle workers, in groups that are asked about once. Pure."""

from collections.abc import Iterator
from itertools import islice

from ovi.config import Component
from ovi_ray.scheduling.worker_pool import Fleet, WorkerState

GroupKey = tuple[int, frozenset[Component], str, int]
"""Class, what is resident, the transformer's model, and the policy's own number."""


class IdleGroups:
    """Idle workers that are alike stand together, in the order in which they became idle."""

    def __init__(self, fleet: Fleet) -> None:
        self._workers = fleet.workers
        self._groups: dict[GroupKey, dict[int, None]] = {}
        self._key_of: dict[int, GroupKey] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, worker: WorkerState, policy_group: int) -> None:
        """The worker is idle."""
        key = (worker.device, worker.resident, worker.model_name, policy_group)
        self._key_of[worker.number] = key
        self._groups.setdefault(key, {})[worker.number] = None

    def remove(self, number: int) -> None:
        """The worker is not idle any more; nothing if it was not."""
        key = self._key_of.pop(number, None)
        if key is not None:
            group = self._groups[key]
            del group[number]
            if not group:
                del self._groups[key]

    def numbers(self) -> list[int]:
        """Every idle worker."""
        return list(self._key_of)

    def first_of_each(self) -> Iterator[tuple[GroupKey, WorkerState]]:
        """One worker of each group, which stands for all of it."""
        for key, group in self._groups.items():
            yield key, self._workers[next(iter(group))]

    def key_of(self, number: int) -> GroupKey:
        """The group of an idle worker."""
        return self._key_of[number]

    def some(self, key: GroupKey, most: int) -> list[WorkerState]:
        """The first workers of a group."""
        return [self._workers[number] for number in islice(self._groups[key], most)]

    def with_model(self, model_name: str) -> int:
        """Idle workers that hold a model's transformer."""
        return sum(len(group) for (_, _, model, _), group in self._groups.items() if model == model_name)
