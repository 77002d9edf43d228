"""Turns the end of a task into events for the scheduler, and records what it says of its clip and its worker."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ovi_ray.output.broken_files import set_aside
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.protocol.messages import Failure, FailureCause, TaskReport
from ovi_ray.runtime.clip_records import ClipRecords
from ovi_ray.runtime.executor import TaskEnded
from ovi_ray.runtime.storage_pause import StoragePause
from ovi_ray.runtime.worker_records import WorkerRecords
from ovi_ray.scheduling.events import DataLost, Event, TaskFailed
from ovi_ray.scheduling.task import DataKey, DataKind, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskOutcomes:
    """Failures of the environment are distinguished from failures of the task; the scheduler hears of the latter only."""

    clips: ClipRecords
    workers: WorkerRecords
    intermediates: Intermediates
    pause: StoragePause
    clip_id: Callable[[Task], str]
    """Id of the clip that a task belongs to."""
    message: Callable[[str], None]

    def events(self, ended: TaskEnded, now: float) -> list[Event]:
        """The events for the scheduler; a failure that storage caused is held back until the pause is over."""
        event, report = ended.event, ended.report
        self.workers.ended(event.worker, event.task)
        if report is None:
            return [event]
        self._record(event.worker, event.task, report, now)
        if isinstance(event, TaskFailed):
            return self._failure(event, report.failure, now) if report.failure is not None else [event]
        self.pause.task_done(event.worker, event.task)
        self.workers.succeeded(event.worker, event.task)
        self.clips.succeeded(event.task, event.worker, self.workers.infos[event.worker], report)
        return [event]

    def _record(self, worker: str, task: Task, report: TaskReport, now: float) -> None:
        self.workers.add_time(worker, task, report)
        for note in report.notes:
            self.message(note)
        if report.storage_error:
            self.pause.begin(report.storage_error, now)

    def _failure(self, event: TaskFailed, failure: Failure, now: float) -> list[Event]:
        self.clips.failed(event.task, failure)
        match failure.cause:
            case FailureCause.TASK:
                return [event]
            case FailureCause.STORAGE:
                self.pause.hold(event, failure.message, now, input_path=failure.input_path)
                return []
            case FailureCause.LATENTS:
                return [event, self._discard_latents(event.task, failure)]

    def _discard_latents(self, task: Task, failure: Failure) -> DataLost:
        self.message(f"{failure.message}; the clip is denoised again")
        # It may not be there, or storage may be out of reach: the next worker finds it again then, and says so.
        with suppress(OSError):
            set_aside(self.intermediates.latents_path(self.clip_id(task)))
        return DataLost(key=DataKey(kind=DataKind.LATENTS, number=task.items[0]))
