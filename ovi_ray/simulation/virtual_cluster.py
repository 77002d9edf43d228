"""A virtual clock and a virtual cluster that run the production scheduler.

    outcome = simulate(workload, [VirtualDevice(name="w0", profile=profile)])
    outcome.makespan_s, outcome.busy_s["h100-80gb"][Stage.DENOISE]

The cluster checks the scheduler's actions: one task at a time per device, within its stages and its memory.
"""

import heapq
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ovi.config import Component
from ovi.stages import CLIP_STAGES, STAGES, Stage
from ovi_ray.inputs.cluster_profile import ClusterProfile
from ovi_ray.scheduling.actions import Action, Cancel, Finish, RunTask, WakeAt
from ovi_ray.scheduling.device_profile import ALL_STAGES, COMPONENTS, DeviceProfile
from ovi_ray.scheduling.events import (
    Event,
    SlotClosed,
    StepsTimed,
    TaskDone,
    TaskFailed,
    Tick,
    WorkerExpected,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Task
from ovi_ray.scheduling.workload import Workload

_TIMED_STEPS = 3  # of the first denoise of a device, after which its pace is known
_FAULTY_TASK_S = 1.0  # after which a task on a faulty device fails
_PATIENCE_S = 10.0  # seconds that a denoise may lose to a slow device that assists it
_PAIRED_SHARE = 0.52  # of a step's seconds, on two devices that are equally fast: half, and the exchange


class SimulationError(Exception):
    """The scheduler broke a rule of the cluster, or the cluster cannot finish the job."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Fault:
    """The failure of every task that starts on a device in a time, after a second."""

    stages: frozenset[Stage] = ALL_STAGES
    """Stages whose tasks fail."""
    kind: FailureKind = FailureKind.ERROR
    begins_s: float = 0.0
    ends_s: float = float("inf")


@dataclass(kw_only=True, slots=True, frozen=True)
class VirtualDevice:
    """A device of the virtual cluster. Raises ValueError for a factor or a jitter that is out of range."""

    name: str
    profile: DeviceProfile
    """Profile that the scheduler is given."""
    actual: DeviceProfile | None = None
    """Profile that determines the times; defaults to the declared one."""
    node: str = ""
    """The machine; devices of one class on one machine can share a denoise. Empty where it shares none."""
    joins_at_s: float = 0.0
    leaves_at_s: float = float("inf")
    faulty: tuple[tuple[float, float], ...] = ()
    """(from, to) intervals in seconds: a task that starts inside one fails with an error after a second."""
    faults: tuple[Fault, ...] = ()
    """Other failures, by stage."""
    slowdowns: tuple[tuple[float, float], ...] = ()
    """(from this second on, how many times slower than at first), ascending."""
    jitter: float = 0.0
    """Times vary uniformly by up to this share; the same task on the same device always takes the same time."""

    def __post_init__(self) -> None:
        if any(factor <= 0 for _, factor in self.slowdowns):
            raise ValueError(f"slowdowns of {self.name} are {self.slowdowns!r}; expected positive factors")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter of {self.name} is {self.jitter!r}; expected 0 to less than 1")

    @property
    def actual_profile(self) -> DeviceProfile:
        """Profile that determines the times."""
        return self.actual or self.profile

    def failure(self, stage: Stage, time: float) -> FailureKind | None:
        """The failure of a task that starts at `time`; None when it succeeds."""
        if not self.faulty and not self.faults:
            return None
        if any(begins <= time < ends for begins, ends in self.faulty):
            return FailureKind.ERROR
        faults = (f.kind for f in self.faults if stage in f.stages and f.begins_s <= time < f.ends_s)
        return next(faults, None)

    def varied(self, seconds: float, task: Task) -> float:
        """Seconds of a task that takes `seconds` on average, with jitter."""
        if not self.jitter:
            return seconds
        dice = zlib.crc32(f"{self.name} {task.stage} {task.items[:1]} {task.attempt}".encode()) / 2**32
        return seconds * (1 + self.jitter * (2 * dice - 1))

    def slowness(self, time: float) -> float:
        """Factor at a time on the seconds that work takes at first."""
        return next((factor for begins, factor in reversed(self.slowdowns) if begins <= time), 1.0)

    def work_ends(self, start: float, seconds: float) -> float:
        """The end of work of `seconds` at first speed that starts at `start`."""
        time, factor = start, 1.0
        for begins, next_factor in self.slowdowns:
            if begins > time:
                if time + seconds * factor <= begins:
                    return time + seconds * factor
                seconds -= (begins - time) / factor
                time = begins
            factor = next_factor
        return time + seconds * factor


@dataclass(kw_only=True, slots=True, frozen=True)
class Span:
    """One task on the timeline."""

    worker: str
    device: str
    task: Task
    start_s: float
    load_s: float
    end_s: float


@dataclass(kw_only=True, slots=True, frozen=True)
class Outcome:
    """Result of a simulated job."""

    makespan_s: float
    """Seconds from the start to the end of the last clip."""
    done: int
    failed: int
    decisions: int
    """RunTask actions."""
    busy_s: dict[str, dict[Stage, float]]
    """Device class -> stage -> device-seconds of work, failed tasks included."""
    load_s: dict[str, float]
    """Device class -> device-seconds of unloading and loading."""
    spans: tuple[Span, ...] = ()
    """Every task; empty unless `keep_spans` was set."""


@dataclass(slots=True)
class _Device:
    spec: VirtualDevice
    resident: frozenset[Component] = frozenset()
    model_name: str = ""
    running: RunTask | None = None
    token: int = 0
    """Number of the running task: the scheduled end of a cancelled one has an older number and is ignored."""
    is_timed: bool = False
    """The steps of one of its denoises were timed."""
    load_s: float = 0.0
    """Of the running task."""
    work_from_s: float = 0.0
    """When its work begins; of an assist, when the leader's steps become shorter."""
    share: float = 1.0
    """Of an assist: seconds of the leader's steps over those that they take alone."""
    end_s: float = 0.0
    span: int = -1
    """Its place among the spans."""


@dataclass(slots=True)
class _Tally:
    decisions: int = 0
    busy: dict[str, dict[Stage, float]] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)


