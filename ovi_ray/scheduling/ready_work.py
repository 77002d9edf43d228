"""The tasks that could start now, and the choice of the items for one that does."""

from collections import deque
from typing import NamedTuple

from ovi.stages import INPUT_STAGES, STAGES, Stage
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.replanner import Replanner
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState

_BATCHED_INPUTS = tuple(stage for stage in INPUT_STAGES if STAGES[stage].batched)
_SINGLE_INPUTS = tuple(stage for stage in INPUT_STAGES if not STAGES[stage].batched)


class ReadyTasks(NamedTuple):
    """Tasks of one stage and kind that could start now."""

    stage: Stage
    kind: int
    waiting: int
    """How many."""
    units: float
    """Expected tokens of each when the stage is batched, else 1."""
    urgent: bool
    """Workers that denoise will soon wait for the result."""
    optional: bool
    """Enough is encoded ahead: not worth a swap on a device that can denoise."""


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
                    found.append(ReadyTasks(stage, kind, waiting, 1.0, urgent, not urgent))
            if may_denoise and self._replanner.placeable[kind] and (waiting := len(ready[kind])):
                found.append(ReadyTasks(Stage.DENOISE, kind, waiting, 1.0, False, False))
            if waiting := len(denoised[kind]):
                found.append(ReadyTasks(Stage.DECODE, kind, waiting, 1.0, False, False))
        return found

    def _batches(self, stage: Stage) -> list[ReadyTasks]:
        """Full batches at any time; a partial one only when its result is urgent."""
        waiting, largest = self._job.inputs[stage].queued, self._config.text_batch
        urgent = waiting > 0 and self._is_urgent(stage)
        if not urgent and waiting < largest:
            return []
        units = min(waiting, largest) * self._replanner.mean_tokens
        return [ReadyTasks(stage, self._replanner.kind_of_texts, -(-waiting // largest), units, urgent, not urgent)]

    def _is_urgent(self, stage: Stage) -> bool:
        on_the_way = self._job.totals[ClipState.READY] + self._job.inputs[stage].running
        return on_the_way < self._replanner.denoisers

    @property
    def max_latents(self) -> int:
        """Clips denoised or being denoised that may wait for decode."""
        return self._config.max_latents or 2 * len(self._pool.workers) + 8

    def _has_room_for_latents(self) -> bool:
        return self._job.new_latents + self._job.totals[ClipState.DENOISING] < self.max_latents

    def may_run(self, worker: WorkerState, stage: Stage, item: int) -> bool:
        """Whether the item's earlier failures allow it to run on a worker."""
        key = (stage, item)
        if not self._retries.has_failed(key):
            return True
        return worker.breaker.accepts_retries and self._retries.allows(key, worker.slot, self._pool.memory_gb(worker))

    def may_run_somewhere(self, stage: Stage, kind: int, item: int) -> bool:
        """Whether a worker in service may run the item."""
        workers = self._pool.workers.values()
        return any(self._pool.fits(w, stage, kind) and self.may_run(w, stage, item) for w in workers)

    def is_declined(self, worker: WorkerState, task: ReadyTasks) -> bool:
        """Whether the task would make a device that can denoise swap its components for optional work."""
        if not task.optional or not self._pool.capabilities.can_denoise(worker.device_class):
            return False
        return bool(self._pool.swap(worker, task.stage, task.kind).loads)

    # --- taking items

    def take(self, stage: Stage, kind: int, worker: WorkerState) -> tuple[int, ...]:
        """Take the items of a task from their queue and mark them as running; empty when none may run on the worker."""
        if STAGES[stage].batched:
            items = self._take_batch(stage, worker)
        else:
            item = self._pop(self._job.queue(stage, kind), stage, worker)
            items = () if item is None or self._discard_if_unneeded(stage, item) else (item,)
        for item in items:
            self._job.start(stage, item)
        return items

    def _discard_if_unneeded(self, stage: Stage, item: int) -> bool:
        table = self._job.inputs.get(stage)
        return table is not None and table.discard_if_unneeded(item)

    def _pop(self, queue: deque[int], stage: Stage, worker: WorkerState) -> int | None:
        if not self._retries:
            return queue.popleft() if queue else None
        for position in range(min(len(queue), self._config.look_ahead)):
            if self.may_run(worker, stage, queue[position]):
                item = queue[position]
                del queue[position]
                return item
        return None

    def _take_batch(self, stage: Stage, worker: WorkerState) -> tuple[int, ...]:
        """Items for one batch. An item that failed before gets a batch of its own."""
        queue, items = self._job.inputs[stage].queues[0], list[int]()
        while queue and len(items) < self._config.text_batch:
            if items and self._retries.has_failed((stage, queue[0])):
                break
            item = self._pop(queue, stage, worker)
            if item is None:
                break
            if self._discard_if_unneeded(stage, item):
                continue
            items.append(item)
            if self._retries.has_failed((stage, item)):
                break
        return tuple(items)
