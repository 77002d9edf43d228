"""Speculative execution of straggler tasks: at the end of a job, an idle worker runs a copy of a denoise that it would
overtake, that is late, or whose device has not been measured.

The first result is used, and the other worker is told to stop.
"""

import math
from dataclasses import dataclass

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel, WakeAt
from ovi_ray.scheduling.config import SpeculationConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.retry_tracker import Item, RetryTracker
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.task import Reason
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Speculation:
    """The next copy to start, if any, and when to look again at tasks that are not late yet."""

    copy_on: WorkerState | None = None
    """An idle worker that would overtake `original`."""
    original: WorkerState | None = None
    wakes: tuple[WakeAt, ...] = ()


class SpeculativeExecution:
    """The tasks that run twice, and the choice of further ones."""

    def __init__(self, job: JobState, pool: WorkerPool, retries: RetryTracker, config: SpeculationConfig) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._config = config
        self._runners: dict[Item, list[int]] = {}
        """Item that was copied -> workers that still run it, the first one first."""

    # --- queries

    def runs_elsewhere(self, stage: Stage, item: int) -> bool:
        """Whether another worker still runs a copy of an item, after the caller's has ended."""
        return (stage, item) in self._runners

    def propose(self, now: float) -> Speculation:
        """Look for an idle worker that would overtake the task that should end last, then the one before it, and so on.

        While clips are left to denoise, which the idle workers seem too slow for, only one unmeasured device hedges another.
        """
        totals, wakes = self._job.totals, list[WakeAt]()
        if not self._config.enabled or totals[ClipState.PENDING] or totals[ClipState.WAITING]:
            return Speculation()
        only_unmeasured = totals[ClipState.READY] > 0
        if only_unmeasured and any(self._pool.preloading.values()):
            return Speculation()  # the clips may be for the workers that load their transformer
        fastest: dict[int, tuple[WorkerState | None, float]] = {}
        for ends_s, original in self._originals(now):
            if original.kind not in fastest:
                fastest[original.kind] = self._fastest_idle(original.kind, now)
            copy_on, seconds = fastest[original.kind]
            if copy_on is None or self._has_enough_copies(original, copy_on, now):
                continue
            if only_unmeasured and (self._is_measured(original) or self._is_measured(copy_on)):
                continue
            if copy_on.device_class == original.device_class and now < self._late_at(original):
                ends_s = original.expected_end_s  # what is not known of one is not known of the other
            if now + self._config.speedup * seconds <= ends_s:
                return Speculation(copy_on=copy_on, original=original, wakes=tuple(wakes))
            if now < (late_at := self._late_at(original)):
                wakes.append(WakeAt(time=late_at))
        return Speculation(wakes=tuple(wakes))

    def _originals(self, now: float) -> list[tuple[float, WorkerState]]:
        """The denoises whose results are awaited, by when the first of those who run each should end, latest first.

        One that has failed before is not among them: it might fail on a second device too.
        """
        ends: dict[int, tuple[float, WorkerState]] = {}
        for worker in self._pool.workers.values():
            task = worker.running.task if worker.running else None
            if task is None or task.stage is not Stage.DENOISE or not task.items:
                continue
            item = (task.stage, task.items[0])
            if self._job.is_running(*item) and not self._retries.has_failed(item):
                found = (self._ends_by(worker, now), worker)
                ends[task.items[0]] = min(found, ends.get(task.items[0], found), key=lambda run: run[0])
        return sorted(ends.values(), key=lambda run: (run[0] < math.inf, -run[1].expected_end_s, run[1].number))

    def _ends_by(self, worker: WorkerState, now: float) -> float:
        """When a task should end, as far as is known of its device; never when it is late."""
        if now >= self._late_at(worker):
            return math.inf
        return worker.expected_end_s + (self._doubt(worker) - 1) * worker.work_s

    def _late_at(self, worker: WorkerState) -> float:
        return worker.expected_end_s + (self._doubt(worker) - 1 + self._config.late_share) * worker.work_s

    def _doubt(self, worker: WorkerState) -> float:
        return 1.0 if self._is_measured(worker) else self._pool.costs.config.unmeasured_doubt

    def _is_measured(self, worker: WorkerState) -> bool:
        return self._pool.costs.is_measured(worker.device_class, Stage.DENOISE)

    def _has_enough_copies(self, original: WorkerState, copy_on: WorkerState, now: float) -> bool:
        """Whether another copy on a device says no more about the end than those that run already."""
        if self._is_measured(original) and now < self._late_at(original):
            return False
        return len(self._runners_of(original)) > (self._config.max_copies if self._is_measured(copy_on) else 1)

    def _runners_of(self, worker: WorkerState) -> list[int]:
        """The workers that run its task."""
        assert worker.running is not None
        return self._runners.get((Stage.DENOISE, worker.running.task.items[0]), [worker.number])

    def _fastest_idle(self, kind: int, now: float) -> tuple[WorkerState | None, float]:
        """The idle worker that would end a copy first, and the seconds it would take."""
        numbers = self._pool.arrays.numbers()
        ends = self._pool.end_times(Stage.DENOISE, kind, now)
        ends = np.where(self._pool.arrays.available(now) > 0, np.inf, ends)
        seconds = float(ends.min(initial=np.inf))
        if not np.isfinite(seconds):
            return None, seconds
        return self._pool.workers[int(numbers[int(ends.argmin())])], seconds

    # --- changes

    def started(self, item: Item, original: WorkerState, copy: WorkerState) -> int:
        """A copy of an item starts. Returns how many workers have run it at once until now."""
        runners = self._runners.setdefault(item, [original.number])
        runners.append(copy.number)
        return len(runners) - 1

    def expect_first_end(self, copy: WorkerState) -> None:
        """A copy has begun: whoever runs the item is free when the first of them ends."""
        workers = [self._pool.workers[number] for number in self._runners_of(copy)]
        first_s = min(worker.expected_end_s for worker in workers)
        for worker in workers:
            self._pool.supersede(worker, first_s, is_copy=worker is copy or worker.is_copy)

    def ended(self, worker: WorkerState) -> None:
        """A worker's task has ended in any way; called while `running` still says which."""
        run = worker.running
        if run is None or not self._runners or not run.task.items:
            return
        item = (run.task.stage, run.task.items[0])
        runners = self._runners.get(item, [])
        if worker.number in runners:
            runners.remove(worker.number)
            if not runners:
                del self._runners[item]

    def cancel(self, stage: Stage, item: int, reason: Reason) -> list[Cancel]:
        """Stop the other worker that runs an item whose result is not needed any more."""
        if not self._runners:
            return []
        running = [self._pool.workers[number].running for number in self._runners.pop((stage, item), ())]
        return [Cancel(worker=run.worker, task=run.task, reason=reason) for run in running if run is not None]
