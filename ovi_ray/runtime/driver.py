"""Runs a job: events go from the executor to the scheduler, the scheduler's actions back to the executor.

The driver itself decides nothing of what runs where. It keeps what is known of each clip, writes its row when it ends, holds
back what storage failed until that is mended, and winds the job down when it is asked to stop.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ovi.stages import Stage
from ovi_ray.errors import JobStopped, WorkersLost
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Cause, Report, WorkerInfo
from ovi_ray.protocol.progress import ClipEnded, JobSnapshot, Observer, RunningTask, WorkerTime
from ovi_ray.runtime.clip_records import ClipFacts
from ovi_ray.runtime.device_profiles import device_profile
from ovi_ray.runtime.executor import Outcome, WorkerReplaced, WorkerStarted
from ovi_ray.runtime.ray_executor import Executor
from ovi_ray.runtime.requests import TaskOrders
from ovi_ray.runtime.shutdown import Stop
from ovi_ray.runtime.storage_pause import StoragePause
from ovi_ray.scheduling.actions import Action, Cancel, Drop, Finish, RunTask, WakeAt
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import DataLost, Event, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import BreakerChange, BreakerReason, BreakerState, ClipStatus, DataKey, DataKind, Task

POLL_S = 0.5
SHOW_S = 0.5
PATIENCE_S = 60.0  # workers start one by one: a stage that fits on none of the first may fit on the next

Explain = Callable[[float, Action], None]
Tell = Callable[[str], None]


class Driver:
    """One run of a plan. `run` returns when every clip has ended."""

    def __init__(
        self,
        plan: TaskTable,
        executor: Executor,
        ledger: Results,
        *,
        dtype: str,
        keep: Intermediates | None = None,
        stop: Stop | None = None,
        tell: Tell = lambda text: None,
        observer: Observer | None = None,
        explain: Explain | None = None,
        config: SchedulerConfig | None = None,
    ) -> None:
        """`tell` gets what the user should know; `observer` gets snapshots of the job, `explain` every decision."""
        self._plan = plan
        self._executor = executor
        self._ledger = ledger
        self._dtype = dtype
        self._keep = keep or Intermediates(output_dir=ledger.output_dir)
        self._stop = stop or Stop()
        self._tell = tell
        self._observer = observer
        self._explain = explain
        self._orders = TaskOrders(plan=plan, ledger=ledger, keep=self._keep, dtype=dtype)
        self._pause = StoragePause(ledger.output_dir, tell)
        workload = workload_of(plan, self._keep.with_latents())
        self._scheduler = Scheduler(workload, config=config or SchedulerConfig(patience_s=PATIENCE_S))
        self._infos: dict[str, WorkerInfo] = {}
        self._joined_at: dict[str, float] = {}
        self._times: dict[str, WorkerTime] = {}
        self._running: dict[str, Task] = {}
        self._facts = ClipFacts(plan, dtype)
        self._ended: list[ClipEnded] = []
        self._wake_at = float("inf")
        self._started = time.monotonic()
        self._shown_at = -SHOW_S
        self._alone_since = 0.0

    def run(self) -> None:
        """Render every clip of the plan; what is finished is in the ledger however this ends.

        Raises WorkersLost when no worker is left and none comes back, and JobStopped when it was asked to stop.
        """
        try:
            with self._stop.watched():
                self._to_the_end()
        finally:
            self._close()

    def _to_the_end(self) -> None:
        self._handle([])
        while not (self._scheduler.done and self._rows_are_written()):
            if self._stop.is_asked:
                self._wind_down()
            self._turn()
            self._tell_of_waiting()
            if self._executor.is_empty and not self._scheduler.done:
                raise WorkersLost(f"no worker is left, and none starts: {self._executor.last_death}")

    def progress(self) -> Progress:
        """How far the job is."""
        return self._scheduler.progress()

    def worker_times(self) -> tuple[WorkerTime, ...]:
        """What each worker did with its time so far, those that were lost too."""
        for worker, joined_at in self._joined_at.items():
            self._times[worker].held_s = self._now() - joined_at
        return tuple(self._times.values())

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _turn(self, *, starts_tasks: bool = True) -> None:
        """Hear what has happened and act on it."""
        self._handle(self._next_events(), starts_tasks=starts_tasks)
        try:
            self._ledger.flush_if_due()
        except OSError as error:
            self._pause.note(error.strerror or str(error), self._now())
        self._show()

    def _tell_of_waiting(self) -> None:
        """Once, when there has been no worker for a while: Ray may have no room for one, or still be starting it."""
        if self._joined_at:
            self._alone_since = self._now()
        elif self._now() >= self._alone_since + PATIENCE_S:
            self._alone_since = float("inf")
            self._tell(
                f"no worker for {PATIENCE_S:.0f} s: the job waits until Ray can start one (`ray status` tells what it has)"
            )

    # -- ending ----------------------------------------------------------------------------------------------------

    def _wind_down(self) -> NoReturn:
        """Finish or save what is running, start nothing. Raises JobStopped."""
        self._tell(
            f"stopping ({self._stop.reason}): what is running is finished or saved first; again, and it stops now"
        )
        for worker, task in self._running.items():
            if task.stage is Stage.DENOISE and task.items:
                self._executor.stop(worker, task, save=True)
        while self._holds_work() and time.monotonic() < self._stop.deadline and not self._executor.is_empty:
            self._turn(starts_tasks=False)
        raise JobStopped(f"stopped ({self._stop.reason})")

    def _holds_work(self) -> bool:
        """Whether a worker is at something that would be a loss to end; an encode is quickly done again."""
        return any(task.items and task.stage in (Stage.DENOISE, Stage.DECODE) for task in self._running.values())

    def _rows_are_written(self) -> bool:
        try:
            self._ledger.flush()
        except OSError as error:
            self._pause.note(error.strerror or str(error), self._now())
            time.sleep(POLL_S)
            return False
        return True

    def _close(self) -> None:
        try:
            self._ledger.close()
        except OSError as error:
            self._tell(f"rows of finished clips cannot be written ({error}): the next run makes them from the videos")

    # -- events ----------------------------------------------------------------------------------------------------

    def _next_events(self) -> list[Event]:
        happened = self._executor.poll(max(0.0, min(POLL_S, self._wake_at - self._now())))
        events: list[Event] = []
        for item in happened:
            match item:
                case Outcome():
                    events += self._note(item)
                case WorkerStarted(worker=worker, info=info):
                    events.append(self._join(worker, info))
                case WorkerReplaced():
                    self._tell(str(item))
        events += self._pause.release(self._now())
        if self._now() >= self._wake_at:
            self._wake_at = float("inf")
            events.append(Tick())
        return events

    def _join(self, worker: str, info: WorkerInfo) -> Event:
        self._infos[worker] = info
        self._joined_at[worker] = self._now()
        self._times[worker] = WorkerTime(worker=worker, node=info.node, device=info.device)
        return WorkerJoined(worker=worker, slot=worker.partition(".")[0], device=device_profile(info, self._dtype))

    def _note(self, outcome: Outcome) -> list[Event]:
        """Remember what an end of a task says of its clip; gives what the scheduler is to know of it now."""
        event, report = outcome.event, outcome.report
        match event:
            case TaskDone(worker=worker, task=task) | TaskFailed(worker=worker, task=task):
                self._running.pop(worker, None)
                if report is not None:
                    self._note_report(worker, task, report)
                if isinstance(event, TaskDone) and report is not None:
                    self._note_done(task, worker, report)
                elif report is not None and report.failure is not None:
                    self._facts.failed(task, report.failure)
                    return self._judged(event, worker, task, report)
            case WorkerLost(worker=worker):
                self._running.pop(worker, None)
                self._pause.lost(worker)
                self._times[worker].held_s = self._now() - self._joined_at.pop(worker)
        return [event]

    def _note_report(self, worker: str, task: Task, report: Report) -> None:
        self._times[worker].add(task.stage, report.seconds, report.load_seconds)
        for note in report.notes:
            self._tell(note)
        if report.storage_error:
            self._pause.note(report.storage_error, self._now())

    def _judged(self, event: Event, worker: str, task: Task, report: Report) -> list[Event]:
        """What the scheduler is to know of a failure, now or when storage is back."""
        failure = report.failure
        if failure is None or failure.cause is Cause.TASK:
            return [event]
        if failure.cause is Cause.STORAGE:
            self._pause.hold(event, worker, failure.message, self._now())
            return []
        self._tell(f"{failure.message}; the clip is denoised again")
        with suppress(OSError):  # storage out of reach: the worker that denoises it finds them broken, and says so
            self._keep.latents_path(self._clip_id(task)).unlink(missing_ok=True)
        return [event, DataLost(key=DataKey(kind=DataKind.LATENTS, number=task.items[0]))]

    def _note_done(self, task: Task, worker: str, report: Report) -> None:
        self._pause.worked(worker)
        self._facts.done(task, worker, self._infos[worker], report)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _handle(self, events: list[Event], *, starts_tasks: bool = True) -> None:
        for action in self._scheduler.handle(events, self._now()):
            if self._explain is not None:
                self._explain(self._now(), action)
            match action:
                case RunTask() if starts_tasks:
                    self._run_task(action)
                case Cancel(worker=worker, task=task):
                    self._executor.stop(worker, task)
                case Drop(key=key):
                    self._executor.drop(key)
                case Finish():
                    self._finish(action)
                case WakeAt(time=at):
                    self._wake_at = at
                case BreakerChange():
                    self._tell_health(action)

    def _tell_health(self, change: BreakerChange) -> None:
        """A worker is out or back; that it was tried in vain again and again is for `explain` alone."""
        if change.state is BreakerState.HALF_OPEN or change.reason is BreakerReason.PROBE_FAILED:
            return
        info = self._infos[change.worker]
        self._tell(f"{change} ({info.device} on {info.node})")

    def _run_task(self, action: RunTask) -> None:
        task = action.task
        has_latents = bool(task.items) and self._executor.holds(DataKey(kind=DataKind.LATENTS, number=task.items[0]))
        order = self._orders.order(task, self._facts.started(task), has_latents=has_latents)
        self._running[action.worker] = task
        self._executor.run(
            action.worker,
            task,
            order.work,
            model_name=action.model_name,
            components=action.components,
            inputs=order.inputs,
            outputs=order.outputs,
        )

    def _finish(self, action: Finish) -> None:
        clip = self._plan.clip(action.clip)
        row = self._facts.row(clip, action)
        try:
            self._ledger.append(row)
        except OSError as error:
            self._pause.note(error.strerror or str(error), self._now())
        if action.status is ClipStatus.DONE:
            self._keep.remove_committed(clip.clip_id)
        if self._observer is not None:
            ended = {"clip_id": clip.clip_id, "row": clip.row, "video_path": row["video_path"]}
            self._ended.append(ClipEnded(**ended, status=action.status, error=action.error))

    # -- display ---------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self._observer is None or (self._now() < self._shown_at + SHOW_S and not self._scheduler.done):
            return
        self._shown_at = self._now()
        activities = self._executor.activities()
        running = {
            worker: RunningTask(task=task, clip_id=self._clip_id(task), activity=activities.get(worker))
            for worker, task in self._running.items()
        }
        snapshot = JobSnapshot(
            elapsed_s=self._now(),
            progress=self.progress(),
            workers=dict(self._infos),
            running=running,
            ended=tuple(self._ended),
        )
        self._ended.clear()
        self._observer(snapshot)

    def _clip_id(self, task: Task) -> str:
        if task.stage in (Stage.DENOISE, Stage.DECODE) and task.items:
            return str(self._plan.clips.column("clip_id")[task.items[0]])
        return ""
