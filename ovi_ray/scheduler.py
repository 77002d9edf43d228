"""The cluster's scheduler: a state machine without clock, randomness or I/O. Events and the time go in, actions come out.

    scheduler = Scheduler(workload)
    actions = scheduler.handle([WorkerJoined(worker="w0", device=profile)], now=0.0)
    while not scheduler.done:
        for action in actions:
            match action:
                case RunTask():  ...   # give action.task to action.worker; answers with TaskDone or TaskFailed
                case Cancel():   ...   # stop it if that is cheap; the worker still answers
                case Drop():     ...   # release action.key from the object store
                case Finish():   ...   # write the clip's row
                case WakeAt():   ...   # send Tick() at that time if nothing happens before
        actions = scheduler.handle(events, now)

One worker runs one task at a time. The same events at the same times give the same actions. Each clip gets exactly one
Finish. Latents are kept (no Drop) until the decode is committed, so a decode that fails never costs a second denoise.
A decode's TaskDone means that the video is committed. Copies of stragglers may both end: the first one counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ovi.stages import Stage
from ovi_ray.board import Board, ClipState, Inputs
from ovi_ray.costs import CostModel
from ovi_ray.events import (
    Action,
    DataLost,
    Event,
    FailureKind,
    Reason,
    Task,
    TaskDone,
    TaskFailed,
    Tick,
    WakeAt,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.failures import FailureBook
from ovi_ray.fleet import Fleet, WorkerState
from ovi_ray.limits import Limits
from ovi_ray.matching import Matcher
from ovi_ray.policies import Policy, Production
from ovi_ray.workload import Workload


@dataclass(kw_only=True, slots=True, frozen=True)
class StageProgress:
    """How far one stage is."""

    done: int
    running: int
    ready: int
    """Could start now, were a device free."""
    total: int


@dataclass(kw_only=True, slots=True, frozen=True)
class Progress:
    """How far a job is, for display."""

    clips: int
    done: int
    failed: int
    stages: dict[Stage, StageProgress]
    eta_s: float | None
    """Seconds until the end, as expected now; None while it cannot be told."""
    workers: int
    busy: int


class Scheduler:
    """Decides what runs where. See the module's example.

    Raises ValueError from `handle` for events that cannot be: a worker that joins twice, time that runs backwards.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        costs: CostModel | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.workload = workload
        self.limits = limits or Limits()
        self.costs = costs or CostModel(workload.kinds)
        self.board = Board(workload)
        self.fleet = Fleet(self.costs)
        self.failures = FailureBook(max_attempts=self.limits.max_attempts, max_crashes=self.limits.max_crashes)
        self._out: list[Action] = []
        self.board.out = self._out
        self._matcher = Matcher(self.board, self.fleet, self.failures, policy or Production(), self.limits, self._out)
        self._now = float("-inf")
        self._stuck_since: float | None = None

    @property
    def done(self) -> bool:
        """Every clip has ended. Workers may still be busy with copies or preloads."""
        return self.board.ended == self.workload.clips

    def handle(self, events: Iterable[Event], now: float) -> list[Action]:
        """Take note of what happened until `now` (seconds, any origin) and say what to do."""
        if now < self._now:
            raise ValueError(f"time runs backwards: {now} after {self._now}")
        self._now = now
        for event in events:
            self._take(event)
        if not self.done:
            self._matcher.match(now)
            self._unstick()
        actions = list(self._out)
        self._out.clear()
        return actions

    def _take(self, event: Event) -> None:
        match event:
            case TaskDone():
                self._task_done(event)
            case TaskFailed():
                self._task_failed(event)
            case WorkerJoined():
                self._matcher.worker_joined(self.fleet.join(event))
            case WorkerLost():
                self._worker_lost(event)
            case DataLost():
                self.board.lost(event.key)
            case Tick():
                self._matcher.time_passed()

    # --- ends of tasks

    def _end(self, name: str, task: Task) -> WorkerState | None:
        """The worker, free again; None for an answer that no longer counts (from a worker that was given up)."""
        worker = self.fleet.named(name)
        if worker is None or worker.running is None or worker.running.task != task:
            return None
        self._matcher.worker_free(worker)
        return worker

    def _task_done(self, event: TaskDone) -> None:
        worker = self._end(event.worker, event.task)
        if worker is None:
            return
        task = event.task
        self.costs.observe_load(worker.device, worker.load_s, event.load_seconds)
        worker.failed_items.clear()
        worker.rests = 0
        if not task.items:
            return
        self.fleet.learn(worker, task.stage, event.seconds)
        for item in task.items:
            self._item_done(task.stage, item, worker)
            if self.failures:
                self.failures.clear((task.stage, item))

    def _item_done(self, stage: Stage, item: int, worker: WorkerState) -> None:
        board = self.board
        if stage is Stage.ENCODE_TEXT:
            board.input_encoded(board.texts, item)
        elif stage is Stage.ENCODE_FIRST_FRAME:
            board.input_encoded(board.frames, item)
        elif stage is Stage.DENOISE and board.state[item] == ClipState.DENOISING:
            self._matcher.stragglers.cancel(stage, item, Reason.SUPERSEDED)
            board.denoised(item)
        elif stage is Stage.DECODE and board.state[item] == ClipState.DECODING:
            worker.decodes += 1
            board.decoded(item)

    def _task_failed(self, event: TaskFailed) -> None:
        worker = self._end(event.worker, event.task)
        if worker is None:
            return
        task = event.task
        worker.preload_failed = not task.items  # else it would be tried again at once
        at_fault = set(event.items or task.items)
        if event.kind is FailureKind.ERROR and task.items:
            self._matcher.blame(worker, task, self._now)
        for item in reversed(task.items):
            if item in at_fault:
                self._item_failed(event, item, worker)
            else:
                self._return(task.stage, item)

    def _item_failed(self, event: TaskFailed, item: int, worker: WorkerState) -> None:
        stage, failures = event.task.stage, self.failures
        where = (stage, item)
        match event.kind:
            case FailureKind.BAD_INPUT:
                again = False
            case FailureKind.CANCELLED:
                again = True
            case FailureKind.ERROR:
                again = failures.error(where, worker.number)
            case FailureKind.OUT_OF_MEMORY:
                again = failures.out_of_memory(where, worker.number, self.costs.profiles[worker.device].memory_gb)
        if again:
            self._matcher.relax_if_avoided_everywhere(stage, item, worker.kind)
            self._return(stage, item)
        else:
            self._give_up(stage, item, event.message or f"{stage} failed: {event.kind}")

    def _worker_lost(self, event: WorkerLost) -> None:
        worker = self.fleet.named(event.worker)
        if worker is None:
            return
        running = worker.running
        self._matcher.worker_gone(worker)
        self.fleet.leave(event.worker)
        if running is None:
            return
        task = running.task
        for item in reversed(task.items):
            again = True
            if event.crashed and len(task.items) == 1:
                again = self.failures.crash((task.stage, item), worker.number)
            elif event.crashed:
                self.failures.shared_crash((task.stage, item))
            if again:
                self._return(task.stage, item)
            else:
                message = f"poison: {self.limits.max_crashes} workers died during its {task.stage}"
                self._give_up(task.stage, item, message)

    def _return(self, stage: Stage, item: int) -> None:
        """The item is to be done again, unless a copy of it still runs."""
        board = self.board
        if stage is Stage.ENCODE_TEXT:
            board.input_returned(board.texts, item)
        elif stage is Stage.ENCODE_FIRST_FRAME:
            board.input_returned(board.frames, item)
        elif stage is Stage.DENOISE:
            if board.state[item] == ClipState.DENOISING and not self._matcher.stragglers.still_running(stage, item):
                board.denoise_returned(item)
        elif board.state[item] == ClipState.DECODING:
            board.decode_returned(item)

    def _give_up(self, stage: Stage, item: int, message: str) -> None:
        """The item can never be done: what needs it ends failed."""
        self.failures.clear((stage, item))
        inputs = self._inputs(stage)
        if inputs is not None:
            self.board.input_bad(inputs, item, message)
        elif self.board.state[item] == (ClipState.DENOISING if stage is Stage.DENOISE else ClipState.DECODING):
            self._matcher.stragglers.cancel(stage, item, Reason.CLIP_ENDED)
            self.board.fail(item, message)

    def _inputs(self, stage: Stage) -> Inputs | None:
        if stage is Stage.ENCODE_TEXT:
            return self.board.texts
        return self.board.frames if stage is Stage.ENCODE_FIRST_FRAME else None

    # --- when nothing can go on

    def _unstick(self) -> None:
        """Nothing runs although clips are left: let items go back to workers they avoided, then give up what fits nowhere."""
        if self.fleet.busy or not self.fleet.workers or self.done:
            self._stuck_since = None
            return
        resting = [w.rest_until_s for w in self.fleet.workers.values() if w.rest_until_s > self._now]
        if resting:
            self._out.append(WakeAt(time=min(resting)))
            return
        if self.failures.relax() and self._matcher.match(self._now):
            return
        if self._stuck_since is None:
            self._stuck_since = self._now
        if self._now < self._stuck_since + self.limits.patience_s:
            self._out.append(WakeAt(time=self._stuck_since + self.limits.patience_s))
            return
        self._fail_what_fits_nowhere()

    def _fail_what_fits_nowhere(self) -> None:
        for kind in range(len(self.workload.kinds)):
            missing = self.fleet.missing_stages(kind)
            if missing:
                message = self.fleet.why_nowhere(missing[0], kind)
                self.board.fail_kind(kind, message, latents_too=Stage.DECODE in missing)

    # --- for display

    def progress(self) -> Progress:
        """How far the job is."""
        return Progress(
            clips=self.workload.clips,
            done=self.board.ended - self.board.failed,
            failed=self.board.failed,
            stages={stage: self._stage_progress(stage) for stage in Stage},
            eta_s=self._matcher.eta(self._now),
            workers=len(self.fleet.workers),
            busy=self.fleet.busy,
        )

    def _stage_progress(self, stage: Stage) -> StageProgress:
        board, totals = self.board, self.board.totals
        inputs = self._inputs(stage)
        if inputs is not None:
            total = len(inputs.state)
            ready = len(board.text_queue) if stage is Stage.ENCODE_TEXT else sum(map(len, board.frame_queue))
            return StageProgress(done=inputs.encoded, running=inputs.running, ready=ready, total=total)
        waiting, running = ClipState.READY, ClipState.DENOISING
        done = totals[ClipState.LATENTS] + totals[ClipState.DECODING] + totals[ClipState.DONE]
        if stage is Stage.DECODE:
            waiting, running, done = ClipState.LATENTS, ClipState.DECODING, totals[ClipState.DONE]
        return StageProgress(done=done, running=totals[running], ready=totals[waiting], total=self.workload.clips)

    def idle_reasons(self) -> dict[str, Reason]:
        """Why each idle worker waits."""
        return self._matcher.idle_reasons()
