"""The stages of a clip, each declared once: what it needs, takes and produces, and what it costs.

    text -> ENCODE_TEXT ---------+
                                 +-> DENOISE -> clip latents -> DECODE -> video
    image -> ENCODE_FIRST_FRAME -+

Scheduler, cost model, device profiles, bound, workers, records and reports read this table; only what is special about a
stage is written where it happens. Imports neither torch nor ray.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from ovi.config import Component

_FP8_TOKEN = 1.6  # memory of a token with 8-bit products over that of one without, by `ovi.memory.plan` in bf16


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
    """A unit of work. Texts and first frames are distinct over a job and shared by clips."""

    TEXT = "text"
    FIRST_FRAME = "first frame"
    CLIP = "clip"


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
    def passes(self) -> float:
        """Passes of the transformer: two for each step, fewer with lossy shortcuts."""
        ...

    @property
    def computes_in_fp8(self) -> bool:
        """Its feed-forwards are computed in 8-bit floats, which are held beside the numbers that they are narrowed from."""
        ...


def encode_text_tflop(shape: ClipShape) -> float:
    """TFLOP of one text token; the clip's shape does not matter."""
    return 0.0094


def encode_first_frame_tflop(shape: ClipShape) -> float:
    """TFLOP of one first frame."""
    return 0.0048 * shape.frame_tokens


def denoise_tflop(shape: ClipShape) -> float:
    """TFLOP of all passes of a clip."""
    tokens = shape.video_tokens
    one_pass = 2.0 + 0.010125 * tokens + 3.72e-7 * tokens * tokens
    return shape.passes * one_pass


def decode_tflop(shape: ClipShape) -> float:
    """TFLOP of a clip's video and audio."""
    return 0.0745 * shape.video_tokens


def constant(shape: ClipShape) -> float:
    """1 for every clip."""
    return 1.0


def thousand_video_tokens(shape: ClipShape) -> float:
    """Thousands of video tokens of the whole clip."""
    return shape.video_tokens / 1000


def thousand_denoised_tokens(shape: ClipShape) -> float:
    """Thousands of video tokens of the whole clip, each as many as it takes the memory of without 8-bit products."""
    return thousand_video_tokens(shape) * (_FP8_TOKEN if shape.computes_in_fp8 else 1.0)


def thousand_frame_tokens(shape: ClipShape) -> float:
    """Thousands of video tokens of one latent frame: the VAE streams, so the length does not count."""
    return shape.frame_tokens / 1000


@dataclass(kw_only=True, slots=True, frozen=True)
class Activations:
    """The memory that stages need beside their weights. Stages with equal activations share one entry in device profiles."""

    key: str
    """Names the entry."""
    units: Callable[[ClipShape], float]
    """The size of a clip that the memory is proportional to."""
    assumed_gb: float
    """GB for one unit, unless a cluster profile declares it: that of `ovi.memory.plan` for the published model in bf16."""
    base_gb: float = 0.0
    """GB that a clip of any size needs in addition."""


TEXT_ACTIVATIONS = Activations(key="encode_text", units=constant, assumed_gb=1.606)  # a batch of trimmed texts
FIRST_FRAME_ACTIVATIONS = Activations(
    key="first_frame_per_thousand_tokens", units=thousand_frame_tokens, assumed_gb=1.469
)
DENOISE_ACTIVATIONS = Activations(
    key="denoise_per_thousand_tokens",
    units=thousand_denoised_tokens,
    assumed_gb=0.0787,
    base_gb=0.832,  # keys and values of the texts
)
VAE_ACTIVATIONS = Activations(key="vae_per_thousand_tokens", units=thousand_frame_tokens, assumed_gb=8.42)


