"""The course of a run for the report's charts: a timeline of every device, the finished clips over time, plan and actual."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from ovi.stages import CLIP_STAGES, STAGES
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, RunStarted
from ovi_ray.protocol.progress import JobSnapshot, WorkerTime
from ovi_ray.scheduling.actions import Action, Finish, RunTask
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.events import DeviceFree, Event, TaskDone, TaskFailed, WorkerJoined, WorkerLost
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Task
from ovi_ray.scheduling.workload import Workload

MAX_BARS = 40_000
"""Bars of all lanes together, about."""
MAX_LANE_BARS, MIN_LANE_BARS = 1000, 40
MAX_POINTS = 400
LOAD, FAILED = "load", "failed"

Bar = tuple[str, float, float, int]
"""(kind, start, end, tasks): a run of tasks of one kind, which is a time group, `LOAD` or `FAILED`. Seconds of the run."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Lane:
    """The bars of one worker in order of time."""

    worker: str
    node: str
    device: str
    bars: tuple[Bar, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class StagePlan:
    """Assumed and measured seconds of a stage's tasks on one device class."""

    device_class: str
    stage: str
    tasks: int
    planned_s: float
    """Mean of a task, by the assumed speed."""
    actual_s: float
    """Mean of a task, as measured; loading is left out."""


@dataclass(kw_only=True, slots=True, frozen=True)
class RunCharts:
    """Data of the charts of a run. Times are seconds since its start."""

    lanes: tuple[Lane, ...] = ()
    finished: tuple[tuple[float, int], ...] = ()
    """(time, clips of this run finished by then)."""
    clips: int = 0
    """Clips that the run had to render."""
    planned_s: float | None = None
    """When the run was expected to end, when its first tasks were placed."""
    stages: tuple[StagePlan, ...] = ()
    classes: dict[str, str] = field(default_factory=dict)
    """Worker -> its device class."""


class ChartRecorder(JobObserver):
    """Collects the charts of a run; memory and content stay bounded, however long it is."""

    def __init__(self) -> None:
        self._workload: Workload | None = None
        self._profiles: dict[str, DeviceProfile] = {}
        self._times_of: dict[str, WorkerTime] = {}
        self._joined_at: dict[str, float] = {}  # of workers that are alive
        self._open: dict[str, float] = {}  # worker -> start of its task
        self._written: set[tuple[str, Task]] = set()  # tasks whose files are written while their workers run others
        self._lanes: defaultdict[str, list[Bar]] = defaultdict(list)
        self._finished: list[tuple[float, int]] = [(0.0, 0)]
        self._done = 0
        self._planned_s: float | None = None
        self._times: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._tasks: Counter[tuple[str, str]] = Counter()

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self._workload = run.workload

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        for event in cycle.events:
            self._event(event, cycle.now)
        for action in cycle.carried_out:
            self._action(action, cycle.now)

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        self._times_of[worker] = WorkerTime(worker=worker, node=info.node, device=info.device)

    def progress(self, snapshot: JobSnapshot) -> None:
        """See JobObserver."""
        if self._planned_s is None and snapshot.progress.eta_s:
            self._planned_s = snapshot.elapsed_s + snapshot.progress.eta_s

    def workers(self, now: float) -> tuple[WorkerTime, ...]:
        """Time spent by each worker until now."""
        held = {worker: now - joined_at for worker, joined_at in self._joined_at.items()}
        return tuple(replace(time, held_s=held.get(name, time.held_s)) for name, time in self._times_of.items())

    def charts(self) -> RunCharts:
        """The charts so far."""
        return RunCharts(
            lanes=tuple(
                Lane(worker=time.worker, node=time.node, device=time.device, bars=tuple(self._lanes.get(name, ())))
                for name, time in self._times_of.items()
            ),
            finished=tuple(self._finished),
            clips=0 if self._workload is None else self._workload.clips,
            planned_s=self._planned_s,
            stages=tuple(
                StagePlan(
                    device_class=name,
                    stage=stage,
                    tasks=self._tasks[name, stage],
                    planned_s=planned_s / self._tasks[name, stage],
                    actual_s=actual_s / self._tasks[name, stage],
                )
                for (name, stage), (planned_s, actual_s) in sorted(self._times.items())
            ),
            classes={worker: profile.name for worker, profile in self._profiles.items()},
        )

    def _event(self, event: Event, now: float) -> None:
        match event:
            case WorkerJoined(worker=worker, device=device):
                self._profiles[worker] = device
                self._joined_at[worker] = now
            case DeviceFree(worker=worker, task=task):
                self._worked(event, now)
                self._written.add((worker, task))
            case TaskDone(worker=worker, task=task):
                if (worker, task) in self._written:
                    self._written.remove((worker, task))
                else:
                    self._worked(event, now)
                time = self._times_of[worker]
                self._times_of[worker] = replace(time, work=time.work.plus(task))
            case TaskFailed(worker=worker, task=task, kind=kind):
                if (worker, task) in self._written:
                    self._written.remove((worker, task))
                else:
                    was_stopped = kind is FailureKind.CANCELLED and task.items
                    self._bar(worker, STAGES[task.stage].time_group if was_stopped else FAILED, now)
            case WorkerLost(worker=worker):
                self._written = {written for written in self._written if written[0] != worker}
                self._bar(worker, FAILED, now)
                held_s = now - self._joined_at.pop(worker, now)
                self._times_of[worker] = replace(self._times_of[worker], held_s=held_s)

    def _worked(self, event: DeviceFree | TaskDone, now: float) -> None:
        """A device is done with a task."""
        worker, task = event.worker, event.task
        start = self._open.pop(worker, now)
        worked_from = max(start, min(now, start + event.load_seconds))
        self._add(worker, LOAD, start, worked_from)
        self._times_of[worker] = self._times_of[worker].plus(task.stage, event.seconds, event.load_seconds)
        if task.items:
            self._add(worker, STAGES[task.stage].time_group, worked_from, now)
            self._compare(worker, task, event.seconds)

    def _bar(self, worker: str, kind: str, now: float) -> None:
        """The bar of a worker's task that did not succeed."""
        if worker in self._open:
            self._add(worker, kind, self._open.pop(worker), now)

    def _action(self, action: Action, now: float) -> None:
        match action:
            case RunTask(worker=worker):
                self._open[worker] = now
            case Finish(status=ClipStatus.DONE):
                self._done += 1
                self._finished.append((round(now, 1), self._done))
                if len(self._finished) > 2 * MAX_POINTS:
                    self._finished = [*self._finished[:-1:2], self._finished[-1]]

    def _compare(self, worker: str, task: Task, seconds: float) -> None:
        """Set the measured seconds of a task of a clip beside the assumed ones."""
        if task.stage not in CLIP_STAGES or task.assists or self._workload is None:
            return
        kind = self._workload.kinds[int(self._workload.clip_kind[task.items[0]])]
        profile = self._profiles[worker]
        key = profile.name, str(task.stage)
        self._times[key][0] += profile.prior_seconds(task.stage, STAGES[task.stage].tflop(kind))
        self._times[key][1] += seconds
        self._tasks[key] += 1

    def _add(self, worker: str, kind: str, start: float, end: float) -> None:
        if end <= start:
            return
        lane = self._lanes[worker]
        lane.append((kind, round(start, 2), round(end, 2), 1))
        limit = max(MIN_LANE_BARS, min(MAX_LANE_BARS, MAX_BARS // max(1, len(self._lanes))))
        if len(lane) > 2 * limit:
            self._lanes[worker] = coarser(lane, limit)


def coarser(lane: list[Bar], limit: int) -> list[Bar]:
    """At most `limit` bars: neighbours of one kind become one, across gaps that grow until it is so."""
    gap_s = (lane[-1][2] - lane[0][1]) / 10_000
    while len(lane) > limit:
        merged = lane[:1]
        for bar in lane[1:]:
            last = merged[-1]
            is_short = min(bar[2] - bar[1], last[2] - last[1]) <= gap_s
            if bar[1] - last[2] <= gap_s and (bar[0] == last[0] or is_short):
                longer = max(last, bar, key=lambda one: one[2] - one[1])
                merged[-1] = (longer[0], last[1], bar[2], last[3] + bar[3])
            else:
                merged.append(bar)
        lane, gap_s = merged, 2 * gap_s
    return lane
