"""A worker: one pipeline on one device, behind a Ray actor. It does what it is told and reports failures as data."""

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ovi import OviPipeline
from ovi.attention import AttentionBackend
from ovi.config import Component, SamplingParams
from ovi.errors import CheckpointError, DenoiseStopped, InvalidRequest
from ovi.media.video import VideoWriter, frames_to_uint8, write_poster
from ovi.memory.plan import MemoryMode
from ovi.memory.release import release_memory
from ovi.sampling.denoise import DenoiseState
from ovi.stages import STAGES, Stage
from ovi.types import Latents, PromptEmbeds
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.memory import component_sizes, plan_device
from ovi_ray.devices.probe import describe_device
from ovi_ray.errors import LatentsUnusable
from ovi_ray.protocol.messages import (
    Activity,
    Cause,
    Decode,
    Denoise,
    EncodeFirstFrame,
    EncodeTexts,
    Failure,
    Order,
    Preload,
    Report,
    WorkerInfo,
)
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.diagnostics import storage_error
from ovi_ray.storage.paths import staged_file, to_location
from ovi_ray.storage.scratch import remove_old_scratch
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.workers.denoise_checkpoint import DenoiseKeeper
from ovi_ray.workers.first_frame import first_frame_file
from ovi_ray.workers.oom_fallback import AS_IT_IS, DENOISE_LADDER, Rung, decode_ladder, descend
from ovi_ray.workers.tensor_files import load_tensors
from ovi_ray.workers.tensor_transport import Packed, pack, unpack

