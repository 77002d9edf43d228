"""A decoded clip in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovi.errors import MediaError
from ovi.media.codecs import FILE_FORMS
from ovi.media.video import VideoWriter
from ovi.types import Latents

_CODECS = {form.suffix: codec for codec, form in FILE_FORMS.items()}


@dataclass(kw_only=True, slots=True, frozen=True)
class Clip:
    """A decoded clip: frames, waveform and the latents they were decoded from."""

    frames: np.ndarray
    """uint8 [F, H, W, 3] at 24 fps."""
    audio: np.ndarray
    """float32 [S] at 16 kHz, in [-1, 1]."""
    latents: Latents

    def save(
        self, path: str | Path, *, crf: int = 18, title: str = "", parameters: Mapping[str, Any] | None = None
    ) -> Path:
        """Write it as a video with sound, in the codec of the suffix: .mp4 H.264, .mov ProRes, .mkv lossless FFV1.

        `crf` is the quality of H.264 (0 is lossless); title and parameters are stored in the file. Raises MediaError.
        """
        path = Path(path)
        if (codec := _CODECS.get(path.suffix.lower())) is None:
            raise MediaError(f"{path}: has no suffix of a video; expected one of {', '.join(_CODECS)}")
        if not path.parent.is_dir():
            raise MediaError(f"{path}: its folder does not exist; expected an existing folder")
        with VideoWriter(
            path,
            audio=self.audio,
            codec=codec,
            crf=crf,
            title=title,
            parameters=parameters,
            num_frames=len(self.frames),
        ) as writer:
            writer.write(self.frames)
        return path
