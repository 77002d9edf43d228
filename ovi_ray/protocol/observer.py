"""The interface through which a running job can be watched: by the terminal, the decision printer, the run's record, a test."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.progress import JobSnapshot
from ovi_ray.scheduling.actions import Action, RunTask
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import Event
from ovi_ray.scheduling.workload import Workload


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class RunStarted:
    """The scheduler's inputs: with these and the events, every decision of the run can be computed again."""

    workload: Workload
    config: SchedulerConfig
    clip_ids: pa.Array
    """[clips] id of each clip of the workload."""
    varied: Callable[[int], str] | None = None
    """The swept parameters of a clip with their values, in words; None without a sweep."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Cycle:
    """One call of `Scheduler.handle`."""

    now: float
    """Seconds since the driver started."""
    events: tuple[Event, ...]
    actions: tuple[Action, ...]
    stopping: bool = False
    """The run is being stopped: its RunTask actions are not carried out."""

    @property
    def carried_out(self) -> tuple[Action, ...]:
        """The actions that the driver carries out."""
        return tuple(action for action in self.actions if not (self.stopping and isinstance(action, RunTask)))


@dataclass(kw_only=True, slots=True, frozen=True)
class RunEnded:
    """The outcome of the driver's loop."""

    now: float
    done: int
    """Clips rendered in this run."""
    failed: int
    error: str = ""
    """Why the run ended before its last clip; empty when every clip ended."""


class JobObserver:
    """Callbacks of a running job, all of them optional. They run on the driver's thread, so they must return quickly."""

    def started(self, run: RunStarted) -> None:
        """The driver starts; called once, before the first cycle."""

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """A worker answers; the cycle with its WorkerJoined event follows."""

    def cycle(self, cycle: Cycle) -> None:
        """The scheduler took events and returned actions."""

    def progress(self, snapshot: JobSnapshot) -> None:
        """Called about twice a second with the job's progress."""

    def message(self, text: str) -> None:
        """Something the user should know."""

    def paused(self, reason: str) -> None:
        """Storage is away, and the job waits for it; `message` tells the user."""

    def resumed(self) -> None:
        """The storage is back."""

    def ended(self, run: RunEnded) -> None:
        """The driver ends, for whatever reason; called once."""


class Observers(JobObserver):
    """Passes every callback on to several observers, in order."""

    def __init__(self, observers: Iterable[JobObserver]) -> None:
        self._observers: Sequence[JobObserver] = tuple(observers)

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.started(run)

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.worker_started(worker, slot, info)

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.cycle(cycle)

    def progress(self, snapshot: JobSnapshot) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.progress(snapshot)

    def message(self, text: str) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.message(text)

    def paused(self, reason: str) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.paused(reason)

    def resumed(self) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.resumed()

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        for observer in self._observers:
            observer.ended(run)
