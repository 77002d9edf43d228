"""The cluster's scheduler: a state machine without clock, randomness or I/O. Events and the time go in, actions come out.

    scheduler = Scheduler(workload)
    actions = scheduler.handle([WorkerJoined(worker="w0", device=profile)], now=0.0)
    while not scheduler.done:
        for action in actions:
            match action:
                case RunTask():  ...   # give action.task to action.worker; it answers with TaskDone or TaskFailed
                case Cancel():   ...   # stop it if that is cheap; the worker still answers
                case Drop():     ...   # release action.key from the object store
                case Finish():   ...   # write the clip's row
                case WakeAt():   ...   # send Tick() at that time
                case BreakerChange(): ...  # inform the user
        actions = scheduler.handle(events, now)

One worker runs one task at a time, and may run the next one while it writes the file of the one before (DeviceFree). The
same events at the same times give the same actions. Each clip gets exactly one Finish. Latents are kept (no Drop) until the
decode is committed, so a failed decode never costs a second denoise.
A decode's TaskDone means that the video is committed. Of a task and its speculative copy, the first result counts.
A task that assists (Task.assists) makes nothing: whatever becomes of it, the denoise of its leader goes on.

A device that fails tasks which others finish is taken off their stage for a while, and its failures are not counted against the
clips (circuit_breaker.py). README.md draws the states and the flow of one `handle`.
"""

