"""Runs a job: events go from the executor to the scheduler, the scheduler's actions back to the executor.

The driver itself decides nothing. It knows what a task means (which text, which clip) and writes a clip's row when it ends.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ovi.config import Component
from ovi.geometry import num_frames
from ovi_ray import stages
from ovi_ray.costs import BF16_SIZES, ComponentSizes, DeviceProfile, StageRates
from ovi_ray.errors import WorkersLost
from ovi_ray.events import (
    Action,
    Cancel,
    ClipStatus,
    DataKey,
    DataKind,
    Drop,
    Event,
    Finish,
    RunTask,
    Task,
    TaskDone,
    TaskFailed,
    Tick,
    WakeAt,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.executor import Executor, Outcome
from ovi_ray.ledger import VIDEOS, Ledger
from ovi_ray.limits import Limits
from ovi_ray.orders import Activity, Decode, Denoise, EncodeFirstFrame, EncodeTexts, Preload, Report, Work, WorkerInfo
from ovi_ray.plan import ClipTask, JobPlan
from ovi_ray.scheduler import Progress, Scheduler
from ovi_ray.stages import Stage
from ovi_ray.usage import WorkerTime
from ovi_ray.workload import ClipKind, Workload

POLL_S = 0.5
SHOW_S = 0.5
PATIENCE_S = 60.0  # workers start one by one: a stage that fits on none of the first may fit on the next


@dataclass(kw_only=True, slots=True, frozen=True)
class RunningTask:
    """What a worker is at, for display."""

    task: Task
    clip_id: str
    """Empty for tasks of no single clip."""
    activity: Activity | None


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipEnded:
    """A clip that ended just now, for display."""

    clip_id: str
    row: int
    status: ClipStatus
    error: str
    video_path: str | None


@dataclass(kw_only=True, slots=True, frozen=True)
class JobSnapshot:
    """How far a job is, for display."""

    elapsed_s: float
    progress: Progress
    workers: dict[str, WorkerInfo]
    running: dict[str, RunningTask]
    ended: tuple[ClipEnded, ...]
    """Clips that ended since the last snapshot."""


Observer = Callable[[JobSnapshot], None]
Explain = Callable[[float, Action], None]


class Driver:
    """One run of a plan. `run` returns when every clip has ended."""

    def __init__(
        self,
        plan: JobPlan,
        executor: Executor,
        ledger: Ledger,
        *,
        dtype: str,
        observer: Observer | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._plan = plan
        self._executor = executor
        self._ledger = ledger
        self._dtype = dtype
        self._observer = observer
        self._explain = explain
        self._scheduler = Scheduler(workload_of(plan), limits=Limits(patience_s=PATIENCE_S))
        self._infos: dict[str, WorkerInfo] = {}
        self._joined_at: dict[str, float] = {}
        self._times: dict[str, WorkerTime] = {}
        self._running: dict[str, Task] = {}
        self._facts: dict[int, dict[str, Any]] = {}  # of clips that are under way
        self._text_s = np.zeros(plan.texts.num_rows)
        self._frame_s = np.zeros(plan.first_frames.num_rows)
        self._ended: list[ClipEnded] = []
        self._wake_at = float("inf")
        self._started = time.monotonic()
        self._shown_at = -SHOW_S

    def run(self) -> None:
        """Render every clip of the plan; what is finished is in the ledger however this ends.

        Raises WorkersLost when no worker is left and none comes back.
        """
        try:
            self._handle([])
            while not self._scheduler.done:
                self._handle(self._next_events())
                self._ledger.flush_if_due()
                self._show()
                if self._executor.is_empty and not self._scheduler.done:
                    raise WorkersLost(f"no worker is left, and none starts: {self._executor.last_death}")
        finally:
            self._ledger.flush()

    def progress(self) -> Progress:
        """How far the job is."""
        return self._scheduler.progress()

    def worker_times(self) -> tuple[WorkerTime, ...]:
        """What each worker did with its time so far, those that were lost too."""
        for worker, joined_at in self._joined_at.items():
            self._times[worker].held_s = self._now() - joined_at
        return tuple(self._times.values())

    def _now(self) -> float:
        return time.monotonic() - self._started

    # -- events ----------------------------------------------------------------------------------------------------

    def _next_events(self) -> list[Event]:
        happened = self._executor.poll(max(0.0, min(POLL_S, self._wake_at - self._now())))
        events = [
            self._note(item) if isinstance(item, Outcome) else self._join(item.worker, item.info) for item in happened
        ]
        if self._now() >= self._wake_at:
            self._wake_at = float("inf")
            events.append(Tick())
        return events

    def _join(self, worker: str, info: WorkerInfo) -> Event:
        self._infos[worker] = info
        self._joined_at[worker] = self._now()
        self._times[worker] = WorkerTime(worker=worker, node=info.node, device=info.device)
        return WorkerJoined(worker=worker, device=device_profile(info, self._dtype))

    def _note(self, outcome: Outcome) -> Event:
        """Remember what a clip's row will say of a task that ended."""
        event = outcome.event
        match event:
            case TaskDone(worker=worker, task=task) | TaskFailed(worker=worker, task=task) if (
                outcome.report is not None
            ):
                self._running.pop(worker, None)
                self._times[worker].add(task.stage, outcome.report.seconds, outcome.report.load_seconds)
                if isinstance(event, TaskDone):
                    self._note_done(task, worker, outcome.report)
            case WorkerLost(worker=worker):
                self._running.pop(worker, None)
                self._leave(worker)
        return event

    def _leave(self, worker: str) -> None:
        self._times[worker].held_s = self._now() - self._joined_at.pop(worker)

    def _note_done(self, task: Task, worker: str, report: Report) -> None:
        info = self._infos[worker]
        match task.stage:
            case Stage.ENCODE_TEXT:
                self._text_s[list(task.items)] = report.seconds / len(task.items)
            case Stage.ENCODE_FIRST_FRAME:
                self._frame_s[list(task.items)] = report.seconds
            case Stage.DENOISE if task.items:
                where = {"worker": worker, "node": info.node, "device": info.device}
                self._facts[task.items[0]].update(report.facts, **where, denoise_s=report.seconds)
            case Stage.DECODE:
                self._facts[task.items[0]].update(report.facts, decode_worker=worker, decode_s=report.seconds)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        for action in self._scheduler.handle(events, self._now()):
            if self._explain is not None:
                self._explain(self._now(), action)
            match action:
                case RunTask():
                    self._run_task(action)
                case Cancel(worker=worker, task=task):
                    self._executor.stop(worker, task)
                case Drop(key=key):
                    self._executor.drop(key)
                case Finish():
                    self._finish(action)
                case WakeAt(time=at):
                    self._wake_at = at

    def _run_task(self, action: RunTask) -> None:
        task = action.task
        work, inputs, outputs = self._work_of(task)
        if task.stage is Stage.DENOISE and task.items:
            facts = self._facts.setdefault(task.items[0], {"attempts": 0})
            facts["attempts"] += 1
        self._running[action.worker] = task
        self._executor.run(
            action.worker,
            task,
            work,
            model_name=action.model_name,
            components=_components(action.components),
            inputs=inputs,
            outputs=outputs,
        )

    def _work_of(self, task: Task) -> tuple[Work, list[DataKey], list[DataKey]]:
        """What a task is, and the names of the data it takes and gives."""
        if not task.items:
            return Preload(), [], []
        first = task.items[0]
        match task.stage:
            case Stage.ENCODE_TEXT:
                texts = tuple(str(self._plan.texts.column("text")[item]) for item in task.items)
                return EncodeTexts(texts=texts), [], [DataKey(kind=DataKind.TEXT, number=item) for item in task.items]
            case Stage.ENCODE_FIRST_FRAME:
                frame = self._plan.first_frames.select(["image_path", "height", "width"]).slice(first, 1).to_pylist()[0]
                return EncodeFirstFrame(**frame), [], [DataKey(kind=DataKind.FIRST_FRAME, number=first)]
            case Stage.DENOISE:
                clip = self._plan.clip(first)
                return Denoise(params=clip.params), _inputs(clip), [DataKey(kind=DataKind.LATENTS, number=first)]
            case Stage.DECODE:
                return self._decode_of(self._plan.clip(first)), [DataKey(kind=DataKind.LATENTS, number=first)], []

    def _decode_of(self, clip: ClipTask) -> Decode:
        parameters = {
            "clip_id": clip.clip_id,
            "prompt": clip.prompt,
            "model_name": clip.model_name,
            **{name: getattr(clip.params, name) for name in clip.params.__dataclass_fields__},
            "dtype": self._dtype,
        }
        return Decode(
            video_path=str(self._ledger.video_path(clip.clip_id).absolute()),
            poster_path=str(self._ledger.poster_path(clip.clip_id).absolute()),
            num_frames=num_frames(clip.video_latent_length),
            title=clip.text_prompt,
            parameters=parameters,
        )

    def _finish(self, action: Finish) -> None:
        clip = self._plan.clip(action.clip)
        facts = self._facts.pop(action.clip, {"attempts": 0})
        done = action.status is ClipStatus.DONE
        video_path = f"{VIDEOS}/{clip.clip_id}.mp4" if done else None
        frame_s = 0.0 if clip.first_frame is None else self._frame_s[clip.first_frame]
        self._ledger.append(
            {
                **{name: getattr(clip, name) for name in _CLIP_COLUMNS},
                **{name: getattr(clip.params, name) for name in ("seed", "sample_steps", "solver_name")},
                **facts,
                "status": str(action.status),
                "error": action.error or None,
                "video_path": video_path,
                "dtype": self._dtype,
                "encode_s": float(self._text_s[clip.texts[0]] + frame_s),
                "finished_at": datetime.now(UTC),
            }
        )
        self._ended.append(
            ClipEnded(
                clip_id=clip.clip_id, row=clip.row, status=action.status, error=action.error, video_path=video_path
            )
        )

    # -- display ---------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self._observer is None or (self._now() < self._shown_at + SHOW_S and not self._scheduler.done):
            return
        self._shown_at = self._now()
        activities = self._executor.activities()
        running = {
            worker: RunningTask(task=task, clip_id=self._clip_id(task), activity=activities.get(worker))
            for worker, task in self._running.items()
        }
        snapshot = JobSnapshot(
            elapsed_s=self._now(),
            progress=self.progress(),
            workers=dict(self._infos),
            running=running,
            ended=tuple(self._ended),
        )
        self._ended.clear()
        self._observer(snapshot)

    def _clip_id(self, task: Task) -> str:
        if task.stage in (Stage.DENOISE, Stage.DECODE) and task.items:
            return str(self._plan.clips.column("clip_id")[task.items[0]])
        return ""


