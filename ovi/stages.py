"""The stages of a clip, each declared once: what it needs, takes and produces, and what it costs.

    text -> ENCODE_TEXT ---------+
                                 +-> DENOISE -> clip latents -> DECODE -> video
    image -> ENCODE_FIRST_FRAME -+

Scheduler, cost model, workers and reports read this table; only what is special about a stage is written where it happens.
Imports neither torch nor ray.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from ovi.config import Component


class Stage(StrEnum):
    """The unit of placement: the pipeline's methods, with `decode_video` and `decode_audio` as one DECODE."""

    ENCODE_TEXT = "encode_text"
    ENCODE_FIRST_FRAME = "encode_first_frame"
    DENOISE = "denoise"
    DECODE = "decode"


class DataKind(StrEnum):
    """The intermediate data that pass from one stage to another."""

    TEXT = "text"
    """Embedding of one text."""
    FIRST_FRAME = "first_frame"
    """Latent of one first frame."""
    LATENTS = "latents"
    """Denoised video and audio latents of one clip."""


class WorkItem(StrEnum):
    """What one work item of a stage is. Texts and first frames are distinct over a job and shared by clips."""

    TEXT = "text"
    FIRST_FRAME = "first frame"
    CLIP = "clip"


class Activations(StrEnum):
    """Quantity that the memory beside the weights is proportional to."""

    CONSTANT = "constant"
    VIDEO_TOKENS = "video tokens"
    """Video tokens of the whole clip."""
    FRAME_TOKENS = "frame tokens"
    """Video tokens of one latent frame: the VAE streams, so the length does not count."""


class ClipShape(Protocol):
    """The part of a clip's parameters that its cost depends on."""

    @property
    def frame_tokens(self) -> int:
        """Video tokens of one latent frame."""
        ...

    @property
    def video_tokens(self) -> int:
        """Video tokens of the clip."""
        ...

    @property
    def sample_steps(self) -> int:
        """Steps of the solver."""
        ...


def encode_text_tflop(shape: ClipShape) -> float:
    """TFLOP of one text token; the clip's shape does not matter."""
    return 0.0094


def encode_first_frame_tflop(shape: ClipShape) -> float:
    """TFLOP of one first frame."""
    return 0.0048 * shape.frame_tokens


def denoise_tflop(shape: ClipShape) -> float:
    """TFLOP of all steps of a clip, each with and without the prompt."""
    tokens = shape.video_tokens
    one_pass = 2.0 + 0.010125 * tokens + 3.72e-7 * tokens * tokens
    return 2 * shape.sample_steps * one_pass


def decode_tflop(shape: ClipShape) -> float:
    """TFLOP of a clip's video and audio."""
    return 0.0745 * shape.video_tokens


@dataclass(kw_only=True, slots=True, frozen=True)
class StageSpec:
    """Everything that other modules need to know about a stage."""

    order: int
    """Position on the way of a clip; earlier stages win ties."""
    components: frozenset[Component]
    """Components of the model that must be resident."""
    inputs: tuple[DataKind, ...]
    """Intermediate data it takes, besides the parameters in its request."""
    output: DataKind | None
    """Intermediate datum it produces per item; None for the stage whose result is the video."""
    item: WorkItem
    """What one work item is."""
    batched: bool = False
    """One task takes several items. Work is then counted in tokens, and does not depend on the clip's shape."""
    image_only: bool = False
    """Only clips with a first-frame image need it."""
    tflop: Callable[[ClipShape], float]
    """TFLOP of one item, or of one token when batched. Counted on the published modules, within 2%."""
    activations: Activations
    """What its memory beside the weights grows with."""
    label: str
    """Heading of its counts in displays: "texts", "first frames", ..."""
    time_group: str
    """Stages with the same group are summed in accounts of time."""
    progress_unit: str = ""
    """What a worker counts while it runs: "step" or "frame"; empty when it reports no progress."""


STAGES: Mapping[Stage, StageSpec] = MappingProxyType(
    {
        Stage.ENCODE_TEXT: StageSpec(
            order=0,
            components=frozenset({Component.TEXT_ENCODER}),
            inputs=(),
            output=DataKind.TEXT,
            item=WorkItem.TEXT,
            batched=True,
            tflop=encode_text_tflop,
            activations=Activations.CONSTANT,
            label="texts",
            time_group="encode",
        ),
        Stage.ENCODE_FIRST_FRAME: StageSpec(
            order=1,
            components=frozenset({Component.VIDEO_VAE}),
            inputs=(),
            output=DataKind.FIRST_FRAME,
            item=WorkItem.FIRST_FRAME,
            image_only=True,
            tflop=encode_first_frame_tflop,
            activations=Activations.FRAME_TOKENS,
            label="first frames",
            time_group="encode",
        ),
        Stage.DENOISE: StageSpec(
            order=2,
            components=frozenset({Component.TRANSFORMER}),
            inputs=(DataKind.TEXT, DataKind.FIRST_FRAME),
            output=DataKind.LATENTS,
            item=WorkItem.CLIP,
            tflop=denoise_tflop,
            activations=Activations.VIDEO_TOKENS,
            label="denoise",
            time_group="denoise",
            progress_unit="step",
        ),
        Stage.DECODE: StageSpec(
            order=3,
            components=frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER}),
            inputs=(DataKind.LATENTS,),
            output=None,
            item=WorkItem.CLIP,
            tflop=decode_tflop,
            activations=Activations.FRAME_TOKENS,
            label="decode",
            time_group="decode",
            progress_unit="frame",
        ),
    }
)

CLIP_STAGES = tuple(stage for stage, spec in STAGES.items() if spec.item is WorkItem.CLIP)
"""Stages whose items are clips, in order."""
INPUT_STAGES = tuple(stage for stage in STAGES if stage not in CLIP_STAGES)
"""Stages that prepare inputs of denoise, shared by clips, in order."""
TIME_GROUPS = tuple(dict.fromkeys(spec.time_group for spec in STAGES.values()))
"""Groups of stages in accounts of time, in order."""


def stages_of(*, has_image: bool) -> tuple[Stage, ...]:
    """The stages that a clip with or without a first-frame image goes through, in order."""
    return tuple(stage for stage, spec in STAGES.items() if has_image or not spec.image_only)
