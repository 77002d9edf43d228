"""The tasks that could start now, and the choice of the items for one that does."""

from collections import deque
from typing import NamedTuple

import numpy as np

from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, Stage
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.replanner import Replanner
from ovi_ray.scheduling.retry_tracker import Item, RetryTracker
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState

_BATCHED_INPUTS = tuple(stage for stage in INPUT_STAGES if STAGES[stage].batched)
_SINGLE_INPUTS = tuple(stage for stage in INPUT_STAGES if not STAGES[stage].batched)
_GOLDEN_RATIO = 0.618  # its multiples modulo 1 are far from each other


class ReadyTasks(NamedTuple):
    """Tasks of one stage and kind that could start now."""

    stage: Stage
    kind: int
    waiting: int
    """Number of items."""
    urgent: bool = False
    """Workers that denoise will soon wait for the result."""
    optional: bool = False
    """Enough is encoded ahead: not worth a swap on a device that can denoise."""
    begun: float = 0.0
    """Share of the job's items of this stage that are encoded or being encoded."""


class ReadyWork:
    """The queued tasks, the workers that may run each, and the items that a worker gets."""

    def __init__(
        self, job: JobState, pool: WorkerPool, retries: RetryTracker, replanner: Replanner, config: SchedulerConfig
    ) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._replanner = replanner
        self._config = config
        self._kinds = range(len(job.workload.kinds))
        of_kind = np.array([kind.latents_gb for kind in job.workload.kinds])
        self._mean_latents_gb = float(of_kind[job.workload.clip_kind].mean()) if job.workload.clips else 1.0

    # --- queries

    def tasks(self) -> list[ReadyTasks]:
        """Everything that could start now, by stage and kind."""
        found = [task for stage in _BATCHED_INPUTS for task in self._batches(stage)]
        may_denoise = self._job.totals[ClipState.READY] > 0 and self._has_room_for_latents()
        ready, denoised = self._job.clip_queues[Stage.DENOISE], self._job.clip_queues[Stage.DECODE]
        for kind in self._kinds:
            for stage in _SINGLE_INPUTS:
                if waiting := len(self._job.queue(stage, kind)):
                    urgent = self._is_urgent(stage)
                    found.append(
                        ReadyTasks(stage, kind, waiting, urgent, not urgent, self._job.inputs[stage].share_begun)
                    )
            if may_denoise and self._replanner.placeable[kind] and (waiting := len(ready[kind])):
                found.append(ReadyTasks(Stage.DENOISE, kind, waiting))
            if waiting := len(denoised[kind]):
                found.append(ReadyTasks(Stage.DECODE, kind, waiting))
        return found

    def _batches(self, stage: Stage) -> list[ReadyTasks]:
        """Full batches at any time; a partial one only when its result is urgent."""
        waiting = self._job.inputs[stage].queued
        urgent = waiting > 0 and self._is_urgent(stage)
        if not urgent and waiting < self._config.text_batch:
            return []
        begun = self._job.inputs[stage].share_begun
        return [ReadyTasks(stage, self._replanner.kind_of_texts, waiting, urgent, not urgent, begun)]

    def batch(self, worker: WorkerState, stage: Stage, kind: int) -> int:
        """Items of a batched task on a worker: a slow one gets few, because all of its results come at its end."""
        each_s = self._pool.work_seconds(worker, stage, kind, self._replanner.mean_tokens)
        return max(1, min(self._config.text_batch, int(self._config.text_batch_s / each_s)))

    def tasks_and_units(self, worker: WorkerState, task: ReadyTasks) -> tuple[int, float]:
        """Number of tasks that the waiting items are to a worker, and the expected tokens of each (1 if not batched)."""
        if not STAGES[task.stage].batched:
            return task.waiting, 1.0
        items = min(task.waiting, self.batch(worker, task.stage, task.kind))
        return -(-task.waiting // items), items * self._replanner.mean_tokens

    def _is_urgent(self, stage: Stage) -> bool:
        on_the_way = self._job.totals[ClipState.READY] + self._job.inputs[stage].running
        needed = max(self._replanner.denoisers, self._replanner.clips_ahead.get(stage, 0.0))
        return on_the_way - self._last_clips() < needed

    @property
    def max_latents(self) -> int:
        """Clips denoised or being denoised that may wait for decode."""
        config, workers = self._config, len(self._pool.workers)
        gb = config.latents_gb + config.latents_gb_per_worker * workers
        return config.max_latents or max(workers + 1, int(gb / self._mean_latents_gb))

    def _has_room_for_latents(self) -> bool:
        waiting = self._job.new_latents - self._last_clips()
        return waiting + self._job.totals[ClipState.DENOISING] < self.max_latents

    def may_run(self, worker: WorkerState, stage: Stage, kind: int, item: int) -> bool:
        """Whether the item's earlier failures allow it to run on a worker now."""
        key = (stage, item)
        if not self._retries.has_failed(key):
            return True
        if worker.writing:  # if the worker dies, it must be known at which clip
            return False
        if key in self._retries.last_items and self._job.unstarted > self._last_clips():
            return False
        return self._allows(worker, key) and self._is_best_of_the_able(worker, kind, key)

    def may_run_somewhere(self, stage: Stage, kind: int, item: int) -> bool:
        """Whether a worker may run the item, now or when it is its turn."""
        workers = self._pool.workers.values()
        return any(self._pool.fits(w, stage, kind) and self._allows(w, (stage, item)) for w in workers)

    def _allows(self, worker: WorkerState, key: Item) -> bool:
        return worker.health.of(key[0]).accepts_retries and self._retries.allows(key, worker.slot)

    def _is_best_of_the_able(self, worker: WorkerState, kind: int, key: Item) -> bool:
        """No device is to be preferred for an item that failed: in good health, with memory that may suffice, flawless."""
        stage, rank, most = key[0], self._rank(worker, key), (True, True, True)
        return rank == most or not any(
            self._rank(other, key) > rank and self._pool.fits(other, stage, kind) and self._allows(other, key)
            for other in self._pool.workers.values()
        )

    def _rank(self, worker: WorkerState, key: Item) -> tuple[bool, bool, bool]:
        """The weight of a failure on a device as evidence of an item that failed elsewhere."""
        is_trusted = worker.health.of(key[0]).is_trusted
        has_memory = self._pool.memory_gb(worker) > self._retries.too_small_gb(key)
        return is_trusted, is_trusted and has_memory, worker.health.is_flawless

    def _last_clips(self) -> int:
        """Clips that wait until everything else has started."""
        if not self._retries.last_items:
            return 0
        return sum(s in CLIP_STAGES and not self._job.is_running(s, item) for s, item in self._retries.last_items)

    def is_declined(self, worker: WorkerState, task: ReadyTasks) -> bool:
        """Whether the task would make a device that can denoise swap its components for optional work."""
        if not task.optional or not self._pool.capabilities.can_denoise(worker.device_class):
            return False
        return bool(self._pool.swap(worker, task.stage, task.kind).loads)

    # --- taking items

    def take(self, stage: Stage, kind: int, worker: WorkerState) -> tuple[int, ...]:
        """Take the items of a task from their queue and mark them as running; empty when none may run on the worker."""
        if STAGES[stage].batched:
            items = self._take_batch(stage, kind, worker)
        else:
            item = self._pop(stage, kind, worker)
            items = () if item is None else (item,)
        for item in items:
            self._job.start(stage, item)
        return items

    def _pop(self, stage: Stage, kind: int, worker: WorkerState) -> int | None:
        """Take the next item that is still needed and may run on the worker."""
        queue = self._job.queue(stage, kind)
        while queue:
            if not self._retries:
                item = queue.popleft()
            elif (position := self._position(queue, stage, kind, worker)) is not None:
                item = queue[position]
                del queue[position]
            else:
                return None
            if not self._discard_if_unneeded(stage, item):
                return item
        return None

    def _position(self, queue: deque[int], stage: Stage, kind: int, worker: WorkerState) -> int | None:
        """Place in the queue of the worker's next item, within `look_ahead` of where it begins to look, or of the front."""
        for start in (self._start(queue, stage, worker), 0):
            for position in range(start, min(len(queue), start + self._config.look_ahead)):
                if self.may_run(worker, stage, kind, queue[position]):
                    return position
        return None

    def _start(self, queue: deque[int], stage: Stage, worker: WorkerState) -> int:
        """The front of the queue; elsewhere after a crash, because the neighbours of an item that kills workers may do so too.

        Items that come last are moved out of the way.
        """
        for _ in range(len(queue)):
            if (stage, queue[0]) not in self._retries.last_items:
                break
            queue.rotate(-1)
        crashes = worker.health.of(stage).crashes
        return int(len(queue) * (crashes * _GOLDEN_RATIO % 1))

    def _discard_if_unneeded(self, stage: Stage, item: int) -> bool:
        table = self._job.inputs.get(stage)
        return table is not None and table.discard_if_unneeded(item)

    def _take_batch(self, stage: Stage, kind: int, worker: WorkerState) -> tuple[int, ...]:
        """Items for one batch. An item that failed before gets a batch of its own."""
        first = self._pop(stage, kind, worker)
        if first is None:
            return ()
        queue, items, has_failed = self._job.queue(stage, kind), [first], self._retries.has_failed
        alone = has_failed((stage, first))
        most = 1 if alone else self.batch(worker, stage, kind)
        while queue and len(items) < most and not has_failed((stage, queue[0])):
            item = queue.popleft()
            if not self._discard_if_unneeded(stage, item):
                items.append(item)
        return tuple(items)
