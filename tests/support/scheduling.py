"""Factories of small clusters and jobs, and a cluster that checks every action, for the scheduler's tests."""

from dataclasses import dataclass, field, replace

import numpy as np

from ovi.config import Component
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.actions import Action, Cancel, Drop, Finish, RunTask, WakeAt
from ovi_ray.scheduling.device_profile import INT8_SIZES, DeviceProfile, StageRates
from ovi_ray.scheduling.events import DataLost, DeviceFree, Event, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import ClipStatus, DataKey, DataKind, Reason
from ovi_ray.scheduling.workload import NO_FRAME, ClipKind, Workload

SMALL = ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50)
LARGE = ClipKind(model_name="960x960_10s", height=960, width=960, video_latent_length=61, sample_steps=50)
IMAGE = ClipKind(
    model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50, has_image=True
)

BIG = DeviceProfile(
    name="80gb",
    vendor="nvidia",
    memory_gb=76.0,
    rates=StageRates(encode_text=200, encode_first_frame=120, denoise=325, decode=120),
    load_gb_per_s=3.0,
)
MIDDLE = DeviceProfile(
    name="24gb",
    vendor="nvidia",
    memory_gb=22.5,
    sizes=INT8_SIZES,
    rates=StageRates(encode_text=60, encode_first_frame=30, denoise=70, decode=30),
    load_gb_per_s=1.2,
)
SMALL_CARD = DeviceProfile(
    name="12gb",
    vendor="nvidia",
    memory_gb=10.8,
    sizes=INT8_SIZES,
    rates=StageRates(encode_text=20, encode_first_frame=10, denoise=20, decode=10),
    load_gb_per_s=1.2,
)
SLOW = DeviceProfile(
    name="unified",
    vendor="amd",
    memory_gb=90.0,
    rates=StageRates(encode_text=20, encode_first_frame=5, denoise=30, decode=5),
)
ENCODER = DeviceProfile(name="encoder", memory_gb=76.0, stages=frozenset({Stage.ENCODE_TEXT}))


def make_workload(
    clips: int = 6,
    *,
    kinds: tuple[ClipKind, ...] = (SMALL,),
    distinct_texts: int = 0,
    with_latents: tuple[int, ...] = (),
) -> Workload:
    """Clips that cycle through the kinds, with distinct prompts by default and two shared negative prompts."""
    prompts = distinct_texts or clips
    kind = np.arange(clips) % len(kinds)
    has_image = np.array([k.has_image for k in kinds])[kind] if clips else np.zeros(0, bool)
    frame_of = np.where(has_image, np.cumsum(has_image) - 1, NO_FRAME)
    return Workload(
        kinds=kinds,
        clip_kind=kind,
        clip_texts=np.stack([np.arange(clips) % prompts, np.full(clips, prompts), np.full(clips, prompts + 1)], axis=1),
        text_tokens=np.full(prompts + 2, 120),
        clip_first_frame=frame_of,
        first_frame_kind=kind[has_image],
        clips_with_latents=np.array(with_latents, dtype=np.int32),
    )


def joins(*, node: str = "", **devices: DeviceProfile) -> list[Event]:
    """One WorkerJoined for each name."""
    return [WorkerJoined(worker=name, device=device, node=node) for name, device in devices.items()]


