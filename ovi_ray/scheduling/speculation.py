"""Speculative execution of straggler tasks: at the end of a job, an idle worker runs a copy of a denoise that it would
overtake, that is late, or whose device has not been measured.

The first result is used, and the other worker is told to stop.
"""

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple

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


class _Original(NamedTuple):
    """A running denoise that may be copied."""

    worker: WorkerState
    ends_s: float
    """When it should end, as far as is known of its device; never when it is late."""
    late_s: float
    """When it is late."""
    is_measured: bool
    """Whether a denoise has ended on a device of its class."""


_NOT_DENOISED = (ClipState.PENDING, ClipState.WAITING, ClipState.READY)


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

    def propose(self, now: float, *, hedges: bool = True) -> Speculation:
        """Look for an idle worker that would overtake the task that should end last, then the one before it, and so on.

        While clips are left to denoise, which the idle workers seem too slow for, only one unmeasured device hedges another.
        Without `hedges`, only what is late or would be overtaken if all is as expected is copied, and nothing is waited for.
        """
        totals, wakes = self._job.totals, list[WakeAt]()
        if not self._config.enabled or totals[ClipState.PENDING] or totals[ClipState.WAITING]:
            return Speculation()
        only_unmeasured = totals[ClipState.READY] > 0
        if only_unmeasured and (not hedges or any(self._pool.preloading.values())):
            return Speculation()  # the clips may be for the workers that load their transformer
        fastest = self._fastest_idle(now)
        for original in self._originals(fastest.keys(), now, hedges=hedges) if fastest else ():
            worker, ends_s = original.worker, original.ends_s
            copy_on, seconds = fastest[worker.kind]
            is_copy_measured = self._is_measured(copy_on.device_class)
            if self._has_enough_copies(original, is_copy_measured, now):
                continue
            if only_unmeasured and (original.is_measured or is_copy_measured):
                continue
            if copy_on.device_class == worker.device_class and now < original.late_s:
                ends_s = worker.expected_end_s  # what is not known of one is not known of the other
            if now + self._config.speedup * seconds <= ends_s:
                return Speculation(copy_on=copy_on, original=worker, wakes=tuple(wakes))
            if hedges and now < original.late_s:
                wakes.append(WakeAt(time=original.late_s))
        return Speculation(wakes=tuple(wakes))

    def to_begin_elsewhere(self, device_class: int) -> list[WorkerState]:
        """The workers of a class whose denoises may be stopped while others are left: those that alone run theirs.

        A worker that is faster must be there to begin them.
        """
        totals = self._job.totals
        if not self._config.enabled or not sum(totals[state] for state in _NOT_DENOISED):
            return []
        found = [o.worker for o in self._originals(set(range(len(self._job.workload.kinds))), -math.inf, hedges=False)]
        return [
            w
            for w in found
            if w.device_class == device_class
            and not w.is_assisted
            and len(self._runners_of(w)) == 1
            and self._is_there_a_faster_one(w)
        ]

    def _is_there_a_faster_one(self, worker: WorkerState) -> bool:
        """Whether another worker can run the denoise that a worker runs, and is expected to take less for it."""
        pool, kind = self._pool, worker.kind
        seconds = pool.work_seconds(worker, Stage.DENOISE, kind, worker.units)
        return any(
            pool.fits(other, Stage.DENOISE, kind)
            and pool.work_seconds(other, Stage.DENOISE, kind, worker.units) < seconds
            for other in pool.workers.values()
        )

    def _originals(self, kinds: Set[int], now: float, *, hedges: bool) -> list[_Original]:
        """The denoises of kinds whose results are awaited, each on the worker that should end it first; latest first.

        One that has failed before is not among them: it might fail on a second device too.
        """
        first: dict[int, _Original] = {}
        for worker in self._pool.workers.values():
            task = worker.running.task if worker.running else None
            if task is None or task.stage is not Stage.DENOISE or not task.items or worker.kind not in kinds:
                continue
            if task.assists or worker.is_ending:
                continue
            item = (task.stage, task.items[0])
            if self._job.is_running(*item) and not self._retries.has_failed(item):
                found = self._original(worker, now, hedges=hedges)
                known = first.get(task.items[0])
                if known is None or found.ends_s <= known.ends_s:
                    first[task.items[0]] = found
        return sorted(first.values(), key=lambda o: (o.ends_s < math.inf, -o.worker.expected_end_s, o.worker.number))

    def is_pointless(self, worker: WorkerState, now: float) -> bool:
        """Whether copies of the denoise that a worker runs say and gain nothing: there are none, or it is sure to end first."""
        if worker.superseded_s == math.inf:
            return True
        is_first = not worker.is_copy and worker.expected_end_s <= worker.superseded_s
        return is_first and self._is_measured(worker.device_class) and now < self.late_s(worker)

    def late_s(self, worker: WorkerState) -> float:
        """When the denoise that a worker runs is late, and is copied; never where copies are not allowed."""
        if not self._config.enabled:
            return math.inf
        return worker.expected_end_s + (self._doubt(worker) - 1 + self._config.late_share) * worker.work_s

    def _original(self, worker: WorkerState, now: float, *, hedges: bool) -> _Original:
        late_s, is_measured = self.late_s(worker), self._is_measured(worker.device_class)
        doubt = self._doubt(worker) if hedges and not worker.is_assisted else 1.0  # a hedge parts no pair
        ends_s = math.inf if now >= late_s else worker.expected_end_s + (doubt - 1) * worker.work_s
        return _Original(worker, ends_s, late_s, is_measured)

    def _doubt(self, worker: WorkerState) -> float:
        return 1.0 if self._is_measured(worker.device_class) else self._pool.costs.config.unmeasured_doubt

    def _is_measured(self, device_class: int) -> bool:
        return self._pool.costs.is_measured(device_class, Stage.DENOISE)

    def _has_enough_copies(self, original: _Original, is_copy_measured: bool, now: float) -> bool:
        """Whether another copy on a device says no more about the end than those that run already."""
        if original.is_measured and now < original.late_s:
            return False
        return len(self._runners_of(original.worker)) > (self._config.max_copies if is_copy_measured else 1)

    def _runners_of(self, worker: WorkerState) -> list[int]:
        """The workers that run its task."""
        assert worker.running is not None
        return self._runners.get((Stage.DENOISE, worker.running.task.items[0]), [worker.number])

    def _fastest_idle(self, now: float) -> dict[int, tuple[WorkerState, float]]:
        """Kind of a running denoise -> the idle worker that would end a copy first, and the seconds it would take."""
        arrays = self._pool.arrays
        is_idle = arrays.idle()
        found: dict[int, tuple[WorkerState, float]] = {}
        for kind in {worker.kind for worker in self._pool.workers.values() if worker.runs(Stage.DENOISE)}:
            ends = np.where(is_idle, self._pool.end_times(Stage.DENOISE, kind, now), np.inf)
            position = int(ends.argmin())
            if np.isfinite(ends[position]):
                found[kind] = self._pool.workers[int(arrays.numbers()[position])], float(ends[position])
        return found

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

    def withdraw(self, worker: WorkerState, now: float) -> list[Cancel]:
        """Stop the copies of the denoise that a worker runs, which goes on. They count as runners until they have ended."""
        copies = [self._pool.workers[number] for number in self._runners_of(worker) if number != worker.number]
        self._pool.supersede(worker, math.inf, is_copy=False)
        for copy in copies:
            self._pool.supersede(copy, now, is_copy=True)
        runs = [copy.running for copy in copies]
        return [Cancel(worker=run.worker, task=run.task, reason=Reason.NOT_NEEDED) for run in runs if run is not None]

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
