"""Speculative execution of straggler tasks: at the end of a job, an idle worker runs a copy of a denoise that is late.

The first result is used, and the other worker is told to stop.
"""

from dataclasses import dataclass

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel, WakeAt
from ovi_ray.scheduling.config import SpeculationConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.retry_tracker import Item
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

    def __init__(self, job: JobState, pool: WorkerPool, config: SpeculationConfig) -> None:
        self._job = job
        self._pool = pool
        self._config = config
        self._runners: dict[Item, list[int]] = {}
        """Item that was copied -> workers that still run it."""

    # --- queries

    def runs_elsewhere(self, stage: Stage, item: int) -> bool:
        """Whether another worker still runs a copy of an item, after the caller's has ended."""
        return (stage, item) in self._runners

    def propose(self, now: float) -> Speculation:
        """Look for a worker that would overtake the task that should end last, then the one before it, and so on."""
        totals, wakes = self._job.totals, list[WakeAt]()
        if (
            not self._config.enabled
            or totals[ClipState.PENDING]
            or totals[ClipState.WAITING]
            or totals[ClipState.READY]
        ):
            return Speculation()
        running = [worker for worker in self._pool.workers.values() if self._is_original(worker)]
        for slow in sorted(running, key=lambda worker: (-worker.expected_end_s, worker.number)):
            fastest, seconds = self._fastest_other(slow, now)
            if fastest is None:
                continue
            late_at = slow.expected_end_s + self._config.late_share * slow.work_s
            if now >= late_at or slow.expected_end_s - now >= self._config.speedup * seconds:
                return Speculation(copy_on=fastest, original=slow, wakes=tuple(wakes))
            wakes.append(WakeAt(time=late_at))
        return Speculation(wakes=tuple(wakes))

    def _is_original(self, worker: WorkerState) -> bool:
        """Whether the worker runs a denoise that has no copy and whose result is still awaited."""
        task = worker.running.task if worker.running else None
        if task is None or task.stage is not Stage.DENOISE or not task.items:
            return False
        return self._job.is_running(task.stage, task.items[0]) and not self.runs_elsewhere(task.stage, task.items[0])

    def _fastest_other(self, slow: WorkerState, now: float) -> tuple[WorkerState | None, float]:
        """The worker that would end a copy first, if it is idle, and the seconds it would take."""
        numbers = self._pool.arrays.numbers()
        ends = np.where(numbers == slow.number, np.inf, self._pool.end_times(Stage.DENOISE, slow.kind, now))
        seconds = float(ends.min())
        best = self._pool.workers[int(numbers[int(ends.argmin())])]
        return (best if np.isfinite(seconds) and best.running is None else None), seconds

    # --- changes

    def started(self, item: Item, original: WorkerState, copy: WorkerState) -> None:
        """A copy of an item has started."""
        self._runners[item] = [original.number, copy.number]

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
