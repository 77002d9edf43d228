"""A worker: one pipeline on one device, run as a Ray actor. It executes one task at a time and reports failures as data."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ovi import OviPipeline
from ovi.attention import AttentionBackend
from ovi.config import Component, SamplingParams
from ovi.device_errors import is_out_of_memory
from ovi.errors import CheckpointError, DenoiseStopped, MediaError
from ovi.kernels import KernelMode
from ovi.media.flatness import Flatness
from ovi.media.video import VideoWriter, frames_as_bytes, write_poster
from ovi.memory.limit import limit_memory
from ovi.memory.plan import MemoryMode
from ovi.memory.release import release_memory, try_to_release_memory
from ovi.quality import Quality, may_have_fp8_products
from ovi.sampling.denoise import DenoiseState
from ovi.sampling.link import links_work
from ovi.stages import STAGES, Stage
from ovi.types import Latents, LossReport, PromptEmbeds
from ovi.weights.formats import WeightFormat
from ovi.weights.layout import ARCHITECTURE
from ovi_ray.devices.memory import component_sizes, plan_device
from ovi_ray.devices.probe import GB, describe_device
from ovi_ray.errors import InputAway, InputError, NodeUnfit, StorageUnavailable
from ovi_ray.protocol.messages import (
    Activity,
    Assist,
    Decode,
    Denoise,
    EncodeFirstFrame,
    EncodeTexts,
    Preload,
    TaskReport,
    TaskRequest,
    WorkerInfo,
)
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.storage.diagnostics import away_reason
from ovi_ray.storage.paths import staged_file, to_location
from ovi_ray.storage.scratch import remove_old_scratch, shared_folder
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.workers.denoise_checkpoint import DenoiseCheckpointer
from ovi_ray.workers.failures import failure_of, output_errors
from ovi_ray.workers.first_frame import first_frame_file
from ovi_ray.workers.helpers import Helpers, Invitation
from ovi_ray.workers.loss_facts import loss_facts, measured_loss
from ovi_ray.workers.memory_use import memory_in_use_gb
from ovi_ray.workers.oom_fallback import DENOISE_STEPS, FULL, FallbackStep, decode_steps, run_with_fallback
from ovi_ray.workers.quiet_time import QuietTime
from ovi_ray.workers.requirements import NodeRequirements, check_device, check_versions, check_weights
from ovi_ray.workers.step_timer import StepTimer
from ovi_ray.workers.tensor_files import load_tensors
from ovi_ray.workers.tensor_transport import Packed, pack, unpack
from ovi_ray.workers.writes import FrameQueue, WriteThreads

Facts = dict[str, object]
CONTROL = "control"  # concurrency group of the methods that answer while a task runs
WRITES = "writes"  # of the method that waits for the end of a write, while other tasks run
MAX_WRITES = 2  # at a time
_CHUNKS_AHEAD = 8  # decoded and not written yet: at most 90 MB of frames on the device


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerConfig:
    """Settings of a worker, fixed when it starts."""

    ckpt_dir: str
    """A folder that every node reaches under this path, or a URI."""
    model_name: str
    """The model to open first; a request may name another."""
    dtype: str
    device: str
    """cpu, or cuda (which ROCm uses too)."""
    num_threads: int
    """Threads for CPU kernels and the video encoder."""
    memory_gb: float | None = None
    """GB the worker may use; None for all of its device's memory."""
    attention: AttentionBackend = AttentionBackend.SDPA
    allow_inexact: bool = False
    """Let `auto` choose attention backends that change pixels."""
    weights: WeightFormat = WeightFormat.DTYPE
    """Storage format of the transformer's weights."""
    compile: bool = False
    """Let torch.compile fuse the transformer's blocks."""
    stream_blocks: bool = False
    """Leave the transformer's blocks in host memory, where that is not the device's."""
    kernels: KernelMode = KernelMode.AUTO
    """Fused kernels that may take part where the blocks are not compiled."""
    cpu_offload: bool = False
    """Always keep inactive components in host memory, whatever the memory plan says."""
    declared: DeviceProfile | None = None
    """The device's entry in the cluster profile, if the job has one."""
    host_gb: float | None = None
    """GB of host memory for inactive components; None for all of it."""
    quality: Quality = Quality.EXACT
    """That of the job's clips which needs the most memory."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Result:
    """Output of a successful task."""

    outputs: list[Packed | None] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    storage_error: str = ""
    write: "Future[_Result] | None" = None
    """The rest of the task, on another thread: it returns facts and notes."""


class Worker:
    """Runs one task at a time, and may still write the files of tasks before; `stop` and `activity` answer meanwhile."""

    def __init__(self, config: WorkerConfig, requires: NodeRequirements | None = None) -> None:
        """Raises NodeUnfit where this node does not meet `requires`, and otherwise what opening the model raises."""
        remove_old_scratch()
        torch.set_num_threads(config.num_threads)
        self._config = config
        self._requires = requires
        if requires is not None:
            check_versions(requires)
            check_device(config.device)
        device = describe_device(torch.device(config.device))
        has_own_memory = device.vendor != "cpu" and not device.shares_host_memory
        self._pipeline = OviPipeline.from_pretrained(
            self._checkpoint(config.model_name),
            config.model_name,
            device=config.device,
            dtype=getattr(torch, config.dtype),
            attention_backend=config.attention,
            allow_inexact=config.allow_inexact,
            weights=config.weights,
            compile_blocks=config.compile,
            stream_blocks=config.stream_blocks and has_own_memory,
            kernels=config.kernels,
        )
        self._plan = plan_device(
            self._pipeline, memory_gb=config.memory_gb, host_gb=config.host_gb, quality=config.quality
        )
        asked = config.cpu_offload and not device.shares_host_memory
        self._offloads = asked or self._plan.mode is MemoryMode.OFFLOADED
        if config.memory_gb is not None:
            limit_memory(self._pipeline.device, int(config.memory_gb * GB))
        self._failed_decodes: set[str] = set()  # paths of videos whose decode ran out of memory on this worker
        self._stopped_number = 0  # of the request that was asked to stop
        self._saves_on_stop = False
        self._has_told_of_posters = False
        self._told_shortcuts: set[str] = set()  # that this device has not
        self._activity = Activity(done=0, total=0)
        self._step_s = 0.0  # of the running denoise
        self._quiet = QuietTime()
        self._attention_backend = ""
        self._threads = WriteThreads(MAX_WRITES)
        self._checkpoints = WriteThreads(1)
        self._writes: dict[int, tuple[TaskReport, Future[_Result]]] = {}
        """Number of a request -> its report so far, and the write of its file."""
        self._helpers = Helpers()

    # -- control: answered while a task runs -----------------------------------------------------------------------

    @ray.method(concurrency_group=CONTROL)
    def describe(self) -> WorkerInfo:
        """The worker's device, and the size of the model's components on it."""
        device = describe_device(self._pipeline.device)
        return WorkerInfo(
            node=socket.gethostname(),
            pid=os.getpid(),
            device=device.name,
            vendor=device.vendor,
            architecture=device.architecture,
            memory_gb=self._plan.budget / GB,
            component_gb=self._component_gb(streams=self._pipeline.stream_blocks),
            streamed_gb=self._streamed_gb(),
            declared=self._config.declared,
            node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            has_fp8_products=self._config.weights is not WeightFormat.QINT8
            and may_have_fp8_products(device.architecture),
            shares_denoises=links_work(),
            log=_error_log(),
        )

    def _component_gb(self, *, streams: bool) -> dict[Component, float]:
        pipeline = self._pipeline
        return component_sizes(pipeline.ckpt_dir, pipeline.dtype, self._config.weights, streams=streams)

    def _streamed_gb(self) -> float:
        if not self._pipeline.stream_blocks:
            return 0.0
        whole, buffered = (self._component_gb(streams=streams)[Component.TRANSFORMER] for streams in (False, True))
        return whole - buffered

    @ray.method(concurrency_group=CONTROL)
    def activity(self) -> Activity:
        """Progress within the running task."""
        memory_gb = memory_in_use_gb(self._pipeline.device)
        return replace(
            self._activity,
            memory_gb=memory_gb,
            attention_backend=self._attention_backend,
            step_s=self._step_s,
            quiet_s=self._quiet.seconds,
            longest_quiet_s=self._quiet.longest_s,
        )

    @ray.method(concurrency_group=CONTROL)
    def stop(self, number: int, save: bool = False) -> None:
        """Stop the request with this number at its next denoising step; ignored if it ended or cannot be stopped.

        With `save` the state of the denoise is written, so that another worker can resume it.
        """
        self._saves_on_stop = save
        self._stopped_number = number

    @ray.method(concurrency_group=CONTROL)
    def expect_helper(self, number: int, meeting: str, helper: str) -> None:
        """The worker `helper` comes to assist the denoise of the request with this number."""
        self._helpers.invite(Invitation(number=number, meeting=meeting, helper=helper))

    # -- tasks -----------------------------------------------------------------------------------------------------

    def run(self, request: TaskRequest, *inputs: Packed) -> Any:
        """Execute a task. Returns its report, followed by its outputs as separate objects (None for a failed task).

        A report with `writes` is of the device's part only: `written` returns the report of the task's end.
        """
        num_outputs = _num_outputs(request)
        try:
            load_seconds = _timed(lambda: self._make_resident(request))
            started = time.perf_counter()
            if not isinstance(request.work, Assist):  # which waits for its leader
                self._quiet.begins()
            result = self._work(request, inputs)
            outputs = result.outputs
            report = TaskReport(
                seconds=time.perf_counter() - started,
                load_seconds=load_seconds,
                facts=result.facts,
                notes=result.notes,
                storage_error=result.storage_error,
                writes=result.write is not None,
            )
            if result.write is not None:
                self._writes[request.number] = report, result.write
        except Exception as error:  # of any kind: the driver decides what it means for the clip
            report, outputs = TaskReport(seconds=0.0, failure=failure_of(error)), [None] * num_outputs
            try_to_release_memory(self._pipeline.device)
        self._quiet.ends()
        self._activity, self._step_s = Activity(done=0, total=0), 0.0
        return (report, *outputs) if num_outputs else report

    @ray.method(concurrency_group=WRITES)
    def written(self, number: int) -> TaskReport:
        """The report of a task whose file was still being written, once it is durable or has failed."""
        report, write = self._writes.pop(number)
        try:
            result = write.result()
        except Exception as error:  # as in `run`
            return TaskReport(seconds=0.0, failure=failure_of(error))
        return replace(report, facts=report.facts | result.facts, notes=report.notes + result.notes, writes=False)

    def _make_resident(self, request: TaskRequest) -> None:
        """Load what a task needs. Raises InputAway where the weights cannot be read because their storage is away."""
        try:
            self._load(request)
        except (OSError, CheckpointError) as error:
            reason = away_reason(to_location(self._config.ckpt_dir) / ARCHITECTURE)
            if reason and not isinstance(error, InputAway):
                raise InputAway(str(to_location(self._config.ckpt_dir) / ARCHITECTURE), reason) from error
            raise

    def _load(self, request: TaskRequest) -> None:
        if request.model_name and request.model_name != self._pipeline.spec.name:
            self._checkpoint(request.model_name)
            self._pipeline.use_model(request.model_name)
        self._put_away(self._pipeline.loaded - request.components)
        self._pipeline.load(request.components)

    def _checkpoint(self, model_name: str) -> Path:
        """The checkpoint folder with the files of a model: the given one, or the local copy of one in an object store.

        Raises NodeUnfit where they are not the files that this node is required to have, or do not fit on its disk.
        """
        location, weights = to_location(self._config.ckpt_dir), self._config.weights
        try:
            folder = local_checkpoint(location, [model_name], weights)
        except StorageUnavailable as error:
            raise InputAway(self._config.ckpt_dir, str(error)) from error
        except InputError as error:
            raise NodeUnfit("; ".join(map(str, error.problems))) from error
        if self._requires is not None and not away_reason(location / ARCHITECTURE):
            check_weights(self._requires, folder, model_name, weights)
        return folder

    def _put_away(self, components: frozenset[Component]) -> None:
        if self._offloads:
            self._pipeline.offload(components)
        else:
            self._pipeline.unload(components)

    def _work(self, request: TaskRequest, inputs: tuple[Packed, ...]) -> _Result:
        match request.work:
            case EncodeTexts(texts=texts):
                return _Result(outputs=[pack(rows=rows) for rows in self._pipeline.encode_text(texts)])
            case EncodeFirstFrame(image_path=image_path, height=height, width=width, image_sha256=sha256):
                with first_frame_file(image_path, sha256) as path:
                    latent = self._pipeline.encode_first_frame(path, (height, width))
                return _Result(outputs=[pack(latent=latent)])
            case Denoise():
                return self._denoise(request, request.work, inputs)
            case Assist():
                return self._assist(request, request.work, inputs)
            case Decode():
                return self._decode(request.work, inputs)
            case Preload():
                return _Result()

    # -- denoise ---------------------------------------------------------------------------------------------------

    def _denoise(self, request: TaskRequest, work: Denoise, inputs: tuple[Packed, ...]) -> _Result:
        """Denoise a clip, unless its latents were written by an earlier task."""
        checkpointer = DenoiseCheckpointer(work, start=self._checkpoints.submit)
        latents, facts = checkpointer.finished() or (None, {})
        if latents is None:
            try:
                with self._helpers.of(request.number):
                    latents = self._denoise_with_fallback(request, work, inputs, checkpointer)
            finally:
                checkpointer.settle()  # another worker may go on from it as soon as this task has ended
            checkpointer.notes += [f"clip {work.clip_id} {note}" for note in self._helpers.notes]
            attention = self._pipeline.attention_plan(latents.video.shape, latents.audio.shape[0])
            self._attention_backend = str(attention)
            facts = {
                "attention_backend": self._attention_backend,
                "memory_mode": str(self._plan),
                "kernels": "compiled" if self._config.compile else str(self._pipeline.kernel_plan().in_transformer),
                "denoise_s": checkpointer.spent_s,
                "paired_with": ", ".join(self._helpers.names) or None,
            }
            if latents.loss is not None:
                facts |= loss_facts(latents.loss)
                checkpointer.notes += [f"clip {work.clip_id} {note}" for note in self._loss_notes(latents.loss)]
            where = {"node": socket.gethostname(), "device": describe_device(self._pipeline.device).name}
            checkpointer.save_latents(latents, facts | where)
        return _Result(
            outputs=[pack(video=latents.video, audio=latents.audio)],
            facts=facts,
            notes=tuple(checkpointer.notes),
            storage_error=checkpointer.storage_error,
        )

    def _denoise_with_fallback(
        self, request: TaskRequest, work: Denoise, inputs: tuple[Packed, ...], checkpointer: DenoiseCheckpointer
    ) -> Latents:
        def attempt(step: FallbackStep) -> Latents:
            self._make_room(step, Stage.DENOISE)
            return self._denoise_to_end(request, work.params, inputs, checkpointer)

        step, latents = run_with_fallback(DENOISE_STEPS, attempt, is_out_of_memory)
        checkpointer.notes += [f"clip {work.clip_id} {note}" for note in _fallback_note("denoised", step)]
        return latents

    def _loss_notes(self, loss: LossReport) -> list[str]:
        """That a clip went on exactly, and, once, the shortcuts that this device has not."""
        new = {name: reason for name, reason in loss.left_out.items() if name not in self._told_shortcuts}
        self._told_shortcuts |= new.keys()
        notes = [f"was denoised without {name}, and others of this worker will be: {why}" for name, why in new.items()]
        if loss.exact_from_step is not None:
            notes.append(f"went on exactly from step {loss.exact_from_step}: {measured_loss(loss)}, beyond its bound")
        return notes

    def _make_room(self, step: FallbackStep, stage: Stage) -> None:
        """Unload what the stage does not need, where the step asks for it, and defragment before a second attempt."""
        if step.alone:
            self._put_away(self._pipeline.loaded - STAGES[stage].components)
        if step is not FULL:
            release_memory(self._pipeline.device)

    def _denoise_to_end(
        self,
        request: TaskRequest,
        params: SamplingParams,
        inputs: tuple[Packed, ...],
        checkpointer: DenoiseCheckpointer,
    ) -> Latents:
        """Run from the checkpoint, if there is one, and write checkpoints on the way. Raises DenoiseStopped if asked to."""
        state = checkpointer.state()
        while True:
            try:
                return self._denoise_until_stopped(request, params, inputs, checkpointer, state)
            except DenoiseStopped as stopped:
                state = cast(DenoiseState, stopped.state)
                is_asked = self._stopped_number == request.number
                if not is_asked or self._saves_on_stop:
                    checkpointer.save_state(state)
                if is_asked:
                    raise

    def _denoise_until_stopped(
        self,
        request: TaskRequest,
        params: SamplingParams,
        inputs: tuple[Packed, ...],
        checkpointer: DenoiseCheckpointer,
        state: DenoiseState | None,
    ) -> Latents:
        """Run until the end, a request to stop or a due checkpoint; the latter two raise DenoiseStopped."""

        timer, self._step_s = StepTimer(self._pipeline.device), 0.0

        def on_step(done: int, total: int) -> None:
            checkpointer.step_done()
            if params.quality is Quality.EXACT:  # else the first steps are not like the others
                timer.step_done()
                self._step_s = timer.step_s
            self._on_step(done, total)

        embeds, first_frame = _unpack_inputs(inputs)
        return self._pipeline.denoise(
            embeds,
            params,
            first_frame=first_frame,
            state=state,
            partner=self._helpers,
            on_step=on_step,
            should_stop=lambda: self._stopped_number == request.number or checkpointer.is_due(),
        )

    def _assist(self, request: TaskRequest, work: Assist, inputs: tuple[Packed, ...]) -> _Result:
        """Compute the negative passes of a denoise of another worker until it ends, or this one is asked to stop."""
        embeds, first_frame = _unpack_inputs(inputs)
        folder = shared_folder(work.meeting)
        try:
            self._pipeline.assist(
                embeds,
                work.params,
                folder,
                first_frame=first_frame,
                should_stop=lambda: self._stopped_number == request.number,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return _Result()

    # -- decode ----------------------------------------------------------------------------------------------------

    def _decode(self, work: Decode, inputs: tuple[Packed, ...]) -> _Result:
        """Decode latents from the input, or from their file if there is none."""
        if inputs:
            return self._decode_with_fallback(work, _latents(unpack(inputs[0])), {})
        with output_errors():
            tensors, facts = load_tensors(to_location(work.latents_path), clip_id=work.clip_id)
        return self._decode_with_fallback(work, _latents(tensors), facts)

    def _decode_with_fallback(self, work: Decode, latents: Latents, facts: Facts) -> _Result:
        steps = decode_steps(failed_here_before=work.video_path in self._failed_decodes)
        try:
            _, decoded = run_with_fallback(
                steps, lambda step: self._decode_to_file(work, latents, step), is_out_of_memory
            )
        except Exception as error:
            if is_out_of_memory(error):
                self._failed_decodes.add(work.video_path)
            raise
        self._failed_decodes.discard(work.video_path)
        return replace(decoded, facts=facts | decoded.facts)

    def _decode_to_file(self, work: Decode, latents: Latents, step: FallbackStep) -> _Result:
        """Decode on this thread, and write on another one, which may go on for a while."""
        self._make_room(step, Stage.DECODE)
        pipeline = self._pipeline.on_cpu() if step.on_cpu else self._pipeline
        audio = pipeline.decode_audio(latents.audio)
        frames, notes = FrameQueue(_CHUNKS_AHEAD), _fallback_note("decoded", step)
        write = self._threads.submit(lambda: self._write_video(work, audio, frames, notes))
        try:
            num_frames = 0
            for chunk in pipeline.decode_video(latents.video, step.tiling):
                if not frames.put(frames_as_bytes(chunk)):
                    break  # the write has failed
                num_frames += chunk.shape[1]
                self._on_step(num_frames, work.num_frames)
        except BaseException:
            frames.abort()
            with suppress(Exception):  # it says only that this one ended
                write.result()
            raise
        frames.end()
        facts: Facts = {
            "num_frames": work.num_frames,
            "num_samples": len(audio),
            "convolutions": str(pipeline.convolution_path()),
            "decode_kernels": str(pipeline.decoder_kernels()),
        }
        return _Result(facts=facts, write=write)

    def _write_video(
        self, work: Decode, audio: NDArray[np.float32], frames: FrameQueue, fallback_notes: list[str]
    ) -> _Result:
        """Write the frames of a clip while they are decoded, and make the file durable. The notes go on after "clip ..."."""
        flatness = Flatness(audio)
        try:
            with output_errors(), staged_file(to_location(work.video_path)) as path:
                poster_notes = self._encode(work, path, audio, frames, flatness)
                size = path.stat().st_size
        finally:
            frames.close()
        notes = [*flatness.notes, *poster_notes, *fallback_notes]
        told = tuple(f"clip {work.clip_id} {note}" for note in notes)
        return _Result(facts={"video_bytes": size, "notes": "; ".join(notes) or None}, notes=told)

    def _encode(
        self, work: Decode, path: Path, audio: NDArray[np.float32], frames: FrameQueue, flatness: Flatness
    ) -> list[str]:
        """Encode frames as they come, and the middle one as the poster. Returns notes on the poster."""
        writer = VideoWriter(
            path,
            audio=audio,
            title=work.title,
            parameters=work.parameters,
            threads=self._config.num_threads,
            num_frames=work.num_frames,
        )
        num_frames, notes = 0, list[str]()
        with writer:
            for piece in frames:
                pixels: NDArray[np.uint8] = piece.cpu().numpy()  # waits for the device, which has gone on meanwhile
                flatness.add(pixels)
                if num_frames <= work.num_frames // 2 < num_frames + len(pixels):
                    notes += self._write_poster(work, pixels[work.num_frames // 2 - num_frames])
                writer.write(pixels)
                num_frames += len(pixels)
        return notes

    def _write_poster(self, work: Decode, frame: NDArray[np.uint8]) -> list[str]:
        """Write the poster; a note, once, where that fails: the video is what counts."""
        try:
            with staged_file(to_location(work.poster_path)) as poster:
                write_poster(poster, frame)
        except (OSError, MediaError) as error:
            is_known, self._has_told_of_posters = self._has_told_of_posters, True
            return [] if is_known else [f"has no poster, and others may have none either: {error}"]
        return []

    def _on_step(self, done: int, total: int) -> None:
        self._activity = Activity(done=done, total=total)
        self._quiet.goes_on()


def _latents(tensors: Mapping[str, torch.Tensor]) -> Latents:
    return Latents(video=tensors["video"], audio=tensors["audio"])


def _unpack_inputs(inputs: tuple[Packed, ...]) -> tuple[PromptEmbeds, torch.Tensor | None]:
    """The texts of a denoise, and its first frame if it has one."""
    positive, video_negative, audio_negative = (unpack(packed)["rows"] for packed in inputs[:3])
    embeds = PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)
    return embeds, unpack(inputs[3])["latent"] if len(inputs) > 3 else None


def _fallback_note(done: str, step: FallbackStep) -> list[str]:
    return [] if step is FULL else [f"was {done} {step.name}, after it ran out of memory"]


def _num_outputs(request: TaskRequest) -> int:
    match request.work:
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


def _error_log() -> str:
    """The file that this process's standard error is written to, as Ray does it; empty where it is none."""
    try:
        path = Path("/proc/self/fd/2").readlink()
    except OSError:
        return ""
    return str(path) if path.is_file() else ""
