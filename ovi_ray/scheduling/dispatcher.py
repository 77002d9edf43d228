"""Brings idle workers and ready tasks together, asking the policy. Pure.

Idle workers that are alike (class, what they hold, speed) form a group that is asked about once, and clips of a kind
form a queue, so a decision costs the same for ten clips and for a million.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, RunTask, WakeAt
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.idle_workers import GroupKey, IdleGroups
from ovi_ray.scheduling.job_state import Board, ClipState
from ovi_ray.scheduling.policies.base import Candidate, Decision, Policy, Snapshot
from ovi_ray.scheduling.replanner import Planner
from ovi_ray.scheduling.retry_tracker import FailureBook
from ovi_ray.scheduling.speculation import Stragglers
from ovi_ray.scheduling.task import Reason, Task
from ovi_ray.scheduling.worker_pool import Fleet, WorkerState

_EMBEDDING_GB_PER_TOKEN = 4096 * 2 / 1e9  # a row of the text encoder in bf16
_EMBEDDINGS_GB_PER_WORKER = 0.01
_LOOK_AHEAD = 16  # items or workers looked at to pair an item with a worker that it does not avoid


class _Work(NamedTuple):
    """Tasks of one stage and kind that could start."""

    stage: Stage
    kind: int
    waiting: int
    units: float
    """Tokens of a task that encodes texts."""
    urgent: bool
    spare_only: bool
    """Not worth a swap on a device that can denoise."""


class Matcher:
    """The scheduler's choosing half: the loop of decisions over idle workers and ready tasks."""

    def __init__(
        self,
        board: Board,
        fleet: Fleet,
        failures: FailureBook,
        policy: Policy,
        config: SchedulerConfig,
        out: list[Action],
    ) -> None:
        self._board = board
        self._fleet = fleet
        self._failures = failures
        self._policy = policy
        self._config = config
        self._out = out
        self._idle = IdleGroups(fleet)
        self._planner = Planner(board, fleet, policy)
        self.stragglers = Stragglers(board, fleet, out)
        self._wait_reason = Reason.NOTHING_READY
        self._look_at = float("-inf")
        self._kinds = range(len(board.workload.kinds))

    # --- workers come, go, and become free

    def worker_joined(self, worker: WorkerState) -> None:
        """It may be given work."""
        self._idle_again(worker)
        self._planner.membership_changed()

    def worker_gone(self, worker: WorkerState) -> None:
        """It may not be given work any more."""
        if worker.running is not None:
            self.stragglers.ended(worker)
            self._fleet.end(worker)
        self._idle.remove(worker.number)
        self._planner.membership_changed()

    def worker_free(self, worker: WorkerState) -> None:
        """Its task has ended, well or not."""
        self.stragglers.ended(worker)
        self._fleet.end(worker)
        self._idle_again(worker)
        self._planner.task_ended()

    def _idle_again(self, worker: WorkerState) -> None:
        self._idle.add(worker, self._policy.group(self._fleet.view(worker), self._planner.plan))

    def relax_if_avoided_everywhere(self, stage: Stage, item: int, kind: int) -> None:
        """An item that no present worker may run goes back to any."""
        for worker in self._fleet.workers.values():
            if self._fleet.fits(worker.device, stage, kind) and self._allows(worker, stage, item):
                return
        self._failures.relax_item((stage, item))

    def _allows(self, worker: WorkerState, stage: Stage, item: int) -> bool:
        memory = self._fleet.costs.profiles[worker.device].memory_gb
        return self._failures.allows((stage, item), worker.number, memory)

    # --- the loop

    def match(self, now: float) -> bool:
        """Give idle workers what the policy chooses for them. True when a worker is busy afterwards."""
        if not self._idle:
            return self._fleet.busy > 0
        self._planner.refresh_placeable()
        self._admit()
        if self._planner.plan_if_due(now) and self._policy.groups_follow_plan:
            for number in self._idle.numbers():
                self._idle.remove(number)
                self._idle_again(self._fleet.workers[number])
        self._decide(now)
        self._preload(now)
        if self._config.straggler_copies:
            self._copy_stragglers(now)
        return self._fleet.busy > 0

    def _decide(self, now: float) -> None:
        blocked: set[tuple[GroupKey, Stage, int]] = set()
        while candidates := self._candidates(blocked):
            decision = self._choose(tuple(candidates), now)
            if decision.candidate is None and self._fleet.busy:
                self._wait_reason = decision.reason
                if decision.reason is Reason.FASTER_DEVICE_SOON:
                    self._look_again(now)
                return
            chosen, reason = decision.candidate, decision.reason
            if chosen is None:  # waiting is only better while something runs that ends
                chosen = min(candidates, key=lambda c: (c.swap_s + c.work_s, c.worker, c.stage, c.kind))
                reason = Reason.LAST_RESORT
            key = self._idle.key_of(chosen.worker)
            if not self._start(chosen, reason, now):
                blocked.add((key, chosen.stage, chosen.kind))
        self._wait_reason = Reason.NOTHING_READY

    def _look_again(self, now: float) -> None:
        """What an idle worker waits for may never come: ask for a Tick, which plans anew."""
        if self._look_at <= now:
            self._look_at = now + max(1.0, 0.1 * (self._planner.eta(now) or 0.0))
            self._out.append(WakeAt(time=self._look_at))

    def time_passed(self) -> None:
        """A Tick: what was expected may have changed."""
        self._planner.reconsider()

    def _choose(self, candidates: tuple[Candidate, ...], now: float) -> Decision:
        waiting = self._board.new_latents - self._board.totals[ClipState.DECODING]
        snapshot = Snapshot(
            since_plan_s=now - self._planner.planned_at,
            candidates=candidates,
            latents_fill=max(0, waiting) / max(1.0, self._max_latents / 4),
            others=lambda stage, kind: self._others(stage, kind, now),
        )
        return self._policy.choose(snapshot, self._planner.plan)

    def _others(self, stage: Stage, kind: int, now: float) -> FloatArray:
        ends = self._fleet.ends(stage, kind, now)
        return np.sort(ends[np.isfinite(ends)])

    # --- candidates

    def _candidates(self, blocked: set[tuple[GroupKey, Stage, int]]) -> list[Candidate]:
        open_work = self._open_work() if self._idle else []
        if not open_work:
            return []
        fleet, found = self._fleet, []
        for key, worker in self._idle.first_of_each():
            for work in open_work:
                stage, kind = work.stage, work.kind
                if not fleet.fits(worker.device, stage, kind) or (blocked and (key, stage, kind) in blocked):
                    continue
                if not self._not_worth_a_swap(worker, work):
                    found.append(self._candidate(worker, stage, kind, work.waiting, work.units, work.urgent))
        return found

    def _not_worth_a_swap(self, worker: WorkerState, work: _Work) -> bool:
        """Work that is not urgent never makes a device that can denoise swap its components."""
        swap = self._fleet.swap(worker, work.stage, work.kind)
        return work.spare_only and bool(swap.loads) and self._fleet.can_denoise(worker.device)

    def _candidate(
        self, worker: WorkerState, stage: Stage, kind: int, waiting: int, units: float = 1.0, urgent: bool = False
    ) -> Candidate:
        fleet = self._fleet
        swap_s = fleet.swap_seconds(worker.device, fleet.swap(worker, stage, kind))
        work_s = fleet.work_seconds(worker, stage, kind, units)
        return Candidate(
            worker.number, worker.device, stage, kind, waiting, work_s, swap_s, urgent, worker.denoises, worker.owed
        )

    def _open_work(self) -> list[_Work]:
        board = self._board
        work: list[_Work] = []
        ready = board.totals[ClipState.READY]
        texts = len(board.text_queue)
        if texts:
            hungry = ready + board.texts.running < self._planner.denoisers
            if hungry or texts >= self._config.text_batch:
                batch = min(texts, self._config.text_batch)
                kind, tasks = self._planner.text_kind(), -(-texts // self._config.text_batch)
                units = batch * self._planner.mean_tokens
                work.append(_Work(Stage.ENCODE_TEXT, kind, tasks, units, hungry, not hungry))
        hungry = ready + board.frames.running < self._planner.denoisers
        may_denoise = ready > 0 and self._room_for_latents()
        for kind in self._kinds:
            if frames := len(board.frame_queue[kind]):
                work.append(_Work(Stage.ENCODE_FIRST_FRAME, kind, frames, 1.0, hungry, not hungry))
            if may_denoise and self._planner.placeable[kind] and (clips := len(board.ready[kind])):
                work.append(_Work(Stage.DENOISE, kind, clips, 1.0, False, False))
            if latents := len(board.latents[kind]):
                work.append(_Work(Stage.DECODE, kind, latents, 1.0, False, False))
        return work

    @property
    def _max_latents(self) -> int:
        return self._config.max_latents or 2 * len(self._fleet.workers) + 8

    def _room_for_latents(self) -> bool:
        return self._board.new_latents + self._board.totals[ClipState.DENOISING] < self._max_latents

    # --- starting a task

    def _start(self, chosen: Candidate, reason: Reason, now: float) -> bool:
        """Give the chosen task to the worker, or to one like it. False when none of the items may go there."""
        for worker in self._idle.some(self._idle.key_of(chosen.worker), _LOOK_AHEAD):
            items = self._take(chosen.stage, chosen.kind, worker)
            if items:
                self._run(worker, chosen.stage, chosen.kind, items, reason, now)
                return True
        return False

    def _take(self, stage: Stage, kind: int, worker: WorkerState) -> tuple[int, ...]:
        """Take items from their queue and note that they have started."""
        board = self._board
        if stage is Stage.ENCODE_TEXT:
            texts = self._take_texts(worker)
            for text in texts:
                board.input_started(board.texts, text)
            return texts
        queues = {Stage.ENCODE_FIRST_FRAME: board.frame_queue, Stage.DENOISE: board.ready, Stage.DECODE: board.latents}
        item = self._pop(queues[stage][kind], stage, worker)
        if item is None or (stage is Stage.ENCODE_FIRST_FRAME and board.input_unneeded(board.frames, item)):
            return ()
        if stage is Stage.ENCODE_FIRST_FRAME:
            board.input_started(board.frames, item)
        elif stage is Stage.DENOISE:
            board.denoise_started(item)
        else:
            board.decode_started(item)
        return (item,)

    def _pop(self, queue: deque[int], stage: Stage, worker: WorkerState) -> int | None:
        if not self._failures:
            return queue.popleft() if queue else None
        for position in range(min(len(queue), _LOOK_AHEAD)):
            if self._allows(worker, stage, queue[position]):
                item = queue[position]
                del queue[position]
                return item
        return None

    def _take_texts(self, worker: WorkerState) -> tuple[int, ...]:
        """A batch; a text that failed before goes alone."""
        board, failures = self._board, self._failures
        items: list[int] = []
        while len(items) < self._config.text_batch and board.text_queue:
            suspect = failures and failures.is_suspect((Stage.ENCODE_TEXT, board.text_queue[0]))
            if suspect and items:
                break
            text = self._pop(board.text_queue, Stage.ENCODE_TEXT, worker)
            if text is None:
                break
            if board.input_unneeded(board.texts, text):
                continue
            items.append(text)
            if failures and failures.is_suspect((Stage.ENCODE_TEXT, text)):
                break
        return tuple(items)

    def _run(
        self,
        worker: WorkerState,
        stage: Stage,
        kind: int,
        items: tuple[int, ...],
        reason: Reason,
        now: float,
        *,
        after_attempt: int = 0,
    ) -> None:
        failures = self._failures
        alone, attempt, units = False, after_attempt + 1, 1.0
        if failures and items:
            alone = failures.runs_alone((stage, items[0]))
            attempt = max(attempt, *(failures.attempt((stage, item)) for item in items))
        if stage is Stage.ENCODE_TEXT:
            units = float(self._board.workload.text_tokens[list(items)].sum())
        swap = self._fleet.swap(worker, stage, kind, alone=alone)
        task = Task(stage=stage, items=items, attempt=attempt)
        run = RunTask(
            worker=worker.name, task=task, components=swap.components, model_name=swap.model_name, reason=reason
        )
        self._idle.remove(worker.number)
        self._fleet.begin(worker, run, kind, units, swap, now)
        self._planner.task_started()
        self._out.append(run)

    # --- admission

    def _admit(self) -> None:
        """Let in as many clips as may have their texts encoded ahead."""
        board, planner = self._board, self._planner
        if not board.totals[ClipState.UNSEEN]:
            return
        gb = self._config.embeddings_gb + _EMBEDDINGS_GB_PER_WORKER * len(self._fleet.workers)
        ahead = max(2 * planner.denoisers, int(gb / (_EMBEDDING_GB_PER_TOKEN * planner.mean_tokens)))
        left = {kind: board.unseen(kind) for kind in self._kinds if planner.placeable[kind]}
        total = sum(left.values())
        for kind, unseen in left.items():
            counts = board.counts[kind]
            share = max(8, ahead * unseen // total) if unseen else 0
            room = share - counts[ClipState.WAITING] - counts[ClipState.READY]
            for _ in range(min(room, unseen)):
                board.admit(kind)

    # --- preloads and copies

    def _preload(self, now: float) -> None:
        """While the first texts are encoded, idle denoisers load their transformer."""
        board = self._board
        if board.totals[ClipState.READY] or not board.totals[ClipState.WAITING] or not self._idle:
            return
        if not board.texts.running and not board.frames.running:
            return
        for kind in self._kinds:
            expected = board.counts[kind][ClipState.WAITING] if self._planner.placeable[kind] else 0
            expected -= self._fleet.preloading.get(kind, 0)
            expected -= self._idle.with_model(board.workload.kinds[kind].model_name)
            while expected > 0 and self._preload_one(kind, expected, now):
                expected -= 1

    def _preload_one(self, kind: int, expected: int, now: float) -> bool:
        name = self._board.workload.kinds[kind].model_name
        candidates = tuple(
            self._candidate(worker, Stage.DENOISE, kind, expected)
            for (device, _, model, _), worker in self._idle.first_of_each()
            if model != name and not worker.preload_failed and self._fleet.fits(device, Stage.DENOISE, kind)
        )
        chosen = self._choose(candidates, now).candidate if candidates else None
        if chosen is None:
            return False
        self._run(self._fleet.workers[chosen.worker], Stage.DENOISE, kind, (), Reason.PRELOAD, now)
        return True

    def _copy_stragglers(self, now: float) -> None:
        while self._idle:
            found = self.stragglers.next_copy(now)
            if found is None:
                return
            worker, run = found
            kind = self._board.kind_of(run.task.items[0])
            self._run(
                worker,
                run.task.stage,
                kind,
                run.task.items,
                Reason.STRAGGLER_COPY,
                now,
                after_attempt=run.task.attempt,
            )

    # --- for display

    def eta(self, now: float) -> float | None:
        """Seconds until the end as planned; None while there is no plan."""
        return self._planner.eta(now)

    def idle_reasons(self) -> dict[str, Reason]:
        """Why each idle worker waits."""
        workers = self._fleet.workers
        by_group = {key: self._why_idle(worker) for key, worker in self._idle.first_of_each()}
        return {workers[number].name: by_group[self._idle.key_of(number)] for number in self._idle.numbers()}

    def _why_idle(self, worker: WorkerState) -> Reason:
        board, fleet = self._board, self._fleet
        possible = [work for work in self._open_work() if fleet.fits(worker.device, work.stage, work.kind)]
        if possible:
            if all(self._not_worth_a_swap(worker, work) for work in possible):
                return Reason.NOT_WORTH_A_SWAP
            declined = self._wait_reason is not Reason.NOTHING_READY
            return self._wait_reason if declined else Reason.FAILED_HERE_BEFORE
        if any(queue and fleet.fits(worker.device, Stage.DENOISE, kind) for kind, queue in enumerate(board.ready)):
            return Reason.LATENTS_FULL
        if board.text_queue and fleet.fits(worker.device, Stage.ENCODE_TEXT, 0):
            return Reason.ENOUGH_AHEAD
        return Reason.NOTHING_READY
