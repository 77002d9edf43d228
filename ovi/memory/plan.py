"""Memory planning: the memory mode and the stages that fit a device, computed from sizes alone (no torch).

A stage needs memory for its components' weights and for its activations. The activation formulas count the peak of live
tensor memory in the current implementation (a test tracks every allocation on the meta device and allows 5%), and a
margin covers kernel workspaces. Sizes are in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ovi.config import MAX_TOKENS_PER_BATCH, Architecture, Component, ModelSpec
from ovi.errors import MemoryTooSmall
from ovi.geometry import num_video_tokens
from ovi.quality import Quality, computes_in_fp8
from ovi.stages import STAGES, Stage
from ovi.weights.formats import WeightFormat

KERNEL_MARGIN = 1.10  # for workspaces of convolutions and matrix products, and the allocator's rounding
_WIDTHS_IN_FEED_FORWARD = 2.1  # live activations of the model width, beside the two of the hidden width
_WIDTHS_IN_ATTENTION = 5.1  # live activations of the model width
_ROTATION_BYTES = 7.8  # per token and channel: queries and keys are rotated in float32
_WIDTHS_IN_DECODER = {4: 14.6, 2: 11.6, 1: 10.4}  # frames per pass -> live activations of the last stage, 4 frames each
_WIDTHS_IN_ENCODER = 16.3  # live activations of the first stage, one frame each


class MemoryMode(StrEnum):
    """Placement of the components that the current stage does not use."""

    RESIDENT = "resident"
    """All components stay in device memory."""
    OFFLOADED = "offloaded"
    """Only the current stage's components are in device memory; the others wait in host memory."""
    STAGED = "staged"
    """Only the current stage's components are in memory; the others are dropped and read from disk again when needed."""


@dataclass(kw_only=True, slots=True, frozen=True)
class MemoryDemand:
    """Memory that a model needs, in bytes."""

    components: Mapping[Component, int]
    """Weights of each component."""
    activations: Mapping[Stage, int]
    """Peak activations of each stage."""
    pinned: int = 0
    """Host memory for the transformer's blocks, where they are streamed; `components` then has only their buffers."""

    def of(self, stage: Stage) -> int:
        """Bytes of a stage with only its own components in memory."""
        return sum(self.components[c] for c in STAGES[stage].components) + self.activations[stage]

    @property
    def resident(self) -> int:
        """Bytes of the largest stage with every component in memory."""
        return sum(self.components.values()) + max(self.activations.values())

    @property
    def staged(self) -> int:
        """Bytes of the largest stage with only its own components in memory."""
        return max(self.of(stage) for stage in Stage)


@dataclass(kw_only=True, slots=True, frozen=True)
class MemoryPlan:
    """The memory mode of a device and the stages that fit in it."""

    mode: MemoryMode
    weights: WeightFormat
    peak: Mapping[Stage, int]
    """Bytes that each stage needs in this mode, including stages that do not fit."""
    stages: frozenset[Stage]
    """The stages that fit."""
    budget: int
    """Bytes that the device offers."""
    weight_bytes: int
    """Bytes of the weights that are on the device while it denoises."""
    pinned: int = 0
    """Bytes of host memory that streamed blocks take."""

    def __str__(self) -> str:
        form = "streamed " if self.pinned else "" if self.weights is WeightFormat.DTYPE else f"{self.weights} "
        return f"{form}{self.mode}"


def plan_memory(demands: Mapping[WeightFormat, MemoryDemand], *, budget: int, host: int) -> MemoryPlan:
    """The fastest memory mode for a device with `budget` bytes, next to `host` bytes of host memory.

    `demands` holds the permitted weight formats in order of preference. A later format is chosen only if it lets the
    device run more stages. Raises MemoryTooSmall, naming the smallest sufficient budget, when no stage fits, or the host
    memory that streamed blocks need where it is not there.
    """
    if not any(demand.pinned <= host for demand in demands.values()):
        pinned = min(demand.pinned for demand in demands.values())
        raise MemoryTooSmall(
            f"streamed blocks need {_gigabytes(pinned)} GB of host memory for each device, and it has {host / 1e9:.2f} GB",
            needed=pinned,
        )
    possible = {weights: demand for weights, demand in demands.items() if demand.pinned <= host}
    plans = [_plan(weights, demand, budget=budget, host=host) for weights, demand in possible.items()]
    best = max(plans, key=lambda plan: len(plan.stages))  # the first among equals
    if not best.stages:
        smallest = min(demand.of(stage) for demand in demands.values() for stage in Stage)
        raise MemoryTooSmall(_too_small(demands, budget), needed=smallest)
    return best


def _plan(weights: WeightFormat, demand: MemoryDemand, *, budget: int, host: int) -> MemoryPlan:
    mode = _mode(demand, budget=budget, host=host)
    everything = sum(demand.components.values())
    resident = {stage: everything + demand.activations[stage] for stage in Stage}
    peak = resident if mode is MemoryMode.RESIDENT else {stage: demand.of(stage) for stage in Stage}
    stages = frozenset(stage for stage, needed in peak.items() if needed <= budget)
    held = peak[Stage.DENOISE] - demand.activations[Stage.DENOISE]
    return MemoryPlan(
        mode=mode, weights=weights, peak=peak, stages=stages, budget=budget, weight_bytes=held, pinned=demand.pinned
    )


