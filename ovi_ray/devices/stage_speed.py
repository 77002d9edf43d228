"""Measured speed of a device in every stage: the stages of one clip are run there, with the real weights.

Work is counted as the scheduler counts it, with the operations of the published model, so that a rate times the scheduler's
operations gives the seconds that were measured.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ovi.config import ModelSpec, SamplingParams
from ovi.device_errors import is_out_of_memory
from ovi.geometry import latent_grid, snap_size
from ovi.media.video import VideoWriter, frames_to_uint8
from ovi.pipeline import OviPipeline
from ovi.stages import STAGES, Stage
from ovi.timing import seconds_per_call
from ovi.types import PromptEmbeds
from ovi_ray.inputs.task_table import estimated_tokens
from ovi_ray.scheduling.device_profile import ComponentSizes, StageRates
from ovi_ray.scheduling.workload import ClipKind

MAX_STAGE_S = 600.0
"""Seconds that the measurement of a stage may be expected to take; it is assumed where that is more."""
_CALLS = 3  # of a stage; the first one warms up
_STEPS = 2  # of the denoise that is measured
_TEXTS, _TEXT_ROWS, _NEGATIVE_ROWS = 4, 150, 12
_TEXT = "A lighthouse keeper climbs the stairs with a lamp while waves break far below. <S>Not tonight.<E> Audio: wind"
_GREY = 128


@dataclass(kw_only=True, slots=True, frozen=True)
class StageSpeed:
    """The speed of a device, as far as it was measured."""

    tflops: Mapping[Stage, float]
    """TFLOP/s of the stages that were run."""
    load_gb_per_s: float | None
    """Rate of loading weights onto the device; None where no stage was run."""
    not_measured: Mapping[Stage, str]
    """Why the other stages were not run."""


Announce = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class StageTimer:
    """Runs stages of one clip on the device of a pipeline, whose components it loads and unloads."""

    pipeline: OviPipeline
    stages: frozenset[Stage]
    """The stages that fit on the device."""
    sizes: ComponentSizes
    expected: StageRates
    """Rates that the device is assumed to have for this model."""
    announce: Announce
    max_stage_s: float = MAX_STAGE_S
    _loaded_gb: float = field(default=0.0, init=False)
    _load_s: float = field(default=0.0, init=False)

    def measure(self) -> StageSpeed:
        """Raises what a stage raises, such as CheckpointError and errors of the device."""
        tflops, left_out = {}, {}
        for stage in STAGES:
            if reason := self._reason_against(stage):
                left_out[stage] = reason
                continue
            self.announce(f"measuring {stage} on {self.pipeline.device}")
            try:
                tflops[stage] = self._rate(stage)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                left_out[stage] = "it ran out of memory"
        rate = self._loaded_gb / self._load_s if self._load_s else None
        return StageSpeed(tflops=tflops, load_gb_per_s=rate, not_measured=left_out)

    def _reason_against(self, stage: Stage) -> str:
        if stage not in self.stages:
            return "it does not fit"
        if stage not in _RUNS:
            return "it cannot be run alone"
        expected_s = _CALLS * self._operations(stage) / self.expected.of(stage)
        return f"it would take about {expected_s / 60:,.0f} min" if expected_s > self.max_stage_s else ""

    def _rate(self, stage: Stage) -> float:
        """TFLOP/s of a stage. The first load and the first call only warm up: they import code and fill caches."""
        components = STAGES[stage].components

        def call() -> None:
            _RUNS[stage](self.pipeline)

        try:
            call()
            self.pipeline.unload(components)
            started = time.perf_counter()
            self.pipeline.load(components)
            self._load_s += time.perf_counter() - started
            self._loaded_gb += sum(self.sizes.of(component) for component in components)
            return self._operations(stage) / seconds_per_call(call, self.pipeline.device, max_calls=_CALLS - 1)
        finally:
            self.pipeline.unload(components)

    def _operations(self, stage: Stage) -> float:
        """TFLOP of a run, in operations of the published model."""
        items = sum(map(estimated_tokens, _texts())) if STAGES[stage].batched else 1
        return items * STAGES[stage].tflop(clip_kind(self.pipeline.spec, steps=_STEPS))


def clip_kind(spec: ModelSpec, *, steps: int) -> ClipKind:
    """A square clip of a model."""
    height, width = snap_size(1, 1, spec.video_area)
    return ClipKind(
        model_name=spec.name,
        height=height,
        width=width,
        video_latent_length=spec.video_latent_length,
        sample_steps=steps,
    )


# -- runs --------------------------------------------------------------------------------------------------------------


def _size(pipeline: OviPipeline) -> tuple[int, int]:
    kind = clip_kind(pipeline.spec, steps=_STEPS)
    return kind.height, kind.width


def _texts() -> list[str]:
    return [f"{number}. {_TEXT}" for number in range(_TEXTS)]


def _encode_text(pipeline: OviPipeline) -> None:
    pipeline.encode_text(_texts())


def _encode_first_frame(pipeline: OviPipeline) -> None:
    size = _size(pipeline)
    pipeline.encode_first_frame(np.full((*size, 3), _GREY, np.uint8), size)


def _denoise(pipeline: OviPipeline) -> None:
    config = pipeline.architecture.video
    rows = torch.randn(min(_TEXT_ROWS, config.text_len), config.text_dim)
    negative = rows[:_NEGATIVE_ROWS]
    embeds = PromptEmbeds(positive=rows, video_negative=negative, audio_negative=negative)
    pipeline.denoise(embeds, SamplingParams(sample_steps=_STEPS, video_frame_height_width=_size(pipeline)))


def _decode(pipeline: OviPipeline) -> None:
    """With the encoding of the file, which is part of a decode in a job."""
    spec, config = pipeline.spec, pipeline.architecture
    rows, columns = latent_grid(*_size(pipeline))
    audio = pipeline.decode_audio(torch.randn(spec.audio_latent_length, config.audio.in_dim))
    latents = torch.randn(config.video.in_dim, spec.video_latent_length, rows, columns)
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "clip.mp4", audio=audio) as writer:
        for chunk in pipeline.decode_video(latents):
            writer.write(frames_to_uint8(chunk))


_RUNS: Mapping[Stage, Callable[[OviPipeline], None]] = {
    Stage.ENCODE_TEXT: _encode_text,
    Stage.ENCODE_FIRST_FRAME: _encode_first_frame,
    Stage.DENOISE: _denoise,
    Stage.DECODE: _decode,
}