_CLIP_COLUMNS = ("clip_id", "row", "repeat", "text_prompt", "prompt", "image_path", "model_name", "height", "width")


def workload_of(plan: JobPlan) -> Workload:
    """The plan as the scheduler sees it: clips of the same cost share a kind."""
    names = ("model_name", "height", "width", "video_latent_length", "sample_steps")
    columns = [plan.clips.column(name).to_pylist() for name in names]
    has_image = (plan.clip_first_frame >= 0).tolist()
    number_of: dict[tuple[Any, ...], int] = {}
    clip_kind = [number_of.setdefault(key, len(number_of)) for key in zip(*columns, has_image, strict=True)]
    kinds = [ClipKind(**dict(zip((*names, "has_image"), key, strict=True))) for key in number_of]
    with_frame = np.flatnonzero(plan.clip_first_frame >= 0)
    frame_kind = np.zeros(plan.first_frames.num_rows, np.int32)
    frame_kind[plan.clip_first_frame[with_frame]] = np.asarray(clip_kind, np.int32)[with_frame]
    return Workload(
        kinds=tuple(kinds),
        clip_kind=np.asarray(clip_kind, np.int32),
        clip_texts=plan.clip_texts,
        text_tokens=np.array([_tokens(text) for text in plan.texts.column("text").to_pylist()], np.int32),
        clip_first_frame=plan.clip_first_frame,
        first_frame_kind=frame_kind,
    )


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """A worker's device as the scheduler sees it; its speeds are a first guess that measuring corrects.

    A smaller model than the published one does less work for the same clip: the guess is scaled by its weights.
    """
    bytes_per_weight = 4 if dtype == "float32" else 2
    sizes = ComponentSizes(
        text_encoder=info.component_gb[Component.TEXT_ENCODER],
        transformer=info.component_gb[Component.TRANSFORMER],
        video_vae=info.component_gb[Component.VIDEO_VAE],
        audio_vae=info.component_gb[Component.AUDIO_VAE] + info.component_gb[Component.VOCODER],
    )
    rate = _CPU_TFLOPS if info.vendor == "cpu" else _GPU_TFLOPS

    def scaled(component: stages.Component) -> float:
        return rate * BF16_SIZES.of(component) * bytes_per_weight / 2 / sizes.of(component)

    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        sizes=sizes,
        rates=StageRates(
            encode_text=scaled(stages.Component.TEXT_ENCODER),
            encode_first_frame=scaled(stages.Component.VIDEO_VAE),
            denoise=scaled(stages.Component.TRANSFORMER),
            decode=scaled(stages.Component.VIDEO_VAE),
        ),
    )


_CPU_TFLOPS = 0.05
_GPU_TFLOPS = 150.0


def _tokens(text: str) -> int:
    """About how many tokens a text has: enough to balance batches."""
    return 1 + len(text) // 4


def _inputs(clip: ClipTask) -> list[DataKey]:
    texts = [DataKey(kind=DataKind.TEXT, number=number) for number in clip.texts]
    if clip.first_frame is None:
        return texts
    return [*texts, DataKey(kind=DataKind.FIRST_FRAME, number=clip.first_frame)]


def _components(wanted: frozenset[stages.Component]) -> frozenset[Component]:
    own = {Component(component) for component in wanted}
    return frozenset(own | {Component.VOCODER}) if Component.AUDIO_VAE in own else frozenset(own)
