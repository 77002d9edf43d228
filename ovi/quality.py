"""Lossy shortcuts of a denoise: which there are, when a step takes them, and which a quality combines (no torch).

A shortcut decides from a `StepView`, plain numbers about the clip so far, whether the next step may take it. What it does to
the step is in `ovi.sampling.lossy`, which also measures the loss: on one in `audit_every` uses of each shortcut the exact
velocity is computed from the same state. Beyond the bound of its quality a clip goes on exactly.

Sources: guidance difference kept (Adaptive Guidance, arXiv 2312.12487), steps skipped by the change of the output (EasyCache,
arXiv 2507.02860), with the difference that both modalities have to agree.
"""

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Self

_WITHOUT_FP8_PRODUCTS = re.compile(r"sm[1-7]\d|sm8[0-8]|gfx(?!94|95|12)\w+")
PASSES_PER_STEP = 2  # with the prompt and with the negative prompts


class Quality(StrEnum):
    """Permitted deviation of a clip's numbers from those of the model."""

    EXACT = "exact"
    HIGH = "high"
    FAST = "fast"


class ShortcutName(StrEnum):
    """The shortcuts, as results name them."""

    STEP_SKIPPING = "step_skipping"
    GUIDANCE_REUSE = "guidance_reuse"
    FP8_FEED_FORWARD = "fp8_feed_forward"
    LOW_BIT_ATTENTION = "low_bit_attention"


@dataclass(kw_only=True, slots=True, frozen=True)
class Loss:
    """A relative error |approximate - exact| / |exact| of a velocity, or a bound for it, for each modality."""

    video: float
    audio: float

    def is_within(self, bound: "Loss") -> bool:
        """Whether both modalities keep to their bound; NaN keeps to none."""
        return self.video <= bound.video and self.audio <= bound.audio


@dataclass(kw_only=True, slots=True, frozen=True)
class StepView:
    """The state of a denoise before a step, as far as a shortcut may use it."""

    step: int
    """From 0."""
    steps: int
    skipped_in_a_row: int = 0
    """Steps just before this one that took the kept velocity."""
    has_difference: bool = False
    """An earlier step ran both passes, so there is a guidance difference to reuse."""
    change: Loss | None = None
    """Estimated relative change of the velocity since it was last computed; None while there is nothing to estimate from."""


