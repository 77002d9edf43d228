"""The work of a job as arrays: a clip is a row number, never an object, so that a million clips fit in memory.

workload = Workload(
    kinds=(ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50),),
    clip_kind=np.zeros(3, np.int32),
    clip_texts=np.array([[0, 3, 4], [1, 3, 4], [2, 3, 4]]),   # prompt, video negative, audio negative
    text_tokens=np.array([120, 95, 130, 8, 6]),
)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ovi.quality import Quality, computes_in_fp8, expected_passes
from ovi.stages import INPUT_STAGES, STAGES, Stage, WorkItem
from ovi_ray.printing import counted

IntArray = npt.NDArray[np.integer[Any]]

NO_FRAME = -1
TEXTS_PER_CLIP = 3  # prompt, video negative, audio negative
_TOKEN_LATENTS_GB = 4 * 48 * 2 / 1e9  # 4 latents of 48 channels in bf16; audio adds a thousandth
_TOKEN_PIXELS = 32  # side of a video token: 16 pixels per latent of the VAE, 2 latents per patch
_STEPS_THAT_TELL = 10  # of a denoise: fewer are over before what the first ones take is of use


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipKind:
    """Clips with the same cost on every device: one model, size, length, number of steps and quality."""

    model_name: str
    height: int
    """Pixels, a multiple of 32."""
    width: int
    """Pixels, a multiple of 32."""
    video_latent_length: int
    """Latent frames, F."""
    sample_steps: int
    has_image: bool = False
    """A first-frame image conditions the clip."""
    quality: Quality = Quality.EXACT
    measured_passes: float | None = None
    """Mean passes of the transformer of such clips; None where none was rendered."""

    @property
    def frame_tokens(self) -> int:
        """Video tokens of one latent frame."""
        return (self.height // _TOKEN_PIXELS) * (self.width // _TOKEN_PIXELS)

    @property
    def video_tokens(self) -> int:
        """Video tokens of the clip."""
        return self.video_latent_length * self.frame_tokens

    @property
    def passes(self) -> float:
        """Passes of the transformer: as measured, else as far as they are known beforehand, which skipped steps are not."""
        if self.measured_passes is not None:
            return self.measured_passes
        return expected_passes(self.quality, self.sample_steps)

    @property
    def computes_in_fp8(self) -> bool:
        """See ClipShape."""
        return computes_in_fp8(self.quality)

    @property
    def latents_gb(self) -> float:
        """GB of the clip's latents in the object store."""
        return self.video_tokens * _TOKEN_LATENTS_GB

    @property
    def tells_its_pace(self) -> bool:
        """Whether the first steps of a denoise tell, long before its end, what all of them take."""
        return self.quality is Quality.EXACT and self.sample_steps >= _STEPS_THAT_TELL

    def __str__(self) -> str:
        image = ", first frame" if self.has_image else ""
        size = f"{self.height}x{self.width}, F={self.video_latent_length}"
        quality = "" if self.quality is Quality.EXACT else f", {self.quality}"
        return f"{self.model_name} {size}, {counted(self.sample_steps, 'step')}{image}{quality}"


def _no_ints() -> IntArray:
    return np.zeros(0, np.int32)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class StageInputs:
    """The distinct items of one input stage, and the clips that need them."""

    count: int
    """Distinct items."""
    of_clips: IntArray
    """[clips, n] items that each clip needs, NO_FRAME where it needs fewer."""
    kinds: IntArray | None = None
    """[count] the kind of clip whose cost each item has; None where the kind does not matter."""
    tokens: IntArray | None = None
    """[count] tokens of each item; None where they are not counted."""

    def tokens_of(self, items: Sequence[int] | IntArray) -> float:
        """Tokens of some items together; 1 each where they are not counted."""
        return float(len(items) if self.tokens is None else self.tokens[list(items)].sum())

    def fewest_tokens(self, items: int) -> float:
        """Tokens of the shortest items together, so many of them."""
        return float(items if self.tokens is None else np.sort(self.tokens)[:items].sum())


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Workload:
    """The clips of a job that are still to be rendered. Clips, texts, first frames and kinds are numbered from 0.

    Raises ValueError, naming the array and the row, when a number is out of range or lengths disagree.
    """

    kinds: tuple[ClipKind, ...]
    clip_kind: IntArray
    """[clips] the kind of each clip."""
    clip_texts: IntArray
    """[clips, 3] prompt, video negative, audio negative; equal texts share a number throughout the job."""
    text_tokens: IntArray
    """[texts] tokens of each distinct text."""
    clip_first_frame: IntArray | None = None
    """[clips] the first frame of each clip, NO_FRAME for none; None when no clip has one."""
    first_frame_kind: IntArray = field(default_factory=_no_ints)
    """[frames] a kind of clip with the size of each distinct frame."""
    clips_with_latents: IntArray = field(default_factory=_no_ints)
    """Clips whose latents an earlier run kept: they start at decode."""

    def __post_init__(self) -> None:
        for name in ("clip_kind", "clip_texts", "text_tokens", "first_frame_kind", "clips_with_latents"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int32))
        frames = np.full(self.clips, NO_FRAME) if self.clip_first_frame is None else self.clip_first_frame
        object.__setattr__(self, "clip_first_frame", np.ascontiguousarray(frames, dtype=np.int32))
        problems = [problem for problem in self._problems() if problem]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.clip_kind)

    @property
    def texts(self) -> int:
        """Number of distinct texts."""
        return len(self.text_tokens)

    @property
    def first_frames(self) -> int:
        """Number of distinct first frames."""
        return len(self.first_frame_kind)

    @property
    def frames_of_clips(self) -> IntArray:
        """[clips] the first frame of each clip, NO_FRAME for none."""
        assert self.clip_first_frame is not None
        return self.clip_first_frame

    def stage_inputs(self) -> dict[Stage, StageInputs]:
        """The items of each input stage."""
        of_item = {
            WorkItem.TEXT: StageInputs(count=self.texts, of_clips=self.clip_texts, tokens=self.text_tokens),
            WorkItem.FIRST_FRAME: StageInputs(
                count=self.first_frames, of_clips=self.frames_of_clips[:, None], kinds=self.first_frame_kind
            ),
        }
        return {stage: of_item[STAGES[stage].item] for stage in INPUT_STAGES}

    def _problems(self) -> list[str]:
        if self.clip_texts.shape != (self.clips, TEXTS_PER_CLIP):
            return [f"clip_texts has shape {self.clip_texts.shape}; expected ({self.clips}, {TEXTS_PER_CLIP})"]
        if self.frames_of_clips.shape != (self.clips,):
            return [f"clip_first_frame has shape {self.frames_of_clips.shape}; expected ({self.clips},)"]
        return [
            _out_of_range("clip_kind", self.clip_kind, 0, len(self.kinds)),
            _out_of_range("clip_texts", self.clip_texts, 0, self.texts),
            _out_of_range("clip_first_frame", self.frames_of_clips, NO_FRAME, self.first_frames),
            _out_of_range("first_frame_kind", self.first_frame_kind, 0, len(self.kinds)),
            _out_of_range("clips_with_latents", self.clips_with_latents, 0, self.clips),
            _out_of_range("text_tokens", self.text_tokens, 0, np.iinfo(np.int32).max),
        ]


def _out_of_range(name: str, values: IntArray, low: int, end: int) -> str:
    bad = np.argwhere((values < low) | (values >= end))
    if not len(bad):
        return ""
    row = tuple(int(i) for i in bad[0])
    return f"{name}[{', '.join(map(str, row))}] is {values[row]}; expected {low} to {end - 1}"
