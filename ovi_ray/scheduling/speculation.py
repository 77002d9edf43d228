"""Copies of denoises that are late, for the end of a job: the first result wins. Pure."""

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, Cancel, RunTask, WakeAt
from ovi_ray.scheduling.job_state import Board, ClipState
from ovi_ray.scheduling.task import Reason
from ovi_ray.scheduling.worker_pool import Fleet, WorkerState

_COPY_MARGIN = 1.5  # a copy is made of what would take so many times longer than the copy,
_COPY_WHEN_LATE = 0.25  # or is late by this share of its expected time

Item = tuple[Stage, int]


class Stragglers:
    """Which denoises run twice, and which should."""

    def __init__(self, board: Board, fleet: Fleet, out: list[Action]) -> None:
        self._board = board
        self._fleet = fleet
        self._out = out
        self._copies: dict[Item, list[int]] = {}
        """Items that were copied -> workers that still run them."""

    def ended(self, worker: WorkerState) -> None:
        """The worker is about to be free."""
        run = worker.running
        if run is None or not self._copies or not run.task.items:
            return
        runners = self._copies.get((run.task.stage, run.task.items[0]), [])
        if worker.number in runners:
            runners.remove(worker.number)
            if not runners:
                del self._copies[run.task.stage, run.task.items[0]]

    def still_running(self, stage: Stage, item: int) -> bool:
        """Whether another worker still runs the item."""
        return (stage, item) in self._copies

    def cancel(self, stage: Stage, item: int, reason: Reason) -> None:
        """Stop what still runs of an item that is done."""
        for number in self._copies.pop((stage, item), ()):
            running = self._fleet.workers[number].running
            if running is not None:
                self._out.append(Cancel(worker=running.worker, task=running.task, reason=reason))

    def next_copy(self, now: float) -> tuple[WorkerState, RunTask] | None:
        """An idle worker and the running task that it should copy; else None, and a WakeAt for when to look again."""
        totals = self._board.totals
        if totals[ClipState.UNSEEN] or totals[ClipState.WAITING] or totals[ClipState.READY]:
            return None
        running = [worker for worker in self._fleet.workers.values() if self._may_be_copied(worker)]
        for slow in sorted(running, key=lambda worker: (-worker.expected_end_s, worker.number)):
            chosen = self._who_overtakes(slow, now)
            if chosen is not None and slow.running is not None:
                task = slow.running.task
                self._copies[task.stage, task.items[0]] = [slow.number, chosen.number]
                return chosen, slow.running
        return None

    def _may_be_copied(self, worker: WorkerState) -> bool:
        task = worker.running.task if worker.running else None
        if task is None or task.stage is not Stage.DENOISE or not task.items:
            return False
        running = self._board.state[task.items[0]] == ClipState.DENOISING
        return running and not self.still_running(task.stage, task.items[0])

    def _who_overtakes(self, slow: WorkerState, now: float) -> WorkerState | None:
        fleet = self._fleet
        numbers = fleet.numbers()
        ends = np.where(numbers == slow.number, np.inf, fleet.ends(Stage.DENOISE, slow.kind, now))
        seconds = float(ends.min())
        best = fleet.workers[int(numbers[int(ends.argmin())])]
        if not np.isfinite(seconds) or best.running is not None or best.rest_until_s > now:
            return None
        late_s = slow.expected_end_s + _COPY_WHEN_LATE * slow.work_s
        if now < late_s and slow.expected_end_s - now < _COPY_MARGIN * seconds:
            self._out.append(WakeAt(time=late_s))
            return None
        return best
