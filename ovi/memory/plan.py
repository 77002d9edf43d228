"""What fits in a device's memory, from sizes alone. Pure: no torch.

A stage takes its components' weights and its activations. The activations are counted, not guessed: the formulas give the
most tensor memory that is alive at once in the code as it stands (a test follows every allocation on the meta device), plus
a margin for what kernels take behind its back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ovi.config import Architecture, Component, ModelSpec
from ovi.errors import MemoryTooSmall
from ovi.geometry import num_video_tokens
from ovi.stages import STAGES, Stage
from ovi.weights.formats import WeightFormat

KERNEL_MARGIN = 1.10  # workspaces of convolutions and matrix products, and what the allocator rounds up
TEXT_BATCH_TOKENS = 4096
_WIDTHS_IN_FEED_FORWARD = 3.1  # activations that are alive beside the two of the hidden width
_WIDTHS_IN_ATTENTION = 5.1
_ROTATION_BYTES = 12.3  # of a token and a width: queries and keys are turned in float32
_WIDTHS_IN_DECODER = {4: 14.6, 2: 11.6, 1: 10.4}  # of its last stage, four frames each, by frames per pass
_WIDTHS_IN_ENCODER = 16.3  # of its first stage, one frame each


class MemoryMode(StrEnum):
    """How a device holds the model."""

    RESIDENT = "resident"
    """Every component stays."""
    OFFLOADED = "offloaded"
    """A stage's components are there; the others wait in the host's memory."""
    STAGED = "staged"
    """A stage's components are there; the others are dropped, and read again when they are needed."""


@dataclass(kw_only=True, slots=True, frozen=True)
class MemoryDemand:
    """Bytes that a model takes."""

    components: Mapping[Component, int]
    """Of each component's weights."""
    activations: Mapping[Stage, int]
    """Of each stage beside them."""

    def of(self, stage: Stage) -> int:
        """Of a stage with nothing else there."""
        return sum(self.components[c] for c in STAGES[stage].components) + self.activations[stage]

    @property
    def resident(self) -> int:
        """Of the largest stage with every component there."""
        return sum(self.components.values()) + max(self.activations.values())

    @property
    def staged(self) -> int:
        """Of the largest stage, each with its own components only."""
        return max(self.of(stage) for stage in Stage)


@dataclass(kw_only=True, slots=True, frozen=True)
class MemoryPlan:
    """How a device runs the model, and the stages it can run so."""

    mode: MemoryMode
    weights: WeightFormat
    peak: Mapping[Stage, int]
    """Bytes of each stage in this mode, those that do not fit too."""
    stages: frozenset[Stage]
    """The stages that fit."""
    budget: int
    """Bytes of the device."""

    def __str__(self) -> str:
        return str(self.mode) if self.weights is WeightFormat.DTYPE else f"{self.weights} {self.mode}"


def plan_memory(demands: Mapping[WeightFormat, MemoryDemand], budget: int, host: int) -> MemoryPlan:
    """The fastest mode for a device of `budget` bytes beside `host` bytes of host memory.

    `demands` are the formats that may be used, the preferred one first. A later one is taken only where it lets the device
    run more stages. Raises MemoryTooSmall, with the smallest budget that would do, where not even one stage fits.
    """
    plans = [_plan(weights, demand, budget, host) for weights, demand in demands.items()]
    best = max(plans, key=lambda plan: len(plan.stages))  # the first of equals
    if not best.stages:
        raise MemoryTooSmall(_too_small(demands, budget))
    return best


def _plan(weights: WeightFormat, demand: MemoryDemand, budget: int, host: int) -> MemoryPlan:
    mode = _mode(demand, budget, host)
    everything = sum(demand.components.values())
    resident = {stage: everything + demand.activations[stage] for stage in Stage}
    peak = resident if mode is MemoryMode.RESIDENT else {stage: demand.of(stage) for stage in Stage}
    stages = frozenset(stage for stage, needed in peak.items() if needed <= budget)
    return MemoryPlan(mode=mode, weights=weights, peak=peak, stages=stages, budget=budget)


def _mode(demand: MemoryDemand, budget: int, host: int) -> MemoryMode:
    if demand.resident <= budget:
        return MemoryMode.RESIDENT
    return MemoryMode.OFFLOADED if sum(demand.components.values()) <= host else MemoryMode.STAGED


