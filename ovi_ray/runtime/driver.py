"""The event loop of a job: executor events go into the scheduler, the scheduler's actions go to the executor.

The driver decides nothing about placement. Its helpers keep track of clips (`clip_records`) and workers (`worker_records`),
interpret how tasks ended (`task_outcomes`), write rows (`result_writer`) and wait for storage (`storage_pause`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from ovi.stages import CLIP_STAGES
from ovi_ray.errors import HeadLost, JobStopped, OviRayError, WorkersLost, WorkersUnplaceable
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, RunEnded, RunStarted
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.runtime.clip_records import ClipRecords
from ovi_ray.runtime.clock import Clock, SystemClock
from ovi_ray.runtime.device_profiles import device_profile
from ovi_ray.runtime.executor import (
    Executor,
    ExecutorEvent,
    HeadSilent,
    NodeRefused,
    SlotsUnplaceable,
    TaskEnded,
    WorkerReplaced,
    WorkerStarted,
    WorkerStarting,
)
from ovi_ray.runtime.progress_reporter import ProgressReporter
from ovi_ray.runtime.requests import RequestBuilder
from ovi_ray.runtime.result_writer import ResultWriter, write_rows
from ovi_ray.runtime.shutdown import StopRequest
from ovi_ray.runtime.storage_pause import StoragePause, StoragePauseConfig
from ovi_ray.runtime.task_outcomes import TaskOutcomes
from ovi_ray.runtime.wake_ups import WakeUps
from ovi_ray.runtime.worker_records import WorkerRecords
from ovi_ray.scheduling.actions import Action, Cancel, Drop, Finish, RunTask, WakeAt
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import (
    DeviceFree,
    Event,
    SlotClosed,
    StepsTimed,
    Tick,
    WorkerExpected,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import BreakerChange, BreakerReason, BreakerState, Task

PATIENCE_S = 60.0


@dataclass(kw_only=True, slots=True, frozen=True)
class DriverConfig:
    """Intervals and bounds of the driver's loop. Raises ValueError for one that is out of range."""

    poll_interval_s: float = 0.5
    """Longest wait for an executor event."""
    progress_interval_s: float = 0.5
    """Seconds between two snapshots for the observer."""
    no_worker_warning_s: float = PATIENCE_S
    """Seconds without any worker after which the user is told once."""
    storage: StoragePauseConfig = field(default_factory=StoragePauseConfig)
    scheduler: SchedulerConfig = field(default_factory=lambda: SchedulerConfig(patience_s=PATIENCE_S))
    """Workers start one by one, hence the patience: a stage that fits on none of the first may fit on the next."""

    def __post_init__(self) -> None:
        for name in ("poll_interval_s", "progress_interval_s", "no_worker_warning_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")


