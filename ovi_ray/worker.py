"""A worker: one pipeline on one device, behind a Ray actor. It does what it is told and reports failures as data."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from ovi import OviPipeline
from ovi.config import SamplingParams
from ovi.errors import DenoiseStopped, InvalidRequest
from ovi.media import VideoWriter, frames_to_uint8, write_poster
from ovi.memory import release_memory
from ovi.types import Latents, PromptEmbeds
from ovi_ray.devices import component_sizes, describe_device
from ovi_ray.events import FailureKind
from ovi_ray.orders import (
    Activity,
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
from ovi_ray.transport import Packed, pack, unpack

Facts = dict[str, object]
CONTROL = "control"  # concurrency group of the methods that answer while a task runs


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerConfig:
    """What a worker needs to start."""

    ckpt_dir: str
    model_name: str
    """The model it opens with; an order may name another."""
    dtype: str
    device: str
    """cpu or cuda (which is ROCm's name too)."""
    num_threads: int
    """Threads of the CPU's kernels and of the video encoder."""
    memory_gb: float | None = None
    """GB the worker may use; None for all that its device has."""


class Worker:
    """Runs one task at a time; `stop` and `activity` answer meanwhile."""

    def __init__(self, config: WorkerConfig) -> None:
        torch.set_num_threads(config.num_threads)
        self._config = config
        self._pipeline = OviPipeline.from_pretrained(
            config.ckpt_dir, config.model_name, device=config.device, dtype=getattr(torch, config.dtype)
        )
        self._stopped = 0
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
            memory_gb=self._config.memory_gb or device.memory_gb,
            component_gb=component_sizes(self._config.ckpt_dir, self._pipeline.dtype),
        )

    @ray.method(concurrency_group=CONTROL)
    def activity(self) -> Activity:
        """How far the running task is."""
        return self._activity

    @ray.method(concurrency_group=CONTROL)
    def stop(self, number: int) -> None:
        """Ask that order to stop at its next step; one that has ended or that cannot stop is left alone."""
        self._stopped = number

    # -- tasks -----------------------------------------------------------------------------------------------------

    def run(self, order: Order, *inputs: Packed) -> Any:
        """Do one task. Returns its report and then what it gives, one object each: nothing in place of a failure's."""
        outputs = _num_outputs(order)
        try:
            load_seconds = _timed(lambda: self._make_resident(order))
            started = time.perf_counter()
            given, facts = self._work(order, inputs)
            report = Report(seconds=time.perf_counter() - started, load_seconds=load_seconds, facts=facts)
        except Exception as error:  # whatever it is, the driver decides what it means for the clip
            report, given = Report(seconds=0.0, failure=_failure(error)), [None] * outputs
            release_memory(self._pipeline.device)
        self._activity = Activity(done=0, total=0)
        return (report, *given) if outputs else report

    def _make_resident(self, order: Order) -> None:
        if order.model_name:
            self._pipeline.use_model(order.model_name)
        self._pipeline.unload(self._pipeline.loaded - order.components)
        self._pipeline.load(order.components)

    def _work(self, order: Order, inputs: tuple[Packed, ...]) -> tuple[list[Packed | None], Facts]:
        match order.work:
            case EncodeTexts(texts=texts):
                return [pack(rows=rows) for rows in self._pipeline.encode_text(texts)], {}
            case EncodeFirstFrame(image_path=image_path, height=height, width=width):
                return [pack(latent=self._pipeline.encode_first_frame(image_path, (height, width)))], {}
            case Denoise():
                latents = self._denoise(order, order.work.params, inputs)
                facts: Facts = {"attention_backend": str(self._pipeline.attention_backend)}
                return [pack(video=latents.video, audio=latents.audio)], facts
            case Decode():
                return [], self._decode(order.work, Latents(**unpack(inputs[0])))
            case Preload():
                return [], {}

    def _denoise(self, order: Order, params: SamplingParams, inputs: tuple[Packed, ...]) -> Latents:
        positive, video_negative, audio_negative = (unpack(packed)["rows"] for packed in inputs[:3])
        return self._pipeline.denoise(
            PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative),
            params,
            first_frame=unpack(inputs[3])["latent"] if len(inputs) > 3 else None,
            on_step=self._on_step,
            should_stop=lambda: self._stopped == order.number,
        )

    def _decode(self, work: Decode, latents: Latents) -> Facts:
        path = Path(work.video_path)
        audio = self._pipeline.decode_audio(latents.audio)
        writer = VideoWriter(
            path, audio=audio, title=work.title, parameters=work.parameters, threads=self._config.num_threads
        )
        num_frames = 0
        with writer:
            for chunk in self._pipeline.decode_video(latents.video):
                frames = frames_to_uint8(chunk)
                if num_frames <= work.num_frames // 2 < num_frames + len(frames):
                    write_poster(work.poster_path, frames[work.num_frames // 2 - num_frames])
                writer.write(frames)
                num_frames += len(frames)
                self._on_step(num_frames, work.num_frames)
        return {"num_frames": num_frames, "num_samples": len(audio), "video_bytes": path.stat().st_size}

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


def _failure(error: Exception) -> Failure:
    message = str(error) or type(error).__name__
    return Failure(kind=failure_kind(error), message=message, traceback=traceback.format_exc())


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