class Shortcut(ABC):
    """A way to compute a step with less work and other numbers."""

    name: ClassVar[ShortcutName]
    audit_every: int
    """The first use and then every so many are measured against the exact velocity, which the step then takes."""

    @abstractmethod
    def applies(self, view: StepView) -> bool:
        """Whether the step may take it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class StepSkipping(Shortcut):
    """Take the velocity of the last computed step, where it is estimated to have changed little in both modalities.

    Video alone must not decide: on other joint models that damaged the sound.
    """

    name = ShortcutName.STEP_SKIPPING
    tolerance: Loss
    most_in_a_row: int
    computed_first: float
    """Share of the steps, from the first one, that are always computed. The last step always is."""
    audit_every: int

    def applies(self, view: StepView) -> bool:
        """See Shortcut."""
        is_between = self.computed_first * view.steps <= view.step < view.steps - 1
        may_go_on = view.skipped_in_a_row < self.most_in_a_row
        return is_between and may_go_on and view.change is not None and view.change.is_within(self.tolerance)


@dataclass(kw_only=True, slots=True, frozen=True)
class GuidanceReuse(Shortcut):
    """Leave out the negative pass, and take the difference of the passes from the last step that ran both."""

    name = ShortcutName.GUIDANCE_REUSE
    after: float
    """Share of the steps that run both passes first."""
    audit_every: int
    """Also how often the difference is renewed, as an audit runs both passes."""

    def applies(self, view: StepView) -> bool:
        """See Shortcut."""
        return view.has_difference and view.step >= self.after * view.steps


@dataclass(kw_only=True, slots=True, frozen=True)
class Fp8FeedForward(Shortcut):
    """Compute the video's feed-forward products in 8-bit floats, scaled by row. Attention's projections stay as they are."""

    name = ShortcutName.FP8_FEED_FORWARD
    audit_every: int

    def applies(self, view: StepView) -> bool:
        """See Shortcut."""
        return True


@dataclass(kw_only=True, slots=True, frozen=True)
class LowBitAttention(Shortcut):
    """Use an 8-bit attention backend where video attends to itself, and nowhere else, if one is faster there."""

    name = ShortcutName.LOW_BIT_ATTENTION
    audit_every: int

    def applies(self, view: StepView) -> bool:
        """See Shortcut."""
        return True


@dataclass(kw_only=True, slots=True, frozen=True)
class Combination:
    """The shortcuts of a quality, and the loss beyond which a clip goes on exactly."""

    shortcuts: tuple[Shortcut, ...]
    bound: Loss

    def without(self, names: Collection[ShortcutName]) -> Self:
        """The same without some shortcuts."""
        return dataclasses.replace(self, shortcuts=tuple(s for s in self.shortcuts if s.name not in names))

    def used_at(self, view: StepView) -> frozenset[ShortcutName]:
        """The shortcuts that a step takes; a skipped step takes no other."""
        used = frozenset(shortcut.name for shortcut in self.shortcuts if shortcut.applies(view))
        skipping = used & {ShortcutName.STEP_SKIPPING}
        return skipping or used

    def is_audited(self, used: Collection[ShortcutName], uses: Mapping[ShortcutName, int]) -> bool:
        """Whether a step that takes the shortcuts `used` is measured; `uses` counts how often each was taken before."""
        return any(uses.get(s.name, 0) % s.audit_every == 0 for s in self.shortcuts if s.name in used)

    def expected_passes(self, steps: int) -> int:
        """Passes of the transformer for a clip, audits included and no step skipped: how many are is known only afterwards."""
        uses: Counter[ShortcutName] = Counter()
        passes, has_difference = 0, False
        for step in range(steps):
            used = self.used_at(StepView(step=step, steps=steps, has_difference=has_difference))
            is_audited = bool(used) and self.is_audited(used, uses)
            uses.update(used)
            reuses = ShortcutName.GUIDANCE_REUSE in used
            own_passes = used - {ShortcutName.GUIDANCE_REUSE}  # an audit shares the exact passes with the others
            passes += PASSES_PER_STEP if is_audited or not used else 0
            passes += PASSES_PER_STEP - reuses if used and (own_passes or not is_audited) else 0
            has_difference |= is_audited or not reuses
        return passes

    @property
    def identity(self) -> str:
        """Everything about it that changes pixels, as text: part of a clip's id."""
        return "; ".join([*(f"{s.name} {_fields(s)}" for s in self.shortcuts), f"bound {_fields(self.bound)}"])


def _fields(value: object) -> str:
    """The fields of a dataclass, in order."""
    parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))  # type: ignore[arg-type]
    return " ".join(f"{name}=({_fields(part)})" if isinstance(part, Loss) else f"{name}={part}" for name, part in parts)


COMBINATIONS: Mapping[Quality, Combination] = MappingProxyType(
    {
        Quality.EXACT: Combination(shortcuts=(), bound=Loss(video=0.0, audio=0.0)),
        Quality.HIGH: Combination(
            shortcuts=(GuidanceReuse(after=0.5, audit_every=8),), bound=Loss(video=0.10, audio=0.05)
        ),
        Quality.FAST: Combination(
            shortcuts=(
                StepSkipping(
                    tolerance=Loss(video=0.05, audio=0.03), most_in_a_row=2, computed_first=0.2, audit_every=4
                ),
                GuidanceReuse(after=0.4, audit_every=8),
                Fp8FeedForward(audit_every=25),
                LowBitAttention(audit_every=25),
            ),
            bound=Loss(video=0.20, audio=0.10),
        ),
    }
)
"""The shortcuts and bounds of each quality. docs/quality.md says what they are chosen from."""


def expected_passes(quality: Quality, steps: int) -> int:
    """Passes of the transformer for a clip, audits included; see `Combination.expected_passes`."""
    return COMBINATIONS[quality].expected_passes(steps)


def computes_in_fp8(quality: Quality) -> bool:
    """Whether clips of a quality compute feed-forwards in 8-bit floats, which takes memory beside the exact ones."""
    return any(shortcut.name is ShortcutName.FP8_FEED_FORWARD for shortcut in COMBINATIONS[quality].shortcuts)


def may_have_fp8_products(architecture: str) -> bool:
    """Whether devices of an architecture may multiply 8-bit floats; those of an unknown one may."""
    return _WITHOUT_FP8_PRODUCTS.fullmatch(architecture) is None


def relative_error(distance: float, norm: float) -> float:
    """`distance / norm`, where a zero among the norms is no error only if nothing differs."""
    if norm > 0:
        return distance / norm
    return 0.0 if distance == 0 else math.inf
