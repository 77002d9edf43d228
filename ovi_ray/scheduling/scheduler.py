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
                case BreakerChange(): ...  # tell the user what became of a worker
        actions = scheduler.handle(events, now)

One worker runs one task at a time. The same events at the same times give the same actions. Each clip gets exactly one
Finish. Latents are kept (no Drop) until the decode is committed, so a decode that fails never costs a second denoise.
A decode's TaskDone means that the video is committed. Copies of stragglers may both end: the first one counts.

A worker that fails what others finish is taken out for a while, without charging the clips. Its next task is a probe: when
it goes well the worker is back in full, when not it is taken out for longer (`health`).
"""

from collections.abc import Iterable

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, WakeAt
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.dispatcher import Matcher
from ovi_ray.scheduling.events import DataLost, Event, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.job_state import Board, ClipState, Inputs
from ovi_ray.scheduling.policies.base import Policy
from ovi_ray.scheduling.policies.production import Production
from ovi_ray.scheduling.progress import Progress, StageProgress
from ovi_ray.scheduling.retry_tracker import FailureBook
from ovi_ray.scheduling.task import BreakerChange, BreakerReason, BreakerState, FailureKind, Reason, Task
from ovi_ray.scheduling.worker_pool import Fleet, WorkerState
from ovi_ray.scheduling.workload import Workload


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
        config: SchedulerConfig | None = None,
    ) -> None:
        self.workload = workload
        self.config = config or SchedulerConfig()
        self.costs = costs or CostModel(workload.kinds)
        self.board = Board(workload)
        self.fleet = Fleet(self.costs)
        self.failures = FailureBook(max_attempts=self.config.max_attempts, max_crashes=self.config.max_crashes)
        self._out: list[Action] = []
        self.board.out = self._out
        self._matcher = Matcher(self.board, self.fleet, self.failures, policy or Production(), self.config, self._out)
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
            self._let_in_the_rested()
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
                self._worker_joined(event)
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
        if not task.items:
            return
        self.fleet.learn(worker, task.stage, event.seconds)
        if worker.health.works(task.stage):
            self.failures.on_trial.discard(worker.number)
            self._tell(worker.name, BreakerState.CLOSED, BreakerReason.PROBE_DONE)
        for item in task.items:
            self._item_done(task.stage, item, worker)
            if self.failures:
                self._refute(task.stage, item, worker)
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
        charged = bool(event.items) or len(task.items) == 1  # of several nobody knows which one it was
        if event.kind is FailureKind.ERROR and task.items:
            worker.health.fails(task.stage, task.items, event.message)
            charged = charged and not self._take_out_if_sick(worker, task.stage)
        for item in reversed(task.items):
            if item in at_fault:
                self._item_failed(event, item, worker, charged=charged)
            else:
                self._return(task.stage, item)

    def _item_failed(self, event: TaskFailed, item: int, worker: WorkerState, *, charged: bool) -> None:
        stage, failures = event.task.stage, self.failures
        where = (stage, item)
        match event.kind:
            case FailureKind.BAD_INPUT:
                again = not charged
                if again:
                    failures.suspect(where)
            case FailureKind.CANCELLED:
                again = True
            case FailureKind.ERROR:
                again = failures.error(where, worker.number, charged=charged)
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
        task, charged = running.task, True
        if event.crashed and task.items:
            worker.health.fails(task.stage, task.items, f"it died during {task.stage}")
            charged = not self._take_out_if_sick(worker, task.stage)
        for item in reversed(task.items):
            again = True
            if event.crashed and len(task.items) == 1:
                again = self.failures.crash((task.stage, item), worker.number, charged=charged)
            elif event.crashed:
                self.failures.suspect((task.stage, item))
            if again:
                self._matcher.relax_if_avoided_everywhere(task.stage, item, worker.kind)
                self._return(task.stage, item)
            else:
                deaths = (
                    f"{self.config.max_crashes} workers died, one after the other, while each was at its {task.stage}"
                )
                self._give_up(
                    task.stage, item, f"poison: {deaths}; it is left out, so that other clips can be finished"
                )

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
        for place in self.failures.places((stage, item)):
            self.fleet.health(place).absolve(stage, item)
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

    # --- sick workers

    def _worker_joined(self, event: WorkerJoined) -> None:
        worker = self.fleet.join(event)
        self.failures.joined(worker.number, worker.place)
        if worker.health.rest_until_s > self._now:  # the one before it failed too often at this place
            self.fleet.take_out(worker)
        else:
            self._give_work(worker)

    def _give_work(self, worker: WorkerState) -> None:
        if worker.health.trial:
            self.failures.on_trial.add(worker.number)
        self._matcher.worker_joined(worker)

    def _refute(self, stage: Stage, item: int, worker: WorkerState) -> None:
        """A worker finished an item: where it failed before, the place was to blame."""
        for place in sorted(self.failures.places((stage, item)) - {worker.place}):
            self.fleet.health(place).is_refuted(stage)
            other = self.fleet.at(place)
            if other is not None and other.running is None:  # else when its task has ended
                self._take_out_if_sick(other, stage)

    def _take_out_if_sick(self, worker: WorkerState, stage: Stage) -> bool:
        """Give a worker, idle or gone, no tasks for a while. False when it is not sick or nobody else can run the stage."""
        reason = worker.health.verdict()
        if reason is None or not self._others_go_on(worker, stage):
            return False
        rest_s = worker.health.rest(self._now, self.config.rest_s, self.config.longest_rest_s)
        self.failures.excuse(worker.place)
        if worker.number in self.fleet.workers:
            self._matcher.worker_gone(worker)
            self.fleet.take_out(worker)
        self._tell(worker.name, BreakerState.OPEN, reason, rest_s=rest_s, last_failure=worker.health.last_failure)
        self._out.append(WakeAt(time=worker.health.rest_until_s))
        return True

    def _others_go_on(self, worker: WorkerState, stage: Stage) -> bool:
        """Whether another worker, one that is not on trial itself, can run the stage."""
        return any(
            other.number != worker.number
            and not other.health.trial
            and self.fleet.fits(other.device, stage, worker.kind)
            for other in self.fleet.workers.values()
        )

    def _let_in_the_rested(self) -> None:
        for worker in [w for w in self.fleet.resting.values() if w.rest_until_s <= self._now]:
            self.fleet.let_in(worker)
            self._give_work(worker)
            self._tell(worker.name, BreakerState.HALF_OPEN, BreakerReason.RESTED)

    def _tell(
        self, worker: str, state: BreakerState, reason: BreakerReason, *, rest_s: float = 0.0, last_failure: str = ""
    ) -> None:
        change = BreakerChange(worker=worker, state=state, reason=reason, rest_s=rest_s, last_failure=last_failure)
        self._out.append(change)

    # --- when nothing can go on

    def _unstick(self) -> None:
        """Nothing runs although clips are left: let items go back to workers they avoided, then give up what fits nowhere."""
        if self.fleet.busy or self.done:
            self._stuck_since = None
            return
        if self.fleet.workers and self.failures.relax() and self._matcher.match(self._now):
            return
        if self.fleet.resting:
            self._out.append(WakeAt(time=min(worker.rest_until_s for worker in self.fleet.resting.values())))
            return
        if not self.fleet.workers:
            self._stuck_since = None
            return
        if self._stuck_since is None:
            self._stuck_since = self._now
        if self._now < self._stuck_since + self.config.patience_s:
            self._out.append(WakeAt(time=self._stuck_since + self.config.patience_s))
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
            workers=len(self.fleet.workers) + len(self.fleet.resting),
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
        resting = {worker.name: Reason.RESTING for worker in self.fleet.resting.values()}
        return self._matcher.idle_reasons() | resting