from collections.abc import Iterable
from typing import ClassVar

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, WakeAt
from ovi_ray.scheduling.admission import Admission
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.events import (
    DataLost,
    DeviceFree,
    Event,
    SlotClosed,
    StepsTimed,
    TaskDone,
    TaskFailed,
    Tick,
    WorkerExpected,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.outcomes import TaskOutcomes
from ovi_ray.scheduling.pairing import PairedDenoises
from ovi_ray.scheduling.policies.base import Policy
from ovi_ray.scheduling.policies.production import Production
from ovi_ray.scheduling.progress import Progress, stage_progress
from ovi_ray.scheduling.quarantine import Quarantine
from ovi_ray.scheduling.ready_work import ReadyWork
from ovi_ray.scheduling.replanner import Replanner
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.speculation import SpeculativeExecution
from ovi_ray.scheduling.task import Reason
from ovi_ray.scheduling.worker_pool import WorkerPool
from ovi_ray.scheduling.workload import Workload


class Scheduler:
    """Decides what runs where. See the module's example.

    `handle` raises ValueError for events that cannot be: a worker that joins twice, two workers in one slot, a device that is
    free of another task than a decode before its end, time that runs backwards.
    """

    dispatcher_type: ClassVar[type[Dispatcher]] = Dispatcher
    """A subclass of Scheduler may schedule with a subclass of Dispatcher."""

    def __init__(
        self,
        workload: Workload,
        *,
        costs: CostModel | None = None,
        policy: Policy | None = None,
        config: SchedulerConfig | None = None,
    ) -> None:
        self.workload = workload
        self.config = config = config or SchedulerConfig()
        policy = policy or Production()
        self.job = JobState(workload)
        self.pool = WorkerPool(costs or CostModel(workload.kinds, config.cost_model), config.circuit_breaker)
        self.retries = RetryTracker(config.retry)
        self._replanner = Replanner(self.job, self.pool, policy, config)
        self._admission = Admission(self.job, self.pool, self._replanner, config.admission)
        ready = ReadyWork(self.job, self.pool, self.retries, self._replanner, config)
        speculation = SpeculativeExecution(self.job, self.pool, self.retries, config.speculation)
        pairing = PairedDenoises(
            job=self.job, pool=self.pool, retries=self.retries, speculation=speculation, config=config.pairing
        )
        self._dispatcher = self.dispatcher_type(
            job=self.job,
            pool=self.pool,
            retries=self.retries,
            ready=ready,
            replanner=self._replanner,
            speculation=speculation,
            pairing=pairing,
            policy=policy,
            config=config,
        )
        self._quarantine = Quarantine(self.pool, self.retries, self._dispatcher)
        self._outcomes = TaskOutcomes(
            job=self.job,
            pool=self.pool,
            retries=self.retries,
            ready=ready,
            speculation=speculation,
            pairing=pairing,
            dispatcher=self._dispatcher,
            quarantine=self._quarantine,
            max_writes=config.max_writes,
        )
        self._now = float("-inf")
        self._stuck_since: float | None = None
        self._awaits_worker = False
        self._is_stuck = False

    # --- the cycle

    def handle(self, events: Iterable[Event], now: float) -> list[Action]:
        """Apply what happened until `now` (seconds from any origin) and return what to do."""
        if now < self._now:
            raise ValueError(f"time runs backwards: {now} after {self._now}")
        self._now = now
        events = tuple(events)
        actions = [action for event in events for action in self._apply(event)]
        if not self.done and not self._is_as_planned(events):
            actions += self._quarantine.reinstate(now)
            actions += self._plan()
            actions += self._dispatcher.dispatch(now)
            actions += self._handle_no_progress()
        return actions

    def _is_as_planned(self, events: tuple[Event, ...]) -> bool:
        """Whether all that was learned is that devices are as fast as expected."""
        only_timed = bool(events) and all(isinstance(event, StepsTimed) for event in events)
        return only_timed and not self._replanner.is_due

    def _apply(self, event: Event) -> Iterable[Action]:
        match event:
            case DeviceFree():
                self._outcomes.device_free(event)
            case StepsTimed():
                self._outcomes.steps_timed(event)
            case TaskDone():
                return self._outcomes.succeeded(event, self._now)
            case TaskFailed():
                return self._outcomes.failed(event, self._now)
            case WorkerLost():
                return self._outcomes.worker_lost(event, self._now)
            case WorkerJoined():
                return self._quarantine.worker_joined(self.pool.join(event), self._now)
            case WorkerExpected():
                self.pool.expected.add(event.slot)
            case SlotClosed():
                self.pool.expected.discard(event.slot)
            case DataLost():
                return self.job.lose(event.key)
            case Tick():
                self._replanner.request()  # what a worker waits for may be late
        return ()

    def _plan(self) -> list[Action]:
        """Admit clips and renew the allocation, when there is a worker to give work to."""
        if not self._dispatcher.has_idle_workers and not self._dispatcher.has_newly_timed:
            return []
        self._replanner.refresh_placeable()
        actions = self._admission.admit()
        self._replanner.replan_if_due(self._now)
        return actions + self._dispatcher.stop_slow(self._now)

    # --- when nothing runs although clips are left

    def _handle_no_progress(self) -> list[Action]:
        """Lift restrictions; else wait for a cooldown to end, or for a device to join; else fail what fits nowhere.

        Restrictions are kept for a while when a worker is expected that they may not apply to.
        """
        self._awaits_worker = self._is_stuck = False
        if self._runs_anything() or self.done or not self.pool.workers:
            self._stuck_since = None
            return []
        wakes: list[Action] = []
        if self._stuck_since is None:
            self._stuck_since = self._now
            wakes = [WakeAt(time=self._now + self.config.patience_s)]
        is_patient = self._now < self._stuck_since + self.config.patience_s
        self._awaits_worker = bool(self.pool.expected)
        if self._awaits_worker and is_patient:
            return wakes
        actions = self._dispatch_without_restrictions()
        if self._runs_anything():
            self._awaits_worker = False
            return actions
        if (cooldown_ends_at := self._quarantine.ends_at) is not None:
            return [*actions, *wakes, WakeAt(time=cooldown_ends_at)]
        if self._awaits_worker:
            self._stuck_since = None
            return actions
        self._is_stuck = True
        return actions + (wakes if is_patient else self._fail_unplaceable())

    def _runs_anything(self) -> bool:
        return self.pool.busy > 0 or self.pool.has_writes

    def _dispatch_without_restrictions(self) -> list[Action]:
        """Let items run again where they failed, on devices on probation too, if that is what kept the workers idle."""
        on_probation = [b for w in self.pool.workers.values() for b in w.health if not b.accepts_retries]
        for breaker in on_probation:
            breaker.accept_retries()
        lifted = bool(self.pool.workers) and self.retries.lift_all_restrictions()
        if not lifted and not on_probation:
            return []
        return self._plan() + self._dispatcher.dispatch(self._now)

    def _fail_unplaceable(self) -> list[Action]:
        """Fail the clips with a stage that no worker can run."""
        actions: list[Action] = []
        for kind in range(len(self.workload.kinds)):
            missing = self.pool.missing_stages(kind)
            if missing:
                message = self.pool.why_nowhere(missing[0], kind)
                actions += self.job.fail_kind(kind, message, denoised_too=Stage.DECODE in missing)
        return actions

    # --- queries

    @property
    def done(self) -> bool:
        """Every clip has ended. Workers may still be busy with copies or preloads."""
        return not self.unfinished

    @property
    def unfinished(self) -> int:
        """Clips that have not ended."""
        return self.workload.clips - self.job.ended

    def progress(self) -> Progress:
        """Progress of the job."""
        return Progress(
            clips=self.workload.clips,
            done=self.job.ended - self.job.failed,
            failed=self.job.failed,
            stages=stage_progress(self.job),
            eta_s=self._replanner.eta(self._now),
            workers=len(self.pool.workers),
            busy=self.pool.busy,
        )

    @property
    def awaited_slots(self) -> list[str]:
        """Slots whose next worker the job waits for, because no present one can go on."""
        return sorted(self.pool.expected) if self._awaits_worker else []

    @property
    def unserved_stages(self) -> list[Stage]:
        """Stages of clips that no present or expected worker can run, while nothing else is left to do."""
        if not self._is_stuck:
            return []
        needed = [(kind, self.job.needed_stages(kind)) for kind in range(len(self.workload.kinds))]
        missing = {stage for kind, stages in needed if stages for stage in stages & {*self.pool.missing_stages(kind)}}
        return [stage for stage in Stage if stage in missing]

    def idle_reasons(self) -> dict[str, Reason]:
        """Why each idle worker has no task."""
        reasons = self._dispatcher.idle_reasons()
        return dict.fromkeys(reasons, Reason.AWAITING_WORKER) if self._awaits_worker else reasons
