"""Brings idle workers and ready tasks together, asking the policy. Pure.

Idle workers that are alike (class, what they hold, speed) form a group that is asked about once, and clips of a kind
form a queue, so a decision costs the same for ten clips and for a million.
"""

import math
from collections import deque
from itertools import islice

import numpy as np

from ovi_ray.board import Board, ClipState
from ovi_ray.bounds import FloatArray
from ovi_ray.events import Action, Cancel, Reason, RunTask, Task, WakeAt
from ovi_ray.failures import FailureBook
from ovi_ray.fleet import Fleet, WorkerState
from ovi_ray.limits import Limits
from ovi_ray.policies import Candidate, Cluster, Decision, Plan, Policy, Snapshot
from ovi_ray.stages import Component, Stage

_EMBEDDING_GB_PER_TOKEN = 4096 * 2 / 1e9  # a row of the text encoder in bf16
_EMBEDDINGS_GB_PER_WORKER = 0.01
_PLAN_EVERY = 0.01  # of the remaining work
_COPY_MARGIN = 1.5  # a copy is made of what would take so many times longer than the copy,
_COPY_WHEN_LATE = 0.25  # or is late by this share of its expected time
_LOOK_AHEAD = 16  # items or workers looked at to pair an item with a worker that it does not avoid

GroupKey = tuple[int, frozenset[Component], str, int]
"""Class, what is resident, the transformer's model, and the policy's own number."""