class VirtualCluster:
    """Answers the scheduler's actions with events at later times."""

    def __init__(self, workload: Workload, devices: Sequence[VirtualDevice], *, keep_spans: bool = False) -> None:
        self.workload = workload
        self.tally = _Tally()
        self._keep_spans = keep_spans
        self._heap: list[tuple[float, int, str, int, Event]] = []
        self._sequence = 0
        self._devices: dict[str, _Device] = {}
        self._inputs = workload.stage_inputs()
        self._kinds = dict.fromkeys(CLIP_STAGES, workload.clip_kind)  # stage -> [items] kind
        self._kinds |= {stage: inputs.kinds for stage, inputs in self._inputs.items() if inputs.kinds is not None}
        self._seconds: dict[tuple[int, Stage, int], float] = {}  # by the identity of a profile, which the devices keep
        self._allowed: set[tuple[int, Stage, int | None, frozenset[Component]]] = set()
        for spec in devices:
            self._devices[spec.name] = _Device(spec)
            if spec.joins_at_s > 0:
                self._push(0.0, spec.name, 0, WorkerExpected(slot=spec.name))
            joined = WorkerJoined(worker=spec.name, device=spec.profile, node=spec.node)
            self._push(spec.joins_at_s, spec.name, 0, joined)
            if spec.leaves_at_s != float("inf"):
                self._push(spec.leaves_at_s, spec.name, -1, WorkerLost(worker=spec.name, crashed=False))
                self._push(spec.leaves_at_s, spec.name, -1, SlotClosed(slot=spec.name))

    def _push(self, time: float, name: str, token: int, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, name, token, event))

    def next_events(self) -> tuple[float, list[Event]]:
        """The next time with events, and all of its events. Raises SimulationError when there are none left."""
        while self._heap:
            time = self._heap[0][0]
            events = []
            while self._heap and self._heap[0][0] == time:
                _, _, name, token, event = heapq.heappop(self._heap)
                if self._happens(name, token, event, time):
                    events.append(event)
            if events:
                return time, events
        raise SimulationError("no events are left, and the job is not done")

    def _happens(self, name: str, token: int, event: Event, now: float) -> bool:
        if isinstance(event, WorkerLost):
            self._stop_assisting(self._devices[name], now)
            self._devices[name].running = None
            self._devices[name].token += 1
        elif isinstance(event, StepsTimed):
            device = self._devices[name]
            if device.token != token or device.running is None:
                return False
            device.is_timed = True
        elif isinstance(event, TaskDone | TaskFailed):
            device = self._devices[name]
            if device.token != token or device.running is None:
                return False
            self._stop_assisting(device, now)
            device.running = None
        return True

    def apply(self, actions: Iterable[Action], now: float) -> None:
        """Carry out the scheduler's actions at time `now`."""
        for action in actions:
            if isinstance(action, RunTask):
                self._run(action, now)
            elif isinstance(action, Cancel):
                self._cancel(action, now)
            elif isinstance(action, WakeAt):
                self._push(action.time, "", 0, Tick())

    def _cancel(self, action: Cancel, now: float) -> None:
        device = self._devices[action.worker]
        if device.running is not None and device.running.task == action.task:
            device.token += 1
            event = TaskFailed(worker=action.worker, task=action.task, kind=FailureKind.CANCELLED)
            self._push(now, action.worker, device.token, event)

    def _run(self, action: RunTask, now: float) -> None:
        device = self._devices[action.worker]
        if device.running is not None:
            raise SimulationError(f"{action.worker} was given {action.task} while it was running {device.running.task}")
        if action.task.assists:
            self._assist(device, action, now)
            return
        kind = self._kind(action.task)
        seconds = device.spec.varied(self._work(device.spec.actual_profile, action.task, kind), action.task)
        self._check_memory(device.spec.profile, action, kind)
        load = self._load(device, action)
        end = device.spec.work_ends(now + load, seconds)
        event: Event = TaskDone(worker=action.worker, task=action.task, seconds=end - now - load, load_seconds=load)
        if (failure := device.spec.failure(action.task.stage, now)) is not None:
            end = now + load + _FAULTY_TASK_S
            event = TaskFailed(worker=action.worker, task=action.task, kind=failure, message="the device is faulty")
        self._begin(device, action, event, now, load=load, work_from_s=now + load, end=end)
        if action.task.stage is Stage.DENOISE and not device.is_timed and isinstance(event, TaskDone):
            self._time_steps(device, action, kind, now + load, seconds)

    def _begin(
        self, device: _Device, action: RunTask, event: Event, now: float, *, load: float, work_from_s: float, end: float
    ) -> None:
        device.running = action
        device.token += 1
        device.load_s, device.work_from_s, device.end_s = load, work_from_s, end
        self._push(end, action.worker, device.token, event)
        self._count(device, action, now, load, end)

    def _time_steps(self, device: _Device, action: RunTask, kind: int | None, begin: float, seconds: float) -> None:
        """The first denoise of a device tells its pace after a few steps, as a worker's heartbeat does."""
        if kind is None or not self.workload.kinds[kind].tells_its_pace:
            return
        share = _TIMED_STEPS / self.workload.kinds[kind].sample_steps
        timed_at = device.spec.work_ends(begin, share * seconds)
        pace = StepsTimed(worker=action.worker, task=action.task, seconds=(timed_at - begin) / share)
        self._push(timed_at, action.worker, device.token, pace)

    def _assist(self, device: _Device, action: RunTask, now: float) -> None:
        """Half of what is left of the leader's denoise is done here, from the end of the load on."""
        leader = self._leader(action)
        if leader is None or leader.spec.node != device.spec.node or leader.spec.profile != device.spec.profile:
            raise SimulationError(f"{action.worker} cannot assist {action.leader or 'nobody'} with {action.task}")
        self._check_memory(device.spec.profile, action, self._kind(action.task))
        load = self._load(device, action)
        if (failure := device.spec.failure(action.task.stage, now)) is not None:
            end = now + load + _FAULTY_TASK_S
            failed = TaskFailed(worker=action.worker, task=action.task, kind=failure, message="the device is faulty")
            self._begin(device, action, failed, now, load=load, work_from_s=end, end=end)
            return
        joins = max(now + load, leader.work_from_s)
        device.share = share = self._share(leader.spec, device.spec, action.task, joins)
        if leader.end_s > joins:
            self._end_at(leader, joins + (leader.end_s - joins) * share)
        end = max(leader.end_s, now)
        parts = joins + _PATIENCE_S * share / (share - 1) if share > 1 else math.inf
        event: Event = TaskDone(
            worker=action.worker, task=action.task, seconds=max(0.0, end - now - load), load_seconds=load
        )
        if parts < end:  # the leader has lost as much time as it may
            end, event = parts, TaskFailed(worker=action.worker, task=action.task, kind=FailureKind.CANCELLED)
        self._begin(device, action, event, now, load=load, work_from_s=joins, end=end)

    def _share(self, leader: VirtualDevice, helper: VirtualDevice, task: Task, now: float) -> float:
        """A step takes as long as the slower of its two passes, at the speeds at a time."""
        kind = self._kind(task)
        seconds = [self._work(spec.actual_profile, task, kind) * spec.slowness(now) for spec in (helper, leader)]
        return _PAIRED_SHARE * max(1.0, seconds[0] / seconds[1])

    def _leader(self, action: RunTask) -> _Device | None:
        """The device that runs the denoise of a task that assists; None once it has ended."""
        leader = self._devices.get(action.leader)
        if leader is None or leader.running is None or leader.running.task != replace(action.task, assists=False):
            return None
        return leader

    def _stop_assisting(self, device: _Device, now: float) -> None:
        """Its task ends: a leader that still runs does the rest alone."""
        if device.running is None or not device.running.task.assists:
            return
        leader = self._leader(device.running)
        begun = max(now, device.work_from_s)
        if leader is not None and leader.end_s > begun and device.spec.failure(Stage.DENOISE, begun) is None:
            self._end_at(leader, begun + (leader.end_s - begun) / device.share)

    def _end_at(self, device: _Device, end: float) -> None:
        """A running denoise that succeeds ends at another time than it was to."""
        run = device.running
        assert run is not None
        if device.spec.failure(Stage.DENOISE, device.work_from_s - device.load_s) is not None:
            return
        name, tally = device.spec.profile.name, self.tally
        tally.busy[name][Stage.DENOISE] += end - device.end_s
        if self._keep_spans:
            tally.spans[device.span] = replace(tally.spans[device.span], end_s=end)
        device.end_s = end
        device.token += 1
        seconds = end - device.work_from_s
        self._push(
            end,
            run.worker,
            device.token,
            TaskDone(worker=run.worker, task=run.task, seconds=seconds, load_seconds=device.load_s),
        )

    def _count(self, device: _Device, action: RunTask, now: float, load: float, end: float) -> None:
        tally, name = self.tally, device.spec.profile.name
        tally.decisions += 1
        if name not in tally.busy:
            tally.busy[name], tally.loads[name] = dict.fromkeys(Stage, 0.0), 0.0
        tally.busy[name][action.task.stage] += end - now - load
        tally.loads[name] += load
        if self._keep_spans:
            device.span = len(tally.spans)
            tally.spans.append(
                Span(worker=action.worker, device=name, task=action.task, start_s=now, load_s=load, end_s=end)
            )

    def _work(self, actual: DeviceProfile, task: Task, kind: int | None) -> float:
        if not task.items:
            return 0.0
        if kind is None:
            tokens = self._inputs[task.stage].tokens_of(task.items)
            return actual.prior_seconds(task.stage, STAGES[task.stage].tflop(self.workload.kinds[0]) * tokens)
        key = (id(actual), task.stage, kind)
        if key not in self._seconds:
            self._seconds[key] = actual.prior_seconds(task.stage, STAGES[task.stage].tflop(self.workload.kinds[kind]))
        return self._seconds[key]

    def _kind(self, task: Task) -> int | None:
        """The kind of clip that a task is for; None for texts and preloads."""
        if not task.items or task.stage not in self._kinds:
            return None
        return int(self._kinds[task.stage][task.items[0]])

    def _check_memory(self, profile: DeviceProfile, action: RunTask, kind: int | None) -> None:
        key = (id(profile), action.task.stage, kind, action.components)
        if key in self._allowed:
            return
        stage = action.task.stage
        if stage not in profile.stages:
            raise SimulationError(f"{action.worker} does not run {stage}")
        clip = None if kind is None else self.workload.kinds[kind]
        if profile.needed_gb(stage, clip, action.components) > profile.memory_gb:
            raise SimulationError(
                f"{action.worker} has too little memory for {stage} with {sorted(action.components)} resident"
            )
        self._allowed.add(key)

    def _load(self, device: _Device, action: RunTask) -> float:
        actual, there = device.spec.actual_profile, device.resident
        if device.model_name != action.model_name:
            there -= {Component.TRANSFORMER}
        loads = [actual.load_seconds(c) for c in COMPONENTS if c in action.components and c not in there]
        unloads = len(device.resident) - len(there & action.components)
        device.resident, device.model_name = action.components, action.model_name
        return sum(loads) + actual.unload_s * unloads


