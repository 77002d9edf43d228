"""Takes snapshots of a running job for its observer."""

from collections.abc import Callable

from ovi_ray.protocol.observer import JobObserver
from ovi_ray.protocol.progress import ClipEnded, JobSnapshot, RunningTask
from ovi_ray.runtime.executor import Executor
from ovi_ray.runtime.remaining_time import RemainingTimeEstimator
from ovi_ray.runtime.worker_records import WorkerRecords
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import Task


class ProgressReporter:
    """Reports progress at intervals, and once more when the job is done."""

    def __init__(
        self,
        observer: JobObserver,
        *,
        scheduler: Scheduler,
        executor: Executor,
        workers: WorkerRecords,
        clip_id: Callable[[Task], str],
        interval_s: float,
    ) -> None:
        """`clip_id` is the id of the clip that a task belongs to."""
        self._observer = observer
        self._scheduler = scheduler
        self._executor = executor
        self._workers = workers
        self._clip_id = clip_id
        self._interval_s = interval_s
        self._reported_at = float("-inf")
        self._ended: list[ClipEnded] = []
        self._estimator = RemainingTimeEstimator()

    def clip_ended(self, clip: ClipEnded, now: float) -> None:
        """Put a clip into the next snapshot."""
        self._ended.append(clip)
        self._estimator.clip_ended(now)

    def report_if_due(self, now: float) -> None:
        """Send a snapshot if the interval has passed or the job is done."""
        if now < self._reported_at + self._interval_s and not self._scheduler.done:
            return
        self._reported_at = now
        snapshot = self._snapshot(now)
        self._ended.clear()
        self._observer.progress(snapshot)

    def _snapshot(self, now: float) -> JobSnapshot:
        activities, progress = self._executor.activities(), self._scheduler.progress()
        running = {
            worker: RunningTask(task=task, clip_id=self._clip_id(task), activity=activities.get(worker))
            for worker, task in self._workers.running.items()
        }
        return JobSnapshot(
            elapsed_s=now,
            progress=progress,
            workers=dict(self._workers.infos),
            work=dict(self._workers.work),
            running=running,
            ended=tuple(self._ended),
            idle=self._scheduler.idle_reasons(),
            remaining=self._estimator.remaining(progress.clips - progress.done - progress.failed, now, progress.eta_s),
            clips_per_hour=self._estimator.clips_per_hour(now),
        )
