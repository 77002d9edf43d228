"""The idle workers in service, in groups of interchangeable ones, so that a decision looks at each group once."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ovi.config import Component
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


class GroupKey(NamedTuple):
    """The common properties of interchangeable workers."""

    device_class: int
    resident: frozenset[Component]
    model_name: str
    """Model whose transformer is resident; empty when none is."""
    policy_group: int


class IdleWorkers:
    """Groups of idle workers, each in the order in which its workers became idle; true when there are any."""

    def __init__(self, pool: WorkerPool) -> None:
        self._workers = pool.workers
        self._groups: dict[GroupKey, dict[int, None]] = {}
        self._key_of: dict[int, GroupKey] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, worker: WorkerState, policy_group: int) -> None:
        """The worker became idle."""
        key = GroupKey(worker.device_class, worker.resident, worker.model_name, policy_group)
        self._key_of[worker.number] = key
        self._groups.setdefault(key, {})[worker.number] = None

    def remove(self, number: int) -> None:
        """The worker is not idle any more; no effect if it was not."""
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
        """One worker of each group, which represents the group."""
        for key, group in self._groups.items():
            yield key, self._workers[next(iter(group))]

    def key_of(self, number: int) -> GroupKey:
        """The group of an idle worker."""
        return self._key_of[number]

    def some(self, key: GroupKey, most: int) -> list[WorkerState]:
        """The first workers of a group, at most `most`."""
        return [self._workers[number] for number in islice(self._groups[key], most)]

    def with_model(self, model_name: str) -> int:
        """Number of idle workers on which a model's transformer is resident."""
        return sum(len(group) for key, group in self._groups.items() if key.model_name == model_name)