class Matcher:
    """The scheduler's choosing half: groups of idle workers, plans, and the loop of decisions."""

    def __init__(
        self, board: Board, fleet: Fleet, failures: FailureBook, policy: Policy, limits: Limits, out: list[Action]
    ) -> None:
        self._board = board
        self._fleet = fleet
        self._failures = failures
        self._policy = policy
        self._limits = limits
        self._out = out
        self._idle: dict[GroupKey, dict[int, None]] = {}
        self._key_of: dict[int, GroupKey] = {}
        self._resting: dict[int, None] = {}
        self._copies: dict[tuple[Stage, int], list[int]] = {}
        self._preloading: dict[int, int] = {}
        self._wait_reason = Reason.NOTHING_READY
        self._plan = Plan(makespan_s=0.0)
        self._planned_at = -math.inf
        self._plan_due = True
        self._changes = 0
        self._next_measurements = 1
        self._measurements = 0
        self._placeable: list[bool] = []
        self._denoisers = 0
        kinds = board.workload.kinds
        self._kinds = range(len(kinds))
        tokens = board.workload.text_tokens
        self._mean_tokens = max(1.0, float(tokens.mean())) if len(tokens) else 1.0

    # --- workers come, go, and become free

    def worker_joined(self, worker: WorkerState) -> None:
        """It may be given work."""
        self._idle_again(worker)
        self._membership_changed()

    def worker_gone(self, worker: WorkerState) -> None:
        """It may not be given work any more."""
        if worker.running is not None:
            self._release(worker)
        self._leave_group(worker.number)
        self._resting.pop(worker.number, None)
        self._membership_changed()

    def worker_free(self, worker: WorkerState) -> None:
        """Its task has ended, well or not."""
        self._release(worker)
        self._idle_again(worker)
        self._changes += 1
        self._measurements += 1

    def _release(self, worker: WorkerState) -> None:
        task = worker.running.task if worker.running else None
        worker.running = None
        self._fleet.busy -= 1
        if task is None:
            return
        if not task.items:
            self._preloading[worker.kind] -= 1
            return
        copies = self._copies.get((task.stage, task.items[0]))
        if copies and worker.number in copies:
            copies.remove(worker.number)
            if not copies:
                del self._copies[task.stage, task.items[0]]

    def _membership_changed(self) -> None:
        self._plan_due = True
        self._placeable = []

    def _idle_again(self, worker: WorkerState) -> None:
        view = self._fleet.view(worker, 0.0)
        key = (worker.device, worker.resident, worker.model_name, self._policy.group(view, self._plan))
        self._key_of[worker.number] = key
        self._idle.setdefault(key, {})[worker.number] = None

    def _leave_group(self, number: int) -> None:
        key = self._key_of.pop(number, None)
        if key is not None:
            group = self._idle[key]
            del group[number]
            if not group:
                del self._idle[key]

    def blame(self, worker: WorkerState, task: Task, now: float) -> None:
        """It failed a task. After three different ones in a row it rests, if others are there to go on."""
        worker.failed_items.update(task.items)
        if len(worker.failed_items) < 3 or len(self._fleet.workers) - len(self._resting) < 2:
            return
        worker.rest_until_s = now + self._limits.rest_s * 2**worker.rests
        worker.rests += 1
        worker.failed_items.clear()
        self._leave_group(worker.number)
        self._resting[worker.number] = None
        self._out.append(WakeAt(time=worker.rest_until_s))

    def _wake(self, now: float) -> None:
        for number in [n for n in self._resting if self._fleet.workers[n].rest_until_s <= now]:
            del self._resting[number]
            self._idle_again(self._fleet.workers[number])

    # --- what is possible

    def missing_stages(self, kind: int) -> list[Stage]:
        """The stages of a kind that no present worker can run."""
        stages = [Stage.ENCODE_TEXT, Stage.DENOISE, Stage.DECODE]
        if self._board.workload.kinds[kind].has_image:
            stages.insert(1, Stage.ENCODE_FIRST_FRAME)
        return [stage for stage in stages if not self._fleet.anyone_fits(stage, kind)]

    def _refresh_placeable(self) -> None:
        if self._placeable:
            return
        self._placeable = [not self.missing_stages(kind) for kind in self._kinds]
        able = {d for d in self._fleet.devices() if any(self._fleet.fits(d, Stage.DENOISE, k) for k in self._kinds)}
        self._denoisers = sum(worker.device in able for worker in self._fleet.workers.values())

    @property
    def _max_latents(self) -> int:
        return self._limits.max_latents or 2 * len(self._fleet.workers) + 8

    def _room_for_latents(self) -> bool:
        return self._board.new_latents + self._board.totals[ClipState.DENOISING] < self._max_latents

    def relax_if_avoided_everywhere(self, stage: Stage, item: int, kind: int) -> None:
        """An item that no present worker may run goes back to any."""
        for worker in self._fleet.workers.values():
            memory = self._fleet.costs.profiles[worker.device].memory_gb
            fits = self._fleet.fits(worker.device, stage, kind)
            if fits and self._failures.allows((stage, item), worker.number, memory):
                return
        self._failures.relax_item((stage, item))

    # --- the loop

    def match(self, now: float) -> bool:
        """Give idle workers what the policy chooses for them. True when a worker is busy afterwards."""
        self._wake(now)
        if not self._idle:
            return self._fleet.busy > 0
        self._refresh_placeable()
        self._admit()
        self._plan_if_due(now)
        candidates, decision = self._decide(now)
        if decision is None and candidates and not self._fleet.busy:
            soonest = min(candidates, key=lambda c: (c.swap_s + c.work_s, c.worker, c.stage, c.kind))
            self._start(soonest, Reason.LAST_RESORT, now)
        self._preload(now)
        if self._limits.straggler_copies:
            self._copy_straggler(now)
        return self._fleet.busy > 0

    def _decide(self, now: float) -> tuple[tuple[Candidate, ...], Candidate | None]:
        blocked: set[tuple[GroupKey, Stage, int]] = set()
        while True:
            candidates = tuple(self._candidates(blocked))
            if not candidates:
                self._wait_reason = Reason.NOTHING_READY
                return candidates, None
            decision = self._choose(candidates, now)
            chosen = decision.candidate
            if chosen is None:
                self._wait_reason = decision.reason
                return candidates, None
            key = self._key_of[chosen.worker]
            if not self._start(chosen, decision.reason, now):
                blocked.add((key, chosen.stage, chosen.kind))

    def _choose(self, candidates: tuple[Candidate, ...], now: float) -> Decision:
        waiting = self._board.new_latents - self._board.totals[ClipState.DECODING]
        snapshot = Snapshot(
            since_plan_s=now - self._planned_at,
            candidates=candidates,
            latents_fill=max(0, waiting) / max(1.0, self._max_latents / 4),
            others=lambda stage, kind: self._others(stage, kind, now),
        )
        return self._policy.choose(snapshot, self._plan)

    def _others(self, stage: Stage, kind: int, now: float) -> FloatArray:
        fleet = self._fleet
        ends = []
        for worker in fleet.workers.values():
            if fleet.fits(worker.device, stage, kind):
                swap_s = fleet.swap_seconds(worker.device, fleet.swap(worker, stage, kind))
                ends.append(worker.available_in(now) + swap_s + fleet.work_seconds(worker, stage, kind))
        return np.sort(np.array(ends, dtype=np.float64))

    # --- candidates

    def _candidates(self, blocked: set[tuple[GroupKey, Stage, int]]) -> list[Candidate]:
        work = self._open_work()
        found = []
        for key, group in self._idle.items() if work else ():
            worker = self._fleet.workers[next(iter(group))]
            for stage, kind, waiting, units, urgent, needs_idle_time in work:
                if not self._fleet.fits(worker.device, stage, kind) or (blocked and (key, stage, kind) in blocked):
                    continue
                swap_s = self._fleet.swap_seconds(worker.device, self._fleet.swap(worker, stage, kind))
                if needs_idle_time and swap_s and self._can_denoise(worker.device):
                    continue
                work_s = self._fleet.work_seconds(worker, stage, kind, units)
                owed = worker.started - worker.decoded
                found.append(
                    Candidate(
                        worker.number, worker.device, stage, kind, waiting, work_s, swap_s, urgent, worker.started, owed
                    )
                )
        return found

    def _can_denoise(self, device: int) -> bool:
        return any(self._fleet.fits(device, Stage.DENOISE, kind) for kind in self._kinds)

    def _open_work(self) -> list[tuple[Stage, int, int, float, bool, bool]]:
        """(stage, kind, tasks, units, urgent, not worth a swap on a denoiser) of everything that could start."""
        board = self._board
        work: list[tuple[Stage, int, int, float, bool, bool]] = []
        ready = board.totals[ClipState.READY]
        texts = len(board.text_queue)
        if texts:
            batch = min(texts, self._limits.text_batch)
            hungry = ready + board.texts.running < self._denoisers
            if hungry or texts >= self._limits.text_batch:
                tasks = -(-texts // self._limits.text_batch)
                kind = self._text_kind()
                work.append((Stage.ENCODE_TEXT, kind, tasks, batch * self._mean_tokens, hungry, not hungry))
        hungry = ready + board.frames.running < self._denoisers
        for kind in self._kinds:
            if board.frame_queue[kind]:
                waiting = len(board.frame_queue[kind])
                work.append((Stage.ENCODE_FIRST_FRAME, kind, waiting, 1.0, hungry, not hungry))
            if board.latents[kind]:
                work.append((Stage.DECODE, kind, len(board.latents[kind]), 1.0, False, False))
        if ready and self._room_for_latents():
            for kind in self._kinds:
                if board.ready[kind] and self._placeable[kind]:
                    work.append((Stage.DENOISE, kind, len(board.ready[kind]), 1.0, False, False))
        return work

    def _text_kind(self) -> int:
        """Texts have no kind; any one that is placeable stands for them."""
        return next((kind for kind in self._kinds if self._placeable[kind]), 0)

    # --- starting a task

    def _start(self, chosen: Candidate, reason: Reason, now: float) -> bool:
        """Give the chosen task to the worker, or to one like it. False when none of the items may go there."""
        group = self._idle[self._key_of[chosen.worker]]
        for number in list(islice(group, _LOOK_AHEAD)):
            worker = self._fleet.workers[number]
            items = self._take(chosen.stage, chosen.kind, worker)
            if items:
                self._run(worker, chosen.stage, chosen.kind, items, reason, now)
                return True
        return False

    def _take(self, stage: Stage, kind: int, worker: WorkerState) -> tuple[int, ...]:
        board = self._board
        if stage is Stage.ENCODE_TEXT:
            items = self._take_texts(worker)
            for text in items:
                board.input_started(board.texts, text)
            return items
        queues = {Stage.ENCODE_FIRST_FRAME: board.frame_queue, Stage.DENOISE: board.ready, Stage.DECODE: board.latents}
        found = self._pop(queues[stage][kind], stage, worker)
        if found is None:
            return ()
        return (self._note_start(stage, found, worker),)

    def _note_start(self, stage: Stage, item: int, worker: WorkerState) -> int:
        board = self._board
        if stage is Stage.ENCODE_FIRST_FRAME:
            board.input_started(board.frames, item)
        elif stage is Stage.DENOISE:
            board.denoise_started(item)
            worker.started += 1
        else:
            board.decode_started(item)
        return item

    def _pop(self, queue: deque[int], stage: Stage, worker: WorkerState) -> int | None:
        if not self._failures:
            return queue.popleft() if queue else None
        memory = self._fleet.costs.profiles[worker.device].memory_gb
        for position in range(min(len(queue), _LOOK_AHEAD)):
            if self._failures.allows((stage, queue[position]), worker.number, memory):
                item = queue[position]
                del queue[position]
                return item
        return None

    def _take_texts(self, worker: WorkerState) -> tuple[int, ...]:
        """A batch; a text that failed before goes alone."""
        queue = self._board.text_queue
        first = self._pop(queue, Stage.ENCODE_TEXT, worker)
        if first is None:
            return ()
        items = [first]
        suspect = self._failures and self._failures.is_suspect((Stage.ENCODE_TEXT, first))
        while queue and len(items) < self._limits.text_batch and not suspect:
            if self._failures and self._failures.is_suspect((Stage.ENCODE_TEXT, queue[0])):
                break
            items.append(queue.popleft())
        return tuple(items)

    def _run(
        self, worker: WorkerState, stage: Stage, kind: int, items: tuple[int, ...], reason: Reason, now: float,
        attempt: int = 0,
    ) -> None:  # fmt: skip
        failures, fleet = self._failures, self._fleet
        alone = bool(items) and failures.runs_alone((stage, items[0]))
        swap = fleet.swap(worker, stage, kind, alone=alone)
        units = 1.0
        if stage is Stage.ENCODE_TEXT:
            units = float(self._board.workload.text_tokens[list(items)].sum())
        if not attempt:
            attempt = max((failures.attempt((stage, item)) for item in items), default=1) if failures else 1
        task = Task(stage=stage, items=items, attempt=attempt)
        run = RunTask(
            worker=worker.name, task=task, components=swap.components, model_name=swap.model_name, reason=reason
        )
        self._leave_group(worker.number)
        worker.running, worker.kind, worker.units, worker.started_s = run, kind, units, now
        worker.work_s = fleet.work_seconds(worker, stage, kind, units) if items else 0.0
        worker.load_s = fleet.swap_seconds(worker.device, swap)
        worker.resident, worker.model_name = swap.components, swap.model_name
        fleet.busy += 1
        self._changes += 1
        self._out.append(run)

    # --- admission

    def _admit(self) -> None:
        """Let in as many clips as may have their texts encoded ahead."""
        board, limits = self._board, self._limits
        gb = limits.embeddings_gb + _EMBEDDINGS_GB_PER_WORKER * len(self._fleet.workers)
        ahead = max(2 * self._denoisers, int(gb / (_EMBEDDING_GB_PER_TOKEN * self._mean_tokens)))
        left = {kind: board.unseen(kind) for kind in self._kinds if self._placeable[kind]}
        total = sum(left.values())
        for kind, unseen in left.items():
            if not unseen:
                continue
            counts = board.counts[kind]
            share = max(8, ahead * unseen // total)
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
            expected = board.counts[kind][ClipState.WAITING] if self._placeable[kind] else 0
            expected -= self._preloading.get(kind, 0) + self._idle_with_model(kind)
            while expected > 0 and self._preload_one(kind, expected, now):
                expected -= 1

    def _idle_with_model(self, kind: int) -> int:
        name = self._board.workload.kinds[kind].model_name
        return sum(len(group) for (_, _, model, _), group in self._idle.items() if model == name)

    def _preload_one(self, kind: int, expected: int, now: float) -> bool:
        candidates = []
        name = self._board.workload.kinds[kind].model_name
        for (device, _, model, _), group in self._idle.items():
            if model == name or not self._fleet.fits(device, Stage.DENOISE, kind):
                continue
            worker = self._fleet.workers[next(iter(group))]
            swap_s = self._fleet.swap_seconds(device, self._fleet.swap(worker, Stage.DENOISE, kind))
            work_s = self._fleet.work_seconds(worker, Stage.DENOISE, kind)
            owed = worker.started - worker.decoded
            candidates.append(
                Candidate(
                    worker.number, device, Stage.DENOISE, kind, expected, work_s, swap_s, False, worker.started, owed
                )
            )
        chosen = self._choose(tuple(candidates), now).candidate if candidates else None
        if chosen is None:
            return False
        self._preloading[kind] = self._preloading.get(kind, 0) + 1
        self._run(self._fleet.workers[chosen.worker], Stage.DENOISE, kind, (), Reason.PRELOAD, now)
        return True

    def copies(self, stage: Stage, item: int) -> bool:
        """Whether a copy of the item still runs."""
        return (stage, item) in self._copies

    def cancel_copies(self, stage: Stage, item: int, reason: Reason) -> None:
        """Stop the copies that still run of an item that is done."""
        for number in self._copies.pop((stage, item), ()):
            running = self._fleet.workers[number].running
            if running is not None:
                self._out.append(Cancel(worker=running.worker, task=running.task, reason=reason))

    def _copy_straggler(self, now: float) -> None:
        """When no clip waits for denoise, an idle worker may overtake the denoise that ends last."""
        totals = self._board.totals
        if totals[ClipState.UNSEEN] or totals[ClipState.WAITING] or totals[ClipState.READY] or not self._idle:
            return
        running = [worker for worker in self._fleet.workers.values() if self._could_be_copied(worker)]
        for slow in sorted(running, key=lambda w: (-w.available_in(now), w.number)):
            self._copy_to_faster(slow, now)

    def _could_be_copied(self, worker: WorkerState) -> bool:
        task = worker.running.task if worker.running else None
        if task is None or task.stage is not Stage.DENOISE or not task.items:
            return False
        return self._board.state[task.items[0]] == ClipState.DENOISING and not self.copies(task.stage, task.items[0])

    def _copy_to_faster(self, slow: WorkerState, now: float) -> None:
        fleet = self._fleet
        if slow.running is None:
            return
        ends = []
        for (device, _, _, _), group in self._idle.items():
            worker = fleet.workers[next(iter(group))]
            if fleet.fits(device, Stage.DENOISE, slow.kind):
                swap_s = fleet.swap_seconds(device, fleet.swap(worker, Stage.DENOISE, slow.kind))
                ends.append((swap_s + fleet.work_seconds(worker, Stage.DENOISE, slow.kind), worker.number))
        if not ends:
            return
        seconds, number = min(ends)
        late_s = slow.started_s + slow.load_s + (1 + _COPY_WHEN_LATE) * slow.work_s
        if now < late_s and slow.available_in(now) < _COPY_MARGIN * seconds:
            self._out.append(WakeAt(time=late_s))
            return
        task = slow.running.task
        self._copies[task.stage, task.items[0]] = [slow.number, number]
        worker = fleet.workers[number]
        worker.started += 1
        self._run(worker, task.stage, slow.kind, task.items, Reason.STRAGGLER_COPY, now, attempt=task.attempt + 1)

    # --- plans

    def _plan_if_due(self, now: float) -> None:
        left = self._board.workload.clips - self._board.ended
        if self._measurements >= self._next_measurements:
            self._next_measurements = 2 * self._measurements
            self._plan_due = True
        if not self._plan_due and self._changes <= _PLAN_EVERY * left:
            return
        self._plan = self._policy.plan(self._cluster(now))
        self._planned_at, self._plan_due, self._changes = now, False, 0
        for number in list(self._key_of):
            self._leave_group(number)
            self._idle_again(self._fleet.workers[number])

    def _cluster(self, now: float) -> Cluster:
        jobs = self._jobs_left()
        classes = len(self._fleet.costs.profiles)
        seconds = np.full((classes, len(jobs)), math.inf)
        for device in self._fleet.devices():
            for j, (stage, kind, _, units) in enumerate(jobs):
                seconds[device, j] = self._fleet.class_seconds(device, stage, kind, units)
        return Cluster(
            jobs=tuple((stage, kind) for stage, kind, _, _ in jobs),
            amounts=np.array([amount for _, _, amount, _ in jobs], dtype=np.float64),
            seconds=seconds,
            workers=tuple(self._fleet.view(worker, now) for worker in self._fleet.workers.values()),
            classes=classes,
        )

    def _jobs_left(self) -> list[tuple[Stage, int, int, float]]:
        """(stage, kind, tasks, units of a task) of what is left to start."""
        board = self._board
        texts = len(board.texts.state) - board.texts.encoded - board.texts.running
        jobs = [(Stage.ENCODE_TEXT, self._text_kind(), max(0, texts), self._mean_tokens)]
        for kind in self._kinds:
            if not self._placeable[kind]:
                continue
            counts = board.counts[kind]
            denoise = counts[ClipState.UNSEEN] + counts[ClipState.WAITING] + counts[ClipState.READY]
            jobs.append((Stage.DENOISE, kind, denoise, 1.0))
            jobs.append((Stage.DECODE, kind, denoise + counts[ClipState.DENOISING] + counts[ClipState.LATENTS], 1.0))
            if board.workload.kinds[kind].has_image:
                jobs.append((Stage.ENCODE_FIRST_FRAME, kind, len(board.frame_queue[kind]), 1.0))
        return jobs

    def eta(self, now: float) -> float | None:
        """Seconds until the end as planned; None while there is no plan."""
        if self._plan.makespan_s <= 0:
            return None
        return max(0.0, self._planned_at + self._plan.makespan_s - now)

    def idle_reasons(self, now: float) -> dict[str, Reason]:
        """Why each idle worker waits."""
        workers = self._fleet.workers
        reasons = {workers[number].name: self._wait_reason for number in self._key_of}
        reasons.update({workers[number].name: Reason.RESTING for number in self._resting})
        return reasons