class Driver:
    """One run of a task table."""

    def __init__(
        self,
        tasks: TaskTable,
        executor: Executor,
        results: Results,
        *,
        dtype: str,
        intermediates: Intermediates | None = None,
        stop: StopRequest | None = None,
        observer: JobObserver | None = None,
        config: DriverConfig | None = None,
        clock: Clock | None = None,
        token: str = "",
    ) -> None:
        """`token` is that of the output folder; "" accepts any folder that is there."""
        self._tasks = tasks
        self._executor = executor
        self._stop = stop or StopRequest()
        self._observer = observer or JobObserver()
        self._config = config or DriverConfig()
        self._clock = clock or SystemClock()
        self._started_at = self._clock.now()
        self._last_worker_at = 0.0
        self._unplaceable: list[SlotsUnplaceable] = []
        self._head_silent: HeadSilent | None = None
        self.seconds = 0.0
        """Duration of the run, once it has ended; every record of the run has this number."""
        intermediates = intermediates or Intermediates(output_dir=results.output_dir)
        message = self._observer.message
        self._workload = workload_of(tasks, intermediates.with_latents())
        self._scheduler = Scheduler(self._workload, config=self._config.scheduler)
        self._wake_ups = WakeUps()
        self._workers = WorkerRecords()
        self._clips = ClipRecords(tasks, dtype)
        self._dtype = dtype
        self._pause = StoragePause(
            results.output_dir,
            message,
            self._config.storage,
            token=token,
            write_rows=lambda: write_rows(results),
            on_begin=self._observer.paused,
            on_end=self._observer.resumed,
        )
        self._outcomes = TaskOutcomes(
            clips=self._clips,
            workers=self._workers,
            intermediates=intermediates,
            pause=self._pause,
            clip_id=self._clip_id,
            message=message,
        )
        self._results = ResultWriter(
            tasks=tasks,
            results=results,
            intermediates=intermediates,
            clips=self._clips,
            pause=self._pause,
            message=message,
        )
        self._requests = RequestBuilder(
            tasks=tasks, results=results, intermediates=intermediates, dtype=dtype, holds=executor.holds
        )
        self._reporter = ProgressReporter(
            self._observer,
            scheduler=self._scheduler,
            executor=executor,
            workers=self._workers,
            clip_id=self._clip_id,
            interval_s=self._config.progress_interval_s,
        )

    def run(self) -> None:
        """Render every clip of the table. However it ends, the rows of finished clips are written.

        Raises WorkersLost when no worker is left and none can be started, WorkersUnplaceable when no node has a place for any
        worker of a stage that clips need and nothing else is left to do, HeadLost when the cluster's head was silent too long,
        OutputGone when the output folder was removed or replaced, and JobStopped when it was asked to stop.
        """
        clip_ids = self._tasks.clips.column("clip_id").combine_chunks()
        varied = (lambda clip: self._tasks.clip(clip).varied) if self._tasks.is_swept else None
        self._observer.started(
            RunStarted(workload=self._workload, config=self._config.scheduler, clip_ids=clip_ids, varied=varied)
        )
        error: BaseException | None = None
        try:
            with self._stop.watched():
                self._run_to_completion()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._results.close()
            self._report_end(error)

    def progress(self) -> Progress:
        """Progress of the job."""
        return self._scheduler.progress()

    def worker_times(self) -> tuple[WorkerTime, ...]:
        """Time spent by each worker so far, lost ones included."""
        return self._workers.times(self._now())

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run_to_completion(self) -> None:
        self._cycle([])
        while not (self._scheduler.done and self._write_rows()):
            if self._stop.is_asked:
                self._wind_down()
            self._step()
            self._warn_without_workers()
            if not self._scheduler.done and not self._stop.is_asked:
                self._check_workers()

    def _check_workers(self) -> None:
        """Raises WorkersLost and WorkersUnplaceable, see `run`."""
        unserved = self._scheduler.unserved_stages
        for slots in self._unplaceable:
            if stages := [stage for stage in unserved if stage in slots.stages]:
                raise WorkersUnplaceable(f"no worker can {' or '.join(stages)}: {slots}")
        if self._executor.is_empty:
            if self._unplaceable and not self._workers.infos:
                raise WorkersUnplaceable("; ".join(str(slots) for slots in self._unplaceable))
            raise WorkersLost(f"no worker is left and none can be started: {self._executor.last_death}")

    def _step(self, *, stopping: bool = False) -> None:
        """Wait for events, let the scheduler react, carry out its actions."""
        self._executor.need(self._scheduler.unfinished)
        self._cycle(self._next_events(), stopping=stopping)
        self._results.flush_if_due(self._now())
        self._reporter.report_if_due(self._now())

    def _next_events(self) -> list[Event]:
        timeout_s = min(self._config.poll_interval_s, self._wake_ups.delay(self._now()))
        events: list[Event] = []
        for event in self._executor.poll(timeout_s):
            events += self._scheduler_events(event)
        events += self._steps_timed()
        events += self._pause.release(self._now())
        if self._wake_ups.take_due(self._now()):
            events.append(Tick())
        return events

    def _cycle(self, events: Sequence[Event], *, stopping: bool = False) -> None:
        now = self._now()
        actions = self._scheduler.handle(events, now)
        cycle = Cycle(now=now, events=tuple(events), actions=tuple(actions), stopping=stopping)
        self._observer.cycle(cycle)
        for action in cycle.carried_out:
            self._carry_out(action)

    def _now(self) -> float:
        return self._clock.now() - self._started_at

    # -- executor events -------------------------------------------------------------------------------------------

    def _scheduler_events(self, event: ExecutorEvent) -> list[Event]:
        match event:
            case TaskEnded():
                return self._outcomes.events(event, self._now())
            case DeviceFree(worker=worker, task=task):
                self._workers.device_free(worker, task)
                return [event]
            case WorkerStarted(worker=worker, slot=slot, info=info):
                return [self._join(worker, slot, info)]
            case WorkerStarting(slot=slot):
                return [WorkerExpected(slot=slot)]
            case NodeRefused():
                self._observer.message(str(event))
                return []
            case SlotsUnplaceable(slots=slots):
                self._unplaceable.append(event)
                self._observer.message(str(event))
                return [SlotClosed(slot=slot) for slot in slots]
            case HeadSilent(what=what, save_s=save_s):
                self._head_silent = event
                self._stop.ask(what, save_s)
                return []
            case WorkerReplaced(slot=slot, successor=successor):
                if not event.is_told:
                    self._observer.message(str(event))
                return [WorkerExpected(slot=slot) if successor else SlotClosed(slot=slot)]
            case WorkerLost(worker=worker):
                self._workers.lost(worker, self._now())
                self._pause.worker_lost(worker)
                return [event]
            case _:
                return [event]

    def _steps_timed(self) -> list[StepsTimed]:
        """Events with the expected seconds of each worker's first denoise, one as soon as its first steps were timed."""
        untimed = self._workers.untimed()
        activities = self._executor.activities() if untimed else {}
        events = []
        for worker, task in untimed:
            activity = activities.get(worker)
            if activity is not None and activity.step_s > 0:
                self._workers.steps_timed(worker)
                events.append(StepsTimed(worker=worker, task=task, seconds=activity.step_s * activity.total))
        return events

    def _join(self, worker: str, slot: str, info: WorkerInfo) -> WorkerJoined:
        self._workers.joined(worker, info, self._now())
        self._observer.worker_started(worker, slot, info)
        node = (info.node_id or info.node) if info.shares_denoises else ""
        return WorkerJoined(worker=worker, slot=slot, device=device_profile(info, self._dtype), node=node)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _carry_out(self, action: Action) -> None:
        match action:
            case RunTask(worker=worker, task=task):
                submission = self._requests.build(action, self._clips.started(task))
                self._workers.started(worker, task)
                self._executor.submit(submission)
            case Cancel(worker=worker, task=task):
                self._executor.stop(worker, task)
            case Drop(key=key):
                self._executor.drop(key)
            case Finish():
                self._reporter.clip_ended(self._results.finish(action, self._now()), self._now())
            case WakeAt(time=time):
                self._wake_ups.add(time)
            case BreakerChange():
                self._report_breaker(action)

    def _report_breaker(self, change: BreakerChange) -> None:
        """Tell the user when a worker is taken out and when it is back; failed probes are left to `--explain`."""
        if change.state is BreakerState.HALF_OPEN or change.reason is BreakerReason.PROBE_FAILED:
            return
        info = self._workers.infos[change.worker]
        self._observer.message(f"{change} ({info.device} on {info.node})")

    # -- the end ---------------------------------------------------------------------------------------------------

    def _wind_down(self) -> NoReturn:
        """Finish or save what is running and start nothing. Raises JobStopped, and HeadLost."""
        reason = self._stop.reason
        hint = "" if self._head_silent else "; repeat the signal to stop at once"
        self._observer.message(f"stopping ({reason}): running tasks are finished or saved first{hint}")
        for worker, task in self._workers.denoising():
            self._executor.stop(worker, task, save=True)
        while self._workers.has_unsaved_work and not self._stop.is_overdue and not self._executor.is_empty:
            self._step(stopping=True)
        raise self._stopped(reason)

    def _stopped(self, reason: str) -> OviRayError:
        if self._head_silent is None:
            return JobStopped(f"stopped ({reason})")
        return HeadLost(
            f"{self._head_silent.what}; finished clips are kept, and so is what was saved of unfinished ones"
        )

    def _write_rows(self) -> bool:
        if self._results.flush(self._now()):
            return True
        self._clock.sleep(self._config.poll_interval_s)
        return False

    def _warn_without_workers(self) -> None:
        """Warn once after a while without a worker that can go on: Ray may have no room for one, or still be starting it."""
        warn_after_s, awaited = self._config.no_worker_warning_s, self._scheduler.awaited_slots
        if self._workers.any_alive and not awaited:
            self._last_worker_at = self._now()
        elif self._now() >= self._last_worker_at + warn_after_s:
            self._last_worker_at = float("inf")
            self._observer.message(
                f"no worker for {warn_after_s:.0f} s: the job waits until Ray can start one; see `ray status`"
                if not awaited
                else f"no worker that can go on for {warn_after_s:.0f} s: the job waits for the start of one in"
                f" {', '.join(awaited)}; see `ray status`"
            )

    def _report_end(self, error: BaseException | None) -> None:
        progress = self._scheduler.progress()
        reason = "" if error is None else str(error) or type(error).__name__
        self.seconds = self._now()
        self._observer.ended(RunEnded(now=self.seconds, done=progress.done, failed=progress.failed, error=reason))

    def _clip_id(self, task: Task) -> str:
        """Id of the clip that a task belongs to; empty if it belongs to none or several."""
        if task.stage in CLIP_STAGES and task.items:
            return str(self._tasks.clips.column("clip_id")[task.items[0]])
        return ""
