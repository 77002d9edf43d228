"""The workers of a run as the driver knows them: device, running task, time spent."""

import dataclasses
from collections.abc import Mapping
from itertools import chain

from ovi.stages import CLIP_STAGES, Stage
from ovi_ray.protocol.messages import TaskReport, WorkerInfo
from ovi_ray.protocol.progress import WorkDone, WorkerTime
from ovi_ray.scheduling.task import Task


class WorkerRecords:
    """Every worker that joined in this run, lost ones included. Times are seconds on the driver's clock."""

    def __init__(self) -> None:
        self._infos: dict[str, WorkerInfo] = {}
        self._running: dict[str, Task] = {}
        self._writing: dict[str, list[Task]] = {}
        self._times: dict[str, WorkerTime] = {}
        self._timed: set[str] = set()
        self._joined_at: dict[str, float] = {}  # of workers that are alive

    @property
    def infos(self) -> Mapping[str, WorkerInfo]:
        """Worker -> its device and process."""
        return self._infos

    @property
    def work(self) -> Mapping[str, WorkDone]:
        """Worker -> the work that it has finished."""
        return {name: time.work for name, time in self._times.items()}

    @property
    def running(self) -> Mapping[str, Task]:
        """Worker -> the task that its device runs."""
        return self._running

    @property
    def any_alive(self) -> bool:
        """Whether a worker has joined and is not lost."""
        return bool(self._joined_at)

    @property
    def has_unsaved_work(self) -> bool:
        """Whether a task runs that would be costly to repeat; encodes are not."""
        tasks = chain(self._running.values(), *self._writing.values())
        return any(task.items and task.stage in CLIP_STAGES and not task.assists for task in tasks)

    def denoising(self) -> list[tuple[str, Task]]:
        """(worker, task) of each running denoise; not of those that assist one, which end with it."""
        running = self._running.items()
        return [
            (name, task) for name, task in running if task.stage is Stage.DENOISE and task.items and not task.assists
        ]

    def untimed(self) -> list[tuple[str, Task]]:
        """(worker, task) of each running denoise on a worker whose steps have not been timed."""
        return [(name, task) for name, task in self.denoising() if name not in self._timed]

    def steps_timed(self, worker: str) -> None:
        """The pace of a worker is known; what it does from now on is measured at the end of its tasks."""
        self._timed.add(worker)

    def joined(self, worker: str, info: WorkerInfo, now: float) -> None:
        """A worker is ready."""
        self._infos[worker] = info
        self._joined_at[worker] = now
        self._times[worker] = WorkerTime(worker=worker, node=info.node, device=info.device)

    def started(self, worker: str, task: Task) -> None:
        """A worker was given a task."""
        self._running[worker] = task

    def device_free(self, worker: str, task: Task) -> None:
        """A worker's device is done with a task whose file is still being written."""
        self._running.pop(worker, None)
        self._writing.setdefault(worker, []).append(task)

    def ended(self, worker: str, task: Task) -> None:
        """A worker's task ended."""
        if task in self._writing.get(worker, ()):
            self._writing[worker].remove(task)
        else:
            self._running.pop(worker, None)

    def add_time(self, worker: str, task: Task, report: TaskReport) -> None:
        """Count the time that a task took."""
        self._times[worker] = self._times[worker].plus(task.stage, report.seconds, report.load_seconds)

    def succeeded(self, worker: str, task: Task) -> None:
        """Count the items of a task."""
        time = self._times[worker]
        self._times[worker] = dataclasses.replace(time, work=time.work.plus(task))

    def lost(self, worker: str, now: float) -> None:
        """A worker is gone, and its tasks with it."""
        self._running.pop(worker, None)
        self._writing.pop(worker, None)
        held_s = now - self._joined_at.pop(worker)
        self._times[worker] = dataclasses.replace(self._times[worker], held_s=held_s)

    def times(self, now: float) -> tuple[WorkerTime, ...]:
        """Time spent by each worker so far."""
        alive = {name: now - joined_at for name, joined_at in self._joined_at.items()}
        return tuple(
            dataclasses.replace(time, held_s=alive.get(name, time.held_s)) for name, time in self._times.items()
        )