@dataclass
class CheckedCluster:
    """Applies actions and fails the test when one of them breaks a rule of the scheduler."""

    workload: Workload
    scheduler: Scheduler
    workers: dict[str, DeviceProfile] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    running: dict[str, RunTask] = field(default_factory=dict)
    writing: list[RunTask] = field(default_factory=list)
    """Tasks whose files are written while their workers run others."""
    held: set[DataKey] = field(default_factory=set)
    finished: dict[int, Finish] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    wakes: list[float] = field(default_factory=list)
    log: list[tuple[float, tuple[Event, ...], tuple[Action, ...]]] = field(default_factory=list)
    denoised: list[int] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.held |= {DataKey(kind=DataKind.LATENTS, number=int(c)) for c in self.workload.clips_with_latents}

    def send(self, *events: Event, after: float = 0.0) -> list[Action]:
        """Deliver events; check and apply the returned actions."""
        self.now += after
        for event in events:
            self._note(event)
        actions = self.scheduler.handle(events, self.now)
        self.log.append((self.now, events, tuple(actions)))
        for event in events:
            if isinstance(event, DeviceFree) and event.task in self.scheduler.pool.find(event.worker).writing:
                self.writing.append(self.running.pop(event.worker))
        for action in actions:
            self._apply(action)
        self._check_assists()
        self._check_idle()
        return actions

    def _note(self, event: Event) -> None:
        if isinstance(event, TaskDone | TaskFailed | WorkerLost):
            self.cancelled.discard(event.worker)
        match event:
            case WorkerJoined():
                self.workers[event.worker], self.slots[event.worker] = event.device, event.slot
                self.nodes[event.worker] = event.node
            case WorkerLost():
                self.workers.pop(event.worker, None)
                self.running.pop(event.worker, None)
                self.writing = [run for run in self.writing if run.worker != event.worker]
            case TaskFailed():
                self._end(event)
            case DataLost():
                self.held.discard(event.key)
            case TaskDone():
                self._end(event)
                self._keep_results(event)

    def _end(self, event: TaskDone | TaskFailed) -> None:
        written = [run for run in self.writing if (run.worker, run.task) == (event.worker, event.task)]
        if written:
            self.writing.remove(written[0])
        else:
            del self.running[event.worker]

    def _keep_results(self, event: TaskDone) -> None:
        if event.task.assists:
            return
        output = STAGES[event.task.stage].output
        if output is not None:
            self.held |= {DataKey(kind=output, number=item) for item in event.task.items}
        if event.task.stage is Stage.DENOISE:
            self.denoised.extend(event.task.items)

    def _apply(self, action: Action) -> None:
        match action:
            case RunTask():
                self._check_run(action)
                self.running[action.worker] = action
            case Finish():
                assert action.clip not in self.finished, "a clip ended twice"
                self.finished[action.clip] = action
            case Drop():
                assert action.key in self.held, "dropped a datum that is not there"
                assert not self._in_use(action.key), "dropped a datum that a running task needs"
                self.held.discard(action.key)
            case WakeAt():
                self.wakes.append(action.time)
            case Cancel() if action.worker in self.running:  # else its task ended in the same cycle
                assert self.running[action.worker].task == action.task
                self.cancelled.add(action.worker)

    def given(self) -> list[RunTask]:
        """The tasks that have not ended: those that a device runs, and those whose files are being written."""
        return sorted((*self.running.values(), *self.writing), key=lambda run: (run.worker, str(run.task)))

    def writable(self) -> list[RunTask]:
        """The tasks that a device runs and whose files may be written while it runs others: decodes."""
        return [r for r in self.given() if r not in self.writing and r.task.items and r.task.stage is Stage.DECODE]

    def denoising(self) -> list[RunTask]:
        """The denoises that devices run."""
        return [run for run in self.given() if run.task.items and run.task.stage is Stage.DENOISE]

    def droppable(self) -> list[DataKey]:
        """Data in the object store that no running task needs."""
        return sorted((key for key in self.held if not self._in_use(key)), key=lambda key: (key.kind, key.number))

    def _in_use(self, key: DataKey) -> bool:
        wanted = [run for worker, run in self.running.items() if worker not in self.cancelled]
        wanted += [run for run in self.writing if run.task.stage is Stage.DECODE]  # the write may fail
        return any(key in self._inputs(run.task.stage, item) for run in wanted for item in run.task.items)

    def _inputs(self, stage: Stage, item: int) -> set[DataKey]:
        if stage is Stage.DECODE:
            return {DataKey(kind=DataKind.LATENTS, number=item)}
        if stage is not Stage.DENOISE:
            return set()
        keys = {DataKey(kind=DataKind.TEXT, number=int(text)) for text in self.workload.clip_texts[item]}
        frame = int(self.workload.frames_of_clips[item])
        return keys | ({DataKey(kind=DataKind.FIRST_FRAME, number=frame)} if frame != NO_FRAME else set())

    def _check_run(self, run: RunTask) -> None:
        task, device = run.task, self.workers[run.worker]
        assert run.worker not in self.running, "two tasks on one device"
        assert task.stage in device.stages
        assert STAGES[task.stage].components <= run.components
        assert (run.model_name != "") == (Component.TRANSFORMER in run.components)
        kind = None
        if task.items and task.stage in (Stage.DENOISE, Stage.DECODE):
            kind = self.workload.kinds[self.workload.clip_kind[task.items[0]]]
            assert task.items[0] not in self.finished
        if task.items and task.stage is Stage.ENCODE_FIRST_FRAME:
            kind = self.workload.kinds[self.workload.first_frame_kind[task.items[0]]]
        assert device.needed_gb(task.stage, kind, run.components) <= device.memory_gb, "memory exceeded"
        for item in task.items:
            assert self._inputs(task.stage, item) <= self.held, "an input is not there"

    def _check_assists(self) -> None:
        """A denoise is assisted by one device, like its own and on its node, while it runs there and nowhere else."""
        wanted = [run for worker, run in self.running.items() if worker not in self.cancelled and run.task.items]
        denoises = [run for run in wanted if run.task.stage is Stage.DENOISE]
        for run in (run for run in denoises if run.task.assists):
            leader = self.running[run.leader]
            assert leader.task == replace(run.task, assists=False), "a device assists nobody"
            assert self.workers[run.leader] == self.workers[run.worker]
            assert self.nodes[run.leader] == self.nodes[run.worker] != ""
            others = [other for other in denoises if other not in (run, leader)]
            assert all(other.task.items != run.task.items for other in others), "a denoise is assisted twice, or copied"

    def _check_idle(self) -> None:
        """Every idle worker has a reason."""
        if self.scheduler.done:
            return
        reasons = self.scheduler.idle_reasons()
        assert set(reasons) == set(self.workers) - set(self.running)
        assert all(reason in Reason for reason in reasons.values())

    def finish_all(self, seconds: float = 1.0, limit: int = 10_000) -> None:
        """Complete running tasks, the longest-running first, until the job is done."""
        for _ in range(limit):
            if self.scheduler.done:
                return
            if not self.running and self.writing:
                run = self.writing[0]
                self.send(TaskDone(worker=run.worker, task=run.task, seconds=seconds))
                continue
            if not self.running:
                assert self.wakes, f"nothing runs and no Tick is due: {self.scheduler.idle_reasons()}"
                self.now = max(self.now, self.wakes.pop(0))
                self.send(Tick())
                continue
            worker, run = next(iter(self.running.items()))
            self.send(TaskDone(worker=worker, task=run.task, seconds=seconds), after=seconds)
        raise AssertionError("the job does not end")


def failed(cluster: CheckedCluster) -> dict[int, str]:
    """Clips that ended failed, with their errors."""
    return {clip: end.error for clip, end in cluster.finished.items() if end.status is ClipStatus.FAILED}