@dataclass(kw_only=True, slots=True, frozen=True)
class StageSpec:
    """Everything that other modules need to know about a stage."""

    order: int
    """Position on the way of a clip; earlier stages win ties."""
    components: frozenset[Component]
    """Components of the model that must be resident."""
    main_component: Component
    """The one of them that does nearly all of the work: it grows with this component's size."""
    inputs: tuple[DataKind, ...]
    """Intermediate data it takes, besides the parameters in its request."""
    output: DataKind | None
    """Intermediate datum it produces per item; None for the stage whose result is the video."""
    item: WorkItem
    """The unit of its work."""
    batched: bool = False
    """One task takes several items. Work is then counted in tokens, and does not depend on the clip's shape."""
    image_only: bool = False
    """Only clips with a first-frame image need it."""
    tflop: Callable[[ClipShape], float]
    """TFLOP of one item, or of one token when batched. Counted on the published modules, within 2%."""
    assumed_tflops: float
    """TFLOP/s that a device achieves in it, unless a profile declares or a measurement tells it."""
    activations: Activations
    """Its memory beside the weights."""
    label: str
    """Heading of its counts in displays: "texts", "first frames", ..."""
    time_group: str
    """Stages with the same group are summed in accounts of time. A stage of clips has a group of its own."""
    progress_unit: str = ""
    """The unit that a worker counts while it runs, "step" or "frame"; empty when it reports no progress."""


STAGES: Mapping[Stage, StageSpec] = MappingProxyType(
    {
        Stage.ENCODE_TEXT: StageSpec(
            order=0,
            components=frozenset({Component.TEXT_ENCODER}),
            main_component=Component.TEXT_ENCODER,
            inputs=(),
            output=DataKind.TEXT,
            item=WorkItem.TEXT,
            batched=True,
            tflop=encode_text_tflop,
            assumed_tflops=100.0,
            activations=TEXT_ACTIVATIONS,
            label="texts",
            time_group="encode",
        ),
        Stage.ENCODE_FIRST_FRAME: StageSpec(
            order=1,
            components=frozenset({Component.VIDEO_VAE}),
            main_component=Component.VIDEO_VAE,
            inputs=(),
            output=DataKind.FIRST_FRAME,
            item=WorkItem.FIRST_FRAME,
            image_only=True,
            tflop=encode_first_frame_tflop,
            assumed_tflops=60.0,
            activations=FIRST_FRAME_ACTIVATIONS,
            label="first frames",
            time_group="encode",
        ),
        Stage.DENOISE: StageSpec(
            order=2,
            components=frozenset({Component.TRANSFORMER}),
            main_component=Component.TRANSFORMER,
            inputs=(DataKind.TEXT, DataKind.FIRST_FRAME),
            output=DataKind.LATENTS,
            item=WorkItem.CLIP,
            tflop=denoise_tflop,
            assumed_tflops=150.0,
            activations=DENOISE_ACTIVATIONS,
            label="denoise",
            time_group="denoise",
            progress_unit="step",
        ),
        Stage.DECODE: StageSpec(
            order=3,
            components=frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER}),
            main_component=Component.VIDEO_VAE,
            inputs=(DataKind.LATENTS,),
            output=None,
            item=WorkItem.CLIP,
            tflop=decode_tflop,
            assumed_tflops=60.0,
            activations=VAE_ACTIVATIONS,
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
PRODUCERS: Mapping[DataKind, Stage] = MappingProxyType(
    {spec.output: stage for stage, spec in STAGES.items() if spec.output is not None}
)
"""The stage that makes each kind of data."""
STAGES_WITH_LATENTS = tuple(s for s in CLIP_STAGES if STAGES[s].order > STAGES[PRODUCERS[DataKind.LATENTS]].order)
"""Stages of a clip that are left to do once its latents are there."""
TIME_GROUPS = tuple(dict.fromkeys(spec.time_group for spec in STAGES.values()))
"""Groups of stages in accounts of time, in order."""


def stages_of(*, has_image: bool) -> tuple[Stage, ...]:
    """The stages that a clip with or without a first-frame image goes through, in order."""
    return tuple(stage for stage, spec in STAGES.items() if has_image or not spec.image_only)
