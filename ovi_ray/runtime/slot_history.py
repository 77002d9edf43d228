"""The failures of a slot's workers, to tell a broken device from a clip that kills workers."""

from collections.abc import Hashable, Iterable, Set
from dataclasses import dataclass, replace

from ovi_ray.scheduling.task import Task


@dataclass(kw_only=True, slots=True, frozen=True)
class SlotHistory:
    """The workers that a slot has had, and what they failed at since one of them last finished a task."""

    workers: int = 1
    was_placed: bool = False
    """A node had a place for one of the workers: such a node may come back."""
    failures: frozenset[Hashable] = frozenset()
    """Each failed start and each task that killed its worker at its first attempt."""

    def failed_at(self, causes: Set[Hashable]) -> "SlotHistory":
        """The history after the current worker was lost.

        `causes` is empty if that is not the slot's fault: it went down with its node, or was killed by a task that had failed
        before.
        """
        return replace(self, workers=self.workers + 1, failures=self.failures | causes)

    def placed(self) -> "SlotHistory":
        """The history after a node had a place for the current worker."""
        return replace(self, was_placed=True)

    def succeeded(self) -> "SlotHistory":
        """The history after a task succeeded."""
        return replace(self, failures=frozenset())

    def is_broken(self, max_failures: int) -> bool:
        """Whether the slot should get no further worker."""
        return len(self.failures) >= max_failures


def causes_of(tasks: Iterable[Task]) -> Set[Hashable]:
    """Those tasks that may have killed a worker and say something of its slot: one that failed before says it of its clip."""
    return {(task.stage, task.items) for task in tasks if task.attempt == 1}
