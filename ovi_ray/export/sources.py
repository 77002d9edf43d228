"""Frames and sound of a clip: decoded again from its kept latents, or read from its MP4."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ovi.config import SAMPLE_RATE
from ovi.media.frames import pixels_frame
from ovi.media.reading import read_frames, read_sound
from ovi.media.video import frames_to_uint8, frames_to_uint16
from ovi.models.tiling import Tiling
from ovi.pipeline import OviPipeline
from ovi.stages import STAGES, Stage
from ovi.types import Latents
from ovi_ray.storage.paths import Location
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.workers.tensor_files import load_tensors


class Material(Protocol):
    """The frames and the sound of a clip. Methods raise MediaError and the errors of decoding."""

    def sound(self) -> tuple[NDArray[np.float32], int] | None:
        """Samples [S] in [-1, 1] and their rate."""

    def frames(self, tiling: Tiling | None = None) -> Iterator[VideoFrame]:
        """The frames in order; `tiling` saves memory where they are decoded from latents."""


@dataclass(kw_only=True, slots=True, frozen=True)
class VideoMaterial:
    """Of a video file."""

    path: Path

    def sound(self) -> tuple[NDArray[np.float32], int] | None:
        """See Material."""
        return read_sound(self.path)

    def frames(self, tiling: Tiling | None = None) -> Iterator[VideoFrame]:
        """See Material."""
        return read_frames(self.path)


@dataclass(kw_only=True, slots=True, frozen=True)
class LatentsMaterial:
    """Of latents, with a pipeline that decodes them."""

    pipeline: OviPipeline
    latents: Latents
    is_deep: bool
    """Frames have 16 bits rather than 8."""

    def sound(self) -> tuple[NDArray[np.float32], int] | None:
        """See Material."""
        return self.pipeline.decode_audio(self.latents.audio), SAMPLE_RATE

    def frames(self, tiling: Tiling | None = None) -> Iterator[VideoFrame]:
        """See Material."""
        to_pixels = frames_to_uint16 if self.is_deep else frames_to_uint8
        for chunk in self.pipeline.decode_video(self.latents.video, tiling):
            yield from map(pixels_frame, to_pixels(chunk))


@dataclass(kw_only=True, slots=True)
class LatentsReader:
    """Opens kept latents, with one pipeline for all of them."""

    ckpt_dir: Location
    device: str
    dtype: str
    """Of the computation, as the job had it: "bfloat16"."""
    _pipeline: OviPipeline | None = field(default=None, init=False)

    def material(self, latents: Location, row: Mapping[str, Any], *, is_deep: bool) -> LatentsMaterial:
        """The material of a clip's latents. Raises LatentsUnusable, CheckpointError, StorageUnavailable and OSError."""
        tensors, _ = load_tensors(latents, clip_id=row["clip_id"])
        pipeline = self._pipeline_for(row["model_name"])
        return LatentsMaterial(
            pipeline=pipeline, latents=Latents(video=tensors["video"], audio=tensors["audio"]), is_deep=is_deep
        )

    def open(self, model_names: Iterable[str]) -> None:
        """Load what decoding needs of each model. Raises OviError, InputError and StorageUnavailable."""
        for name in model_names:
            self._pipeline_for(name).load(STAGES[Stage.DECODE].components)

    def _pipeline_for(self, model_name: str) -> OviPipeline:
        folder = local_checkpoint(self.ckpt_dir, [model_name])
        if self._pipeline is None:
            self._pipeline = OviPipeline.from_pretrained(
                folder, model_name, device=self.device, dtype=getattr(torch, self.dtype)
            )
        self._pipeline.use_model(model_name)
        return self._pipeline