def virtual_devices(cluster: ClusterProfile) -> list[VirtualDevice]:
    """Every device of a cluster profile, named `class-number`."""
    return [
        VirtualDevice(name=f"{name}-{number}", profile=profile)
        for name, profile in cluster.device_profiles.items()
        for number in range(cluster.devices[name].count)
    ]


def simulate(
    workload: Workload,
    devices: Sequence[VirtualDevice],
    *,
    scheduler: Scheduler | None = None,
    keep_spans: bool = False,
) -> Outcome:
    """Run a job on a virtual cluster to its end, with a new scheduler of its workload; by default the production one.

    Raises SimulationError where the scheduler breaks a rule, or the cluster cannot finish the job.
    """
    scheduler = scheduler or Scheduler(workload)
    cluster = VirtualCluster(workload, devices, keep_spans=keep_spans)
    ended = {ClipStatus.DONE: 0, ClipStatus.FAILED: 0}
    now = 0.0
    while not scheduler.done:
        now, events = cluster.next_events()
        actions = scheduler.handle(events, now)
        cluster.apply(actions, now)
        for action in actions:
            if isinstance(action, Finish):
                ended[action.status] += 1
    if sum(ended.values()) != workload.clips:
        raise SimulationError(f"{workload.clips} clips gave {sum(ended.values())} Finish actions")
    tally = cluster.tally
    return Outcome(
        makespan_s=now,
        done=ended[ClipStatus.DONE],
        failed=ended[ClipStatus.FAILED],
        decisions=tally.decisions,
        busy_s=tally.busy,
        load_s=tally.loads,
        spans=tuple(tally.spans),
    )