Facts = dict[str, object]
CONTROL = "control"  # concurrency group of the methods that answer while a task runs


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerConfig:
    """What a worker needs to start."""

    ckpt_dir: str
    """A folder that every node reaches under this path, or a URI."""
    model_name: str
    """The model it opens with; an order may name another."""
    dtype: str
    device: str
    """cpu or cuda (which is ROCm's name too)."""
    num_threads: int
    """Threads of the CPU's kernels and of the video encoder."""
    memory_gb: float | None = None
    """GB the worker may use; None for all that its device has."""
    attention: AttentionBackend = AttentionBackend.SDPA
    allow_inexact: bool = False
    """Whether `auto` may take attention that changes pixels."""
    weights: WeightFormat = WeightFormat.DTYPE
    """How the transformer's weights are stored."""
    cpu_offload: bool = False
    """Whether components always wait in the host's memory, whatever the plan says."""
    declared: DeviceProfile | None = None
    """What the cluster profile says of the device."""
    host_gb: float | None = None
    """GB of the host's memory that components may wait in; None for all of it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Done:
    """What a task gave and what there is to say of it."""

    given: list[Packed | None] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    storage_error: str = ""


class Worker:
    """Runs one task at a time; `stop` and `activity` answer meanwhile."""

    def __init__(self, config: WorkerConfig) -> None:
        remove_old_scratch()
        torch.set_num_threads(config.num_threads)
        self._config = config
        self._pipeline = OviPipeline.from_pretrained(
            self._fetched(config.model_name),
            config.model_name,
            device=config.device,
            dtype=getattr(torch, config.dtype),
            attention_backend=config.attention,
            allow_inexact=config.allow_inexact,
            weights=config.weights,
        )
        self._plan = plan_device(self._pipeline, memory_gb=config.memory_gb, host_gb=config.host_gb)
        self._offloads = config.cpu_offload or self._plan.mode is MemoryMode.OFFLOADED
        self._given_back: set[str] = set()  # videos whose decode ran out of memory here
        self._stopped = 0
        self._saves = False  # a denoise that is stopped keeps its state
        self._activity = Activity(done=0, total=0)

    # -- control: answered while a task runs -----------------------------------------------------------------------

    @ray.method(concurrency_group=CONTROL)
    def describe(self) -> WorkerInfo:
        """The worker's device and what the model's components take on it."""
        device = describe_device(self._pipeline.device)
        return WorkerInfo(
            node=socket.gethostname(),
            pid=os.getpid(),
            device=device.name,
            vendor=device.vendor,
            architecture=device.architecture,
            memory_gb=self._config.memory_gb or device.usable_gb,
            component_gb=component_sizes(self._pipeline.ckpt_dir, self._pipeline.dtype, self._config.weights),
            declared=self._config.declared,
        )

    @ray.method(concurrency_group=CONTROL)
    def activity(self) -> Activity:
        """How far the running task is."""
        return self._activity

    @ray.method(concurrency_group=CONTROL)
    def stop(self, number: int, save: bool = False) -> None:
        """Ask that order to stop at its next step; one that has ended or that cannot stop is left alone.

        `save` keeps the state of a denoise, so that another worker can continue it.
        """
        self._saves = save
        self._stopped = number

    # -- tasks -----------------------------------------------------------------------------------------------------

    def run(self, order: Order, *inputs: Packed) -> Any:
        """Do one task. Returns its report and then what it gives, one object each: nothing in place of a failure's."""
        outputs = _num_outputs(order)
        try:
            load_seconds = _timed(lambda: self._make_resident(order))
            started = time.perf_counter()
            done = self._work(order, inputs)
            given = done.given
            report = Report(
                seconds=time.perf_counter() - started,
                load_seconds=load_seconds,
                facts=done.facts,
                notes=done.notes,
                storage_error=done.storage_error,
            )
        except Exception as error:  # whatever it is, the driver decides what it means for the clip
            report, given = Report(seconds=0.0, failure=_failure(error)), [None] * outputs
            release_memory(self._pipeline.device)
        self._activity = Activity(done=0, total=0)
        return (report, *given) if outputs else report

    def _make_resident(self, order: Order) -> None:
        if order.model_name and order.model_name != self._pipeline.spec.name:
            self._fetched(order.model_name)
            self._pipeline.use_model(order.model_name)
        self._put_away(self._pipeline.loaded - order.components)
        self._pipeline.load(order.components)

    def _fetched(self, model_name: str) -> Path:
        """The checkpoint folder, or this machine's copy of one in a store, with the files of a model."""
        return local_checkpoint(to_location(self._config.ckpt_dir), [model_name], self._config.weights)

    def _put_away(self, components: frozenset[Component]) -> None:
        if self._offloads:
            self._pipeline.offload(components)
        else:
            self._pipeline.unload(components)

    def _work(self, order: Order, inputs: tuple[Packed, ...]) -> "_Done":
        match order.work:
            case EncodeTexts(texts=texts):
                return _Done(given=[pack(rows=rows) for rows in self._pipeline.encode_text(texts)])
            case EncodeFirstFrame(image_path=image_path, height=height, width=width, image_sha256=sha256):
                with first_frame_file(image_path, sha256) as path:
                    return _Done(given=[pack(latent=self._pipeline.encode_first_frame(path, (height, width)))])
            case Denoise():
                return self._denoise_once(order, order.work, inputs)
            case Decode():
                return self._decode_given(order.work, inputs)
            case Preload():
                return _Done()

    def _denoise_once(self, order: Order, work: Denoise, inputs: tuple[Packed, ...]) -> "_Done":
        """Denoise a clip, unless its latents are there already."""
        keeper = DenoiseKeeper(work)
        latents, facts = keeper.finished() or (None, {})
        if latents is None:
            latents = self._denoise_with_less(order, work, inputs, keeper)
            attention = self._pipeline.attention_plan(latents.video.shape, latents.audio.shape[0])
            facts = {"attention_backend": str(attention), "denoise_s": keeper.spent_s}
            where = {"node": socket.gethostname(), "device": describe_device(self._pipeline.device).name}
            keeper.save_latents(latents, facts | where)
        return _Done(
            given=[pack(video=latents.video, audio=latents.audio)],
            facts=facts,
            notes=tuple(keeper.notes),
            storage_error=keeper.storage_error,
        )

    def _denoise_with_less(
        self, order: Order, work: Denoise, inputs: tuple[Packed, ...], keeper: DenoiseKeeper
    ) -> Latents:
        """Denoise and, where memory does not suffice, again alone on the device."""

        def attempt(rung: Rung) -> Latents:
            self._make_room(rung, STAGES[Stage.DENOISE].components)
            return self._denoise(order, work.params, inputs, keeper)

        rung, latents = descend(DENOISE_LADDER, attempt, _out_of_memory)
        keeper.notes += _rung_note(work.clip_id, "denoised", rung)
        return latents

    def _make_room(self, rung: Rung, needed: frozenset[Component]) -> None:
        """Before another try: put away what the stage does not need, and defragment."""
        if rung.alone:
            self._put_away(self._pipeline.loaded - needed)
        if rung is not AS_IT_IS:
            release_memory(self._pipeline.device)

    def _denoise(
        self, order: Order, params: SamplingParams, inputs: tuple[Packed, ...], keeper: DenoiseKeeper
    ) -> Latents:
        """Run to the end, from where an earlier denoise of the clip stood; its state is saved when that is due."""
        state = keeper.state()
        while True:
            try:
                return self._denoise_on(order, params, inputs, keeper, state)
            except DenoiseStopped as stopped:
                state = cast(DenoiseState, stopped.state)
                is_asked = self._stopped == order.number
                if not is_asked or self._saves:
                    keeper.save_state(state)
                if is_asked:
                    raise

    def _denoise_on(
        self,
        order: Order,
        params: SamplingParams,
        inputs: tuple[Packed, ...],
        keeper: DenoiseKeeper,
        state: DenoiseState | None,
    ) -> Latents:
        positive, video_negative, audio_negative = (unpack(packed)["rows"] for packed in inputs[:3])
        return self._pipeline.denoise(
            PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative),
            params,
            first_frame=unpack(inputs[3])["latent"] if len(inputs) > 3 else None,
            state=state,
            on_step=self._on_step,
            should_stop=lambda: self._stopped == order.number or keeper.is_due(),
        )

    def _decode_given(self, work: Decode, inputs: tuple[Packed, ...]) -> "_Done":
        if inputs:
            return self._decode_with_less(work, Latents(**unpack(inputs[0])), {})
        tensors, facts = load_tensors(to_location(work.latents_path), clip_id=work.clip_id)
        return self._decode_with_less(work, Latents(**tensors), facts)

    def _decode_with_less(self, work: Decode, latents: Latents, facts: Facts) -> "_Done":
        """Decode, in less and less memory while there is not enough."""
        ladder = decode_ladder(was_given_back=work.video_path in self._given_back)
        try:
            rung, decoded = descend(ladder, lambda rung: self._decode(work, latents, rung), _out_of_memory)
        except Exception as error:
            if _out_of_memory(error):
                self._given_back.add(work.video_path)
            raise
        self._given_back.discard(work.video_path)
        return _Done(facts={**facts, **decoded}, notes=tuple(_rung_note(work.clip_id, "decoded", rung)))

    def _decode(self, work: Decode, latents: Latents, rung: Rung) -> Facts:
        self._make_room(rung, STAGES[Stage.DECODE].components)
        pipeline = self._pipeline.on_cpu() if rung.on_cpu else self._pipeline
        audio = pipeline.decode_audio(latents.audio)
        with staged_file(to_location(work.video_path)) as path:
            self._write_video(work, path, audio, pipeline.decode_video(latents.video, rung.tiling))
            size = path.stat().st_size
        return {"num_frames": work.num_frames, "num_samples": len(audio), "video_bytes": size}

    def _write_video(
        self, work: Decode, path: Path, audio: NDArray[np.float32], chunks: Iterator[torch.Tensor]
    ) -> None:
        """Write the frames as they come, and the poster when the middle one is there."""
        writer = VideoWriter(
            path,
            audio=audio,
            title=work.title,
            parameters=work.parameters,
            threads=self._config.num_threads,
            num_frames=work.num_frames,
        )
        num_frames = 0
        with writer:
            for chunk in chunks:
                frames = frames_to_uint8(chunk)
                if num_frames <= work.num_frames // 2 < num_frames + len(frames):
                    with staged_file(to_location(work.poster_path)) as poster:
                        write_poster(poster, frames[work.num_frames // 2 - num_frames])
                writer.write(frames)
                num_frames += len(frames)
                self._on_step(num_frames, work.num_frames)

    def _on_step(self, done: int, total: int) -> None:
        self._activity = Activity(done=done, total=total)


def failure_kind(error: BaseException) -> FailureKind:
    """Whose fault an exception is."""
    match error:
        case InvalidRequest():
            return FailureKind.BAD_INPUT
        case DenoiseStopped():
            return FailureKind.CANCELLED
        case torch.OutOfMemoryError() | MemoryError():
            return FailureKind.OUT_OF_MEMORY
        case RuntimeError() if any(words in str(error).lower() for words in ("out of memory", "can't allocate memory")):
            return FailureKind.OUT_OF_MEMORY  # HIP's and the CPU allocator's have no class of their own
        case _:
            return FailureKind.ERROR


def _out_of_memory(error: BaseException) -> bool:
    return failure_kind(error) is FailureKind.OUT_OF_MEMORY


def _rung_note(clip_id: str, done: str, rung: Rung) -> list[str]:
    return [] if rung is AS_IT_IS else [f"clip {clip_id} was {done} {rung.name}, after it ran out of memory"]


def _cause(error: BaseException) -> Cause:
    if isinstance(error, LatentsUnusable):
        return Cause.LATENTS
    if isinstance(error, CheckpointError):  # of this machine's copy of the weights: another machine may do better
        return Cause.TASK
    return Cause.STORAGE if storage_error(error) else Cause.TASK


def _failure(error: Exception) -> Failure:
    cause = _cause(error)
    kind = failure_kind(error) if cause is Cause.TASK else FailureKind.CANCELLED
    message = str(error) or type(error).__name__
    return Failure(kind=kind, message=message, traceback=traceback.format_exc(), cause=cause)


def _num_outputs(order: Order) -> int:
    match order.work:
        case EncodeTexts(texts=texts):
            return len(texts)
        case EncodeFirstFrame() | Denoise():
            return 1
        case _:
            return 0


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