def check_budget(demand: MemoryDemand, budget: int) -> None:
    """Raise MemoryTooSmall when a device cannot run every stage, with the stages and the smallest budget that would do."""
    too_large = {stage: demand.of(stage) for stage in Stage if demand.of(stage) > budget}
    if too_large:
        stages = ", ".join(f"{stage} needs {needed / 1e9:.2f} GB" for stage, needed in too_large.items())
        raise MemoryTooSmall(
            f"{budget / 1e9:.2f} GB is too small for any mode: {stages}; the smallest that would do is"
            f" {_gigabytes(demand.staged)} GB"
        )


def _too_small(demands: Mapping[WeightFormat, MemoryDemand], budget: int) -> str:
    needs = "; ".join(
        f"with weights {weights}, one stage alone needs {_gigabytes(min(map(demand.of, Stage)))} GB"
        f" and all of them {_gigabytes(demand.staged)} GB"
        for weights, demand in demands.items()
    )
    return f"{budget / 1e9:.2f} GB is too small for any mode: {needs}"


def _gigabytes(size: int) -> str:
    """Rounded up: a budget of what is printed is enough."""
    hundredths = -(-size // 10**7)
    return f"{hundredths // 100}.{hundredths % 100:02d}"


# -- activations -------------------------------------------------------------------------------------------------------


def activations(arch: Architecture, spec: ModelSpec, height: int, width: int, itemsize: int) -> dict[Stage, int]:
    """Bytes of each stage's activations for clips of a model at (height, width) pixels, in a dtype of `itemsize` bytes."""
    tokens = num_video_tokens(spec.video_latent_length, height, width, arch.video.patch_size)
    counted = {
        Stage.ENCODE_TEXT: text_activations(arch, itemsize),
        Stage.ENCODE_FIRST_FRAME: encode_activations(arch, height, width, itemsize),
        Stage.DENOISE: denoise_activations(arch, tokens, itemsize),
        Stage.DECODE: decode_activations(arch, height, width, itemsize),
    }
    return {stage: int(KERNEL_MARGIN * size) for stage, size in counted.items()}


def denoise_activations(arch: Architecture, tokens: int, itemsize: int, text_rows: int | None = None) -> int:
    """Bytes alive at the fullest point of a pass over so many video tokens: in the video's feed-forward or attention.

    The keys and values of the texts are there all the time, in every block: of four texts of `text_rows` rows (by default
    the longest there can be).
    """
    config = arch.video
    rows = 4 * ((config.text_len if text_rows is None else text_rows) + 1)
    text = 2 * config.num_layers * rows * config.dim * itemsize
    rotations = 10 * config.head_dim * tokens
    feed_forward = (2 * config.ffn_dim + _WIDTHS_IN_FEED_FORWARD * config.dim) * itemsize
    attention = (_WIDTHS_IN_ATTENTION * itemsize + _ROTATION_BYTES) * config.dim
    return text + rotations + int(tokens * max(feed_forward, attention))


def decode_activations(arch: Architecture, height: int, width: int, itemsize: int, frames_per_pass: int = 4) -> int:
    """Bytes alive while a latent frame of (height, width) pixels is decoded; the clip's length does not count."""
    folded = (height // 2) * (width // 2) * arch.video_vae.dec_dim
    return int(4 * folded * _WIDTHS_IN_DECODER[frames_per_pass] * itemsize)


def encode_activations(arch: Architecture, height: int, width: int, itemsize: int) -> int:
    """Bytes alive while a first frame of (height, width) pixels is encoded."""
    return int((height // 2) * (width // 2) * arch.video_vae.dim * _WIDTHS_IN_ENCODER * itemsize)


def text_activations(arch: Architecture, itemsize: int, tokens: int = TEXT_BATCH_TOKENS) -> int:
    """Bytes alive while a batch of so many tokens is encoded, its texts of the full length."""
    config = arch.text_encoder
    scores = tokens * config.text_len * config.num_heads
    return tokens * (3 * config.dim_ffn + 4 * config.dim) * itemsize + scores * (4 + 2 * itemsize)