def _mode(demand: MemoryDemand, *, budget: int, host: int) -> MemoryMode:
    if demand.resident <= budget:
        return MemoryMode.RESIDENT
    return MemoryMode.OFFLOADED if sum(demand.components.values()) + demand.pinned <= host else MemoryMode.STAGED


def check_budget(demand: MemoryDemand, budget: int) -> None:
    """Raise MemoryTooSmall unless every stage fits, naming the stages that do not and the smallest sufficient budget."""
    too_large = {stage: demand.of(stage) for stage in Stage if demand.of(stage) > budget}
    if too_large:
        stages = ", ".join(f"{stage} needs {needed / 1e9:.2f} GB" for stage, needed in too_large.items())
        raise MemoryTooSmall(
            f"{budget / 1e9:.2f} GB is too small for any memory mode: {stages}; at least {_gigabytes(demand.staged)} GB"
            " are needed",
            needed=demand.staged,
        )


def _too_small(demands: Mapping[WeightFormat, MemoryDemand], budget: int) -> str:
    needs = "; ".join(
        f"with {weights} weights the smallest stage needs {_gigabytes(min(map(demand.of, Stage)))} GB"
        f" and every stage {_gigabytes(demand.staged)} GB"
        for weights, demand in demands.items()
    )
    return f"{budget / 1e9:.2f} GB is too small for any memory mode: {needs}"


def _gigabytes(size: int) -> str:
    """GB with two decimals, rounded up so that the printed budget is sufficient."""
    hundredths = -(-size // 10**7)
    return f"{hundredths // 100}.{hundredths % 100:02d}"


# -- activations -------------------------------------------------------------------------------------------------------


def activations(
    arch: Architecture,
    spec: ModelSpec,
    height: int,
    width: int,
    itemsize: int,
    quality: Quality = Quality.EXACT,
    *,
    weights: WeightFormat = WeightFormat.DTYPE,
) -> dict[Stage, int]:
    """Bytes of each stage's peak activations for clips of (height, width) pixels in a dtype of `itemsize` bytes.

    A quality computes in 8-bit floats with `weights` of every form but 8-bit integers.
    """
    tokens = num_video_tokens(spec.video_latent_length, height, width, arch.video.patch_size)
    counted = {
        Stage.ENCODE_TEXT: text_activations(arch, itemsize),
        Stage.ENCODE_FIRST_FRAME: encode_activations(arch, height, width, itemsize),
        Stage.DENOISE: denoise_activations(
            arch, tokens, itemsize, fp8=computes_in_fp8(quality) and weights is not WeightFormat.QINT8
        ),
        Stage.DECODE: decode_activations(arch, height, width, itemsize),
    }
    return {stage: int(KERNEL_MARGIN * size) for stage, size in counted.items()}


def denoise_activations(
    arch: Architecture, tokens: int, itemsize: int, text_rows: int | None = None, *, fp8: bool = False
) -> int:
    """Peak bytes of a forward pass over `tokens` video tokens, reached in the video's feed-forward or attention.

    With `fp8` the feed-forward also holds its hidden activations scaled by row, and in 8-bit floats, as plain torch narrows
    them; the fused kernel needs less. The keys and values of four texts (positive and negative, for video and audio) stay in
    memory for every block, each text with `text_rows` rows (default: the maximum, text_len).
    """
    config = arch.video
    rows = 4 * ((config.text_len if text_rows is None else text_rows) + 1)
    text = 2 * config.num_layers * rows * config.dim * itemsize
    rotations = 10 * config.head_dim * tokens
    feed_forward = (2 * config.ffn_dim + _WIDTHS_IN_FEED_FORWARD * config.dim) * itemsize
    if fp8:
        feed_forward += config.ffn_dim * (itemsize + 1)
    attention = (_WIDTHS_IN_ATTENTION * itemsize + _ROTATION_BYTES) * config.dim
    return text + rotations + int(tokens * max(feed_forward, attention))


def decode_activations(arch: Architecture, height: int, width: int, itemsize: int, frames_per_pass: int = 4) -> int:
    """Peak bytes of decoding a clip of (height, width) pixels; independent of its length because decoding streams."""
    folded = (height // 2) * (width // 2) * arch.video_vae.dec_dim
    return int(4 * folded * _WIDTHS_IN_DECODER[frames_per_pass] * itemsize)


def encode_activations(arch: Architecture, height: int, width: int, itemsize: int) -> int:
    """Peak bytes of encoding a first frame of (height, width) pixels."""
    return int((height // 2) * (width // 2) * arch.video_vae.dim * _WIDTHS_IN_ENCODER * itemsize)


def text_activations(arch: Architecture, itemsize: int, tokens: int = MAX_TOKENS_PER_BATCH) -> int:
    """Peak bytes of encoding a batch of `tokens` tokens whose texts have the maximum length."""
    config = arch.text_encoder
    scores = tokens * config.text_len * config.num_heads
    return tokens * (3 * config.dim_ffn + 4 * config.dim) * itemsize + scores * (4 + 2 * itemsize)
