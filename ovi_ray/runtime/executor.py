"""Values that an executor reports to the driver."""

from dataclasses import dataclass

from ovi_ray.protocol.messages import Report, WorkerInfo
from ovi_ray.scheduling.events import Event


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerStarted:
    """An actor answers: its device is known."""

    worker: str
    info: WorkerInfo


@dataclass(kw_only=True, slots=True, frozen=True)
class Outcome:
    """An event for the scheduler and, for a task that ended, its report."""

    event: Event
    report: Report | None = None


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerReplaced:
    """An actor is gone."""

    worker: str
    why: str
    """Goes on from its name: "died during denoise"."""
    successor: str
    """The worker that comes in its place; empty where that is given up."""

    def __str__(self) -> str:
        what_next = f"{self.successor} takes its place" if self.successor else "its place is given up"
        return f"{self.worker} {self.why}: {what_next}"


Happened = WorkerStarted | Outcome | WorkerReplaced
