"""The decision loop: brings idle workers and ready tasks together, asking the policy.

Idle workers that are interchangeable form a group that is looked at once, and clips of a kind form a queue, so a decision costs
the same for ten clips and for a million.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.actions import Action, Cancel, RunTask, WakeAt
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.idle_workers import GroupKey, IdleWorkers
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.pairing import Pair, PairedDenoises
from ovi_ray.scheduling.policies.base import Candidate, Decision, Policy, Snapshot
from ovi_ray.scheduling.ready_work import ReadyTasks, ReadyWork
from ovi_ray.scheduling.replanner import Replanner
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.speculation import SpeculativeExecution
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.task import Reason, Task
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState

_EARLIER = 0.99
"""Share of a task's seconds by which another device must have ended it to count as earlier."""
_Blocked = set[tuple[GroupKey, Stage, int]]
"""Groups and tasks of which no pair may run, because the items failed there before."""


class Dispatcher:
    """Gives tasks to idle workers."""

    def __init__(
        self,
        *,
        job: JobState,
        pool: WorkerPool,
        retries: RetryTracker,
        ready: ReadyWork,
        replanner: Replanner,
        speculation: SpeculativeExecution,
        pairing: PairedDenoises,
        policy: Policy,
        config: SchedulerConfig,
    ) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._ready = ready
        self._replanner = replanner
        self._speculation = speculation
        self._pairing = pairing
        self._policy = policy
        self._config = config
        self._idle = IdleWorkers(pool)
        self._wait_reason = Reason.NOTHING_READY
        self._recheck_at = float("-inf")
        self._newly_timed: set[int] = set()
        """Device classes whose first denoise was timed just now, and is slower than expected or was begun as a trial."""

    # --- workers become idle, busy or unavailable

    @property
    def has_idle_workers(self) -> bool:
        """Whether there is anybody to give a task to."""
        return bool(self._idle)

    def worker_available(self, worker: WorkerState) -> None:
        """A worker joined."""
        self._add_idle(worker)
        self._replanner.membership_changed()

    def stages_changed(self, worker: WorkerState) -> None:
        """A worker's device is taken off a stage, or put back."""
        is_idle = worker.running is None
        if is_idle:
            self._idle.remove(worker.number)
        self._pool.apply_health(worker)
        if is_idle:
            self._add_idle(worker)
        self._replanner.membership_changed()

    def apply_memory_limits(self) -> None:
        """A task ended: more or fewer kinds of clip may have to be left to devices with more memory."""
        if self._pool.apply_memory_limits():
            self._replanner.membership_changed()

    def is_news(self, worker: WorkerState, ratio: float) -> bool:
        """Whether the plan has to change, because a denoise takes `ratio` times as long as expected, or was begun as a trial.

        Its class has then been measured for the first time.
        """
        is_tried = worker.running is not None and worker.running.reason is Reason.TRIED
        is_slow = ratio > 1 + self._config.surprise
        is_first = not self._pool.costs.is_measured(worker.device_class, Stage.DENOISE)
        if is_first and (is_tried or is_slow):
            self._newly_timed.add(worker.device_class)
        is_surprise = is_slow or ratio < 1 - self._config.surprise
        if is_first and (is_tried or is_surprise):
            self._replanner.request()
        return is_tried or is_surprise

    @property
    def has_newly_timed(self) -> bool:
        """Whether denoises may have to be begun elsewhere."""
        return bool(self._newly_timed)

    def worker_unavailable(self, worker: WorkerState) -> None:
        """A worker is lost. Its task, if any, has ended."""
        if worker.running is not None:
            self._speculation.ended(worker)
            self._pool.end(worker)
        self._idle.remove(worker.number)
        self._replanner.membership_changed()

    def task_ended(self, worker: WorkerState) -> None:
        """A worker's task succeeded or failed."""
        self._speculation.ended(worker)
        self._pool.end(worker)
        self._add_idle(worker)
        self._replanner.task_ended()

    def _add_idle(self, worker: WorkerState) -> None:
        self._idle.add(worker, self._policy.group(self._pool.view(worker)))

    # --- the loop

    def dispatch(self, now: float) -> list[Action]:
        """Give idle workers what the policy chooses, then preloads, copies that overtake, assists, and copies that hedge."""
        actions: list[Action] = [*self._pairing.part_late(now)]
        if not self._idle:
            return actions
        actions += [*self._assign(now), *self._preload(now)]
        if self._pairing.comes_first:
            actions += self._assist(now)
        if self._pairing.is_possible(self._idle.numbers()):
            actions += [*self._speculate(now, hedges=False), *self._assist(now)]
        return [*actions, *self._speculate(now)]

    def _assign(self, now: float) -> list[Action]:
        actions: list[Action] = []
        blocked: _Blocked = set()
        while candidates := self._candidates(blocked):
            decision = self._decide(tuple(candidates), now)
            if decision.candidate is None and self._pool.busy:
                self._wait_reason = decision.reason
                return actions + self._recheck_later(decision.reason, now)
            chosen, reason = decision.candidate, decision.reason
            if chosen is None:  # waiting is only better while a task runs that will end
                chosen, reason = min(candidates, key=_soonest), Reason.LAST_RESORT
            if self._pairing.comes_first and chosen.stage is Stage.DENOISE and (assists := self._assist(now)):
                actions += assists
                continue
            group = self._idle.key_of(chosen.worker)
            run = self._start(chosen, reason, now)
            if run is None:
                blocked.add((group, chosen.stage, chosen.kind))
            else:
                actions.append(run)
        self._wait_reason = Reason.NOTHING_READY
        return actions

    def _recheck_later(self, reason: Reason, now: float) -> list[Action]:
        """Ask for a Tick, which makes a new allocation, because the work that the worker waits for may never come."""
        if reason not in (Reason.FASTER_DEVICE_SOON, Reason.BETTER_WORK_SOON) or self._recheck_at > now:
            return []
        eta = self._replanner.eta(now) or 0.0
        self._recheck_at = now + max(self._config.min_recheck_s, self._config.recheck_share * eta)
        return [WakeAt(time=self._recheck_at)]

    def _decide(self, candidates: tuple[Candidate, ...], now: float) -> Decision:
        """If denoises are assisted before others begin, what ends a clip goes before what would keep a device busy."""
        decodes = tuple(c for c in candidates if c.stage is Stage.DECODE)
        if self._pairing.comes_first and decodes:
            decision = self._choose(decodes, now)
            if decision.candidate is not None:
                return decision
        return self._choose(candidates, now)

    def _choose(self, candidates: tuple[Candidate, ...], now: float) -> Decision:
        snapshot = Snapshot(
            since_plan_s=now - self._replanner.planned_at,
            candidates=candidates,
            latents_fill=self._job.undecoded_latents / self._replanner.latents_scale,
            others_end=lambda candidate: self._others_end(candidate, now),
        )
        return self._policy.choose(snapshot, self._replanner.allocation)

    def _others_end(self, c: Candidate, now: float) -> int:
        before_s = (c.swap_s + c.work_s * c.doubt) * _EARLIER
        return self._pool.tasks_by(before_s, c.stage, c.kind, now, c.units, but=c.worker)

    def _candidates(self, blocked: _Blocked) -> list[Candidate]:
        """One for each pair of a group of idle workers and tasks that it can run."""
        tasks = self._ready.tasks() if self._idle else []
        if not tasks:
            return []
        found, fits = [], self._pool.capabilities.fits
        for key, worker in self._idle.first_of_each():
            for task in tasks:
                if not fits(worker.device_class, task.stage, task.kind):
                    continue
                if blocked and (key, task.stage, task.kind) in blocked:
                    continue
                if not (task.optional and self._ready.is_declined(worker, task)):
                    found.append(self._candidate(worker, task))
        return found

    def _candidate(self, worker: WorkerState, task: ReadyTasks) -> Candidate:
        stage, kind = task.stage, task.kind
        waiting, units = self._ready.tasks_and_units(worker, task)
        work_s = self._pool.work_seconds(worker, stage, kind, units)
        swap_s = self._pool.swap_seconds(worker, stage, kind)
        costs, may_stop = self._pool.costs, self._config.speculation.enabled
        doubt, hope = costs.doubt(worker.device_class, stage), costs.hope(worker.device_class, stage, kind)
        return Candidate(
            worker.number,
            worker.device_class,
            stage,
            kind,
            waiting,
            units,
            work_s,
            swap_s,
            task.urgent,
            task.begun,
            doubt,
            hope if may_stop else 1.0,
            self._measured_doubt(worker, stage),
        )

    def _measured_doubt(self, worker: WorkerState, stage: Stage) -> float:
        """Of a decode that would measure the worker's class, which none like it does already; else 1.

        What it tells is of use only while more clips are left than workers.
        """
        if stage is not Stage.DECODE or self._job.workload.clips - self._job.ended <= len(self._pool.workers):
            return 1.0
        doubt = self._pool.costs.doubt_of_declared(worker.device_class, stage)
        if doubt > 1.0 and any(
            w.device_class == worker.device_class and w.runs(stage) for w in self._pool.workers.values()
        ):
            return 1.0
        return doubt

    # --- starting a task

    def _start(self, chosen: Candidate, reason: Reason, now: float) -> RunTask | None:
        """Start the chosen task on the worker or on one like it; None when none of the items may run on any of them."""
        for worker in self._workers_for(chosen):
            items = self._ready.take(chosen.stage, chosen.kind, worker)
            if items:
                return self._run(worker, self._task(chosen.stage, items), chosen.kind, reason, now)
        return None

    def _workers_for(self, chosen: Candidate) -> Sequence[WorkerState]:
        """Interchangeable workers for a task, in the order in which they are tried."""
        group = self._idle.key_of(chosen.worker)
        if chosen.stage is Stage.DENOISE and self._job.undenoised < (idle := len(self._idle.numbers())):
            workers = self._idle.some(group, idle)  # the others may assist them
            return self._pairing.spread(workers)[: self._config.look_ahead]
        return self._idle.some(group, self._config.look_ahead)

    def _task(self, stage: Stage, items: tuple[int, ...], *, attempt: int = 1) -> Task:
        if self._retries:
            attempt = max(attempt, *(self._retries.next_attempt((stage, item)) for item in items))
        return Task(stage=stage, items=items, attempt=attempt)

    def _run(self, worker: WorkerState, task: Task, kind: int, reason: Reason, now: float) -> RunTask:
        alone = bool(task.items) and self._retries.runs_alone((task.stage, task.items[0]))
        swap = self._pool.swap(worker, task.stage, kind, alone=alone)
        run = RunTask(
            worker=worker.name, task=task, components=swap.components, model_name=swap.model_name, reason=reason
        )
        self._idle.remove(worker.number)
        self._pool.begin(worker, run, kind, self._units(task), swap, now)
        self._replanner.task_started()
        return run

    def _units(self, task: Task) -> float:
        return self._job.inputs[task.stage].tokens_of(task.items) if STAGES[task.stage].batched else 1.0

    # --- preloads and copies

    def _preload(self, now: float) -> list[Action]:
        """While the first inputs are encoded, idle workers load the transformer that their first clip will need.

        One that holds the transformer of another model is taken only where more of these wait than clips of their model:
        each preload brings what is held closer to what is needed, so that there is an end to them.
        """
        job, actions = self._job, list[Action]()
        if job.totals[ClipState.READY] or not job.totals[ClipState.WAITING] or not job.inputs_running:
            return actions
        missing = self._missing_models()
        fastest_s = self._replanner.allocation.fastest_s
        longest_first = sorted(range(len(job.workload.kinds)), key=lambda k: -fastest_s.get((Stage.DENOISE, k), 0.0))
        for kind in longest_first:  # a device goes on with the model that it has, and short clips are to fill the end
            name = job.workload.kinds[kind].model_name
            waiting = job.counts[kind][ClipState.WAITING] if self._replanner.placeable[kind] else 0
            for _ in range(waiting):
                if missing[name] <= 0 or (run := self._preload_one(kind, missing, now)) is None:
                    break
                actions.append(run)
        return actions

    def _missing_models(self) -> Counter[str]:
        """Model -> clips that wait for inputs, less the workers that hold it or load it; below 0 where some are spare."""
        missing: Counter[str] = Counter()
        for kind, clip_kind in enumerate(self._job.workload.kinds):
            if self._replanner.placeable[kind]:
                missing[clip_kind.model_name] += self._job.counts[kind][ClipState.WAITING]
            missing[clip_kind.model_name] -= self._pool.preloading.get(kind, 0)
        for name in missing:
            missing[name] -= self._idle.with_model(name)
        return missing

    def _preload_one(self, kind: int, missing: Counter[str], now: float) -> RunTask | None:
        """A preload, which `missing` is brought up to date with; None where no idle worker is to be given one."""
        name = self._job.workload.kinds[kind].model_name
        task = ReadyTasks(Stage.DENOISE, kind, missing[name])
        candidates = tuple(
            self._candidate(worker, task)
            for key, worker in self._idle.first_of_each()
            if key.model_name != name
            and (not key.model_name or missing.get(key.model_name, -1) < 0)
            and not worker.preload_failed
            and self._pool.fits(worker, Stage.DENOISE, kind)
        )
        chosen = self._choose(candidates, now).candidate if candidates else None
        if chosen is None:
            return None
        worker, preload = self._workers_for(chosen)[0], Task(stage=Stage.DENOISE, items=())
        missing[name] -= 1
        if worker.model_name:
            missing[worker.model_name] += 1
        return self._run(worker, preload, kind, Reason.PRELOAD, now)

    def _speculate(self, now: float, *, hedges: bool = True) -> list[Action]:
        actions: list[Action] = []
        while self._idle:
            speculation = self._speculation.propose(now, hedges=hedges)
            actions += speculation.wakes
            if speculation.copy_on is None or speculation.original is None:
                break
            actions += self._copy(speculation.original, speculation.copy_on, now)
        return actions

    def stop_slow(self, now: float) -> list[Action]:
        """Stop the denoises of a class that turned out to be slow, if the job ends sooner when they are begun elsewhere."""
        classes, self._newly_timed = sorted(self._newly_timed), set()
        actions: list[Action] = []
        for device_class in classes:
            workers = self._speculation.to_begin_elsewhere(device_class)
            kinds = [worker.kind for worker in workers]
            if workers and self._replanner.replan_without({w.number for w in workers}, kinds, now):
                actions += [
                    Cancel(worker=w.name, task=w.running.task, reason=Reason.TOO_SLOW)
                    for w in workers
                    if w.running is not None
                ]
        return actions

    def _copy(self, original: WorkerState, worker: WorkerState, now: float) -> list[Action]:
        assert original.running is not None
        task = original.running.task
        cancels = self._pairing.part(task.items[0], now)
        runners = self._speculation.started((task.stage, task.items[0]), original, worker)
        copy = self._task(task.stage, task.items, attempt=task.attempt + runners)
        run = self._run(worker, copy, self._job.kind_of(task.items[0]), Reason.SPECULATIVE_COPY, now)
        self._speculation.expect_first_end(worker)
        return [*cancels, run]

    def _assist(self, now: float) -> list[Action]:
        """Let workers with nothing else to do compute half of each step of the denoises that should end last."""
        actions: list[Action] = []
        for pair in self._pairing.proposals(self._idle.numbers(), now):
            actions += self._speculation.withdraw(pair.leader, now)
            actions.append(self._begin_assist(pair, now))
            if pair.late_s < math.inf:
                actions.append(WakeAt(time=pair.late_s))
        return actions

    def _begin_assist(self, pair: Pair, now: float) -> RunTask:
        leader, helper = pair.leader, pair.helper
        assert leader.running is not None
        task = replace(leader.running.task, assists=True)
        run = self._run(helper, task, leader.kind, Reason.ASSISTS, now)
        self._pairing.begin(pair)
        return replace(run, leader=leader.name)

    # --- for display

    def idle_reasons(self) -> dict[str, Reason]:
        """Why each idle worker in service has no task."""
        workers, tasks = self._pool.workers, self._ready.tasks() if self._idle else []
        by_group = {key: self._why_idle(worker, tasks) for key, worker in self._idle.first_of_each()}
        return {workers[number].name: by_group[self._idle.key_of(number)] for number in self._idle.numbers()}

    def _why_idle(self, worker: WorkerState, tasks: list[ReadyTasks]) -> Reason:
        possible = [task for task in tasks if self._pool.fits(worker, task.stage, task.kind)]
        if possible:
            if all(self._ready.is_declined(worker, task) for task in possible):
                return Reason.NOT_WORTH_A_SWAP
            declined = self._wait_reason is not Reason.NOTHING_READY
            return self._wait_reason if declined else Reason.FAILED_HERE_BEFORE
        if any(self._job.is_queued(stage) for stage in worker.health.open_stages):
            return Reason.QUARANTINED
        left = self._clips_to_denoise()
        if any(placeable and self._pool.fits(worker, Stage.DENOISE, kind) for kind, placeable in left.items()):
            return Reason.LATENTS_FULL
        if any(table.queued and self._pool.fits(worker, stage, 0) for stage, table in self._job.inputs.items()):
            return Reason.ENOUGH_AHEAD
        if any(self._job.queue(stage, kind) for stage, kind in self._pool.capabilities.limits):
            return Reason.TOO_LITTLE_MEMORY
        return Reason.NOTHING_READY if all(left.values()) else Reason.UNPLACEABLE

    def _clips_to_denoise(self) -> dict[int, bool]:
        """Kinds with clips that wait for their denoise -> whether the present workers can render them."""
        job, placeable = self._job, self._replanner.placeable
        waiting = {kind: can for kind, can in enumerate(placeable) if job.clip_queues[Stage.DENOISE][kind]}
        return waiting | {kind: False for kind, can in enumerate(placeable) if not can and job.pending(kind)}


def _soonest(candidate: Candidate) -> tuple[float, int, Stage, int]:
    return candidate.swap_s + candidate.work_s, candidate.worker, candidate.stage, candidate.kind
