"""Steps with lossy shortcuts, the measurement of their loss, and the way back to exact steps.

A step that takes shortcuts (`ovi.quality`) computes less than both passes, or computes them in fewer bits. On audited ones the
exact velocity is computed too, from the same state: the step takes it, and the relative error of the shortcuts, for video and
for audio, is kept. Beyond the bound the clip goes on exactly.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from ovi.quality import Combination, Loss, ShortcutName, StepView, relative_error
from ovi.sampling.guidance import Pair, PassNumerics, StepPasses
from ovi.types import LossReport

_PAIRS = ("sample", "velocity", "difference")
_LARGEST = torch.finfo(torch.float32).max


@dataclass(kw_only=True, slots=True, frozen=True)
class Audit:
    """One comparison of shortcuts with the exact velocity."""

    step: int
    """From 1."""
    loss: Loss


@dataclass(kw_only=True, slots=True, frozen=True)
class LossyState:
    """State that shortcuts carry from step to step of a clip. Tensors are float32."""

    sample: Pair | None = None
    """The latents of the last step that was computed and not skipped."""
    velocity: Pair | None = None
    """The guided velocity of that step."""
    rate: Tensor | None = None
    """[2] change of the velocity over change of the latents between the last two computed steps, for video and audio."""
    difference: Pair | None = None
    """Positive less negative velocity of the last step that ran both passes."""
    skipped_in_a_row: int = 0
    uses: Mapping[ShortcutName, int] = field(default_factory=dict)
    """Number of uses of each shortcut, audited steps included."""
    applied: Mapping[ShortcutName, int] = field(default_factory=dict)
    """In how many steps each determined the result."""
    lossy_steps: int = 0
    """Steps whose result shortcuts determined."""
    passes: int = 0
    """Passes of the transformer so far."""
    audits: tuple[Audit, ...] = ()
    exact_from: int | None = None
    """The step, from 1, from which the clip went on exactly, because a loss was beyond its bound."""

    def to(self, device: torch.device) -> Self:
        """The same state with its tensors on `device`."""
        pairs: dict[str, Any] = {
            name: None if (pair := getattr(self, name)) is None else _to(pair, device) for name in _PAIRS
        }
        return dataclasses.replace(self, rate=None if self.rate is None else self.rate.to(device), **pairs)

    def tensors(self) -> dict[str, Tensor]:
        """The complete state as named tensors, for a file; what is no tensor is JSON in bytes."""
        pairs = {name: pair for name in _PAIRS if (pair := getattr(self, name)) is not None}
        named = {  # cloned, because solvers keep some of them too, and a file holds no tensor twice
            f"{name}.{part}": tensor.clone()
            for name, pair in pairs.items()
            for part, tensor in zip("va", pair, strict=True)
        }
        if self.rate is not None:
            named["rate"] = self.rate
        record = {name: getattr(self, name) for name in _RECORDED}
        record["audits"] = [[audit.step, audit.loss.video, audit.loss.audio] for audit in self.audits]
        return {**named, "record": torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        record: dict[str, Any] = json.loads(bytes(tensors["record"].tolist()))
        audits = tuple(Audit(step=n, loss=Loss(video=video, audio=audio)) for n, video, audio in record.pop("audits"))
        counts: dict[str, Any] = {
            name: {ShortcutName(key): n for key, n in record.pop(name).items()} for name in ("uses", "applied")
        }
        pairs: dict[str, Any] = {
            name: (tensors[f"{name}.v"], tensors[f"{name}.a"]) for name in _PAIRS if f"{name}.v" in tensors
        }
        return cls(**pairs, **counts, **record, rate=tensors.get("rate"), audits=audits)


_RECORDED = ("skipped_in_a_row", "uses", "applied", "lossy_steps", "passes", "exact_from")


@dataclass(kw_only=True, slots=True, frozen=True)
class LossyPolicy:
    """Decides the shortcuts of each step, takes them, and measures them."""

    combination: Combination
    exact: PassNumerics
    low_bit: PassNumerics
    """The numerics of the shortcuts that compute in fewer bits; as `exact` where there are none."""
    left_out: Mapping[ShortcutName, str] = field(default_factory=dict)
    """Shortcuts of the quality that the device or the weights have not, and why. `combination` is without them."""

    def step(self, passes: StepPasses, state: LossyState, *, step: int, steps: int) -> tuple[Pair, LossyState]:
        """The guided velocities of a step, from 0, and what to remember of it. Waits for the device."""
        used = frozenset[ShortcutName]() if state.exact_from is not None else self._used(passes, state, step, steps)
        if not used:
            velocity = passes.guided(self.exact)
            return velocity, self._computed(passes, state, velocity, difference=passes.difference(self.exact))
        is_audited = self.combination.is_audited(used, state.uses)
        approximate, taken = self._approximate(passes, state, used)
        taken = dataclasses.replace(taken, uses=_counted(state.uses, used))
        if is_audited:
            return self._audited(passes, state, taken, approximate, step)
        applied = _counted(state.applied, used)
        return approximate, dataclasses.replace(taken, applied=applied, lossy_steps=state.lossy_steps + 1)

    def report(self, state: LossyState) -> LossReport:
        """The report on a finished clip."""
        return LossReport(
            lossy_steps=state.lossy_steps,
            shortcuts={str(name): count for name, count in sorted(state.applied.items())},
            low_bit_attention=self._low_bit_backend(),
            left_out={str(name): reason for name, reason in self.left_out.items()},
            passes=state.passes,
            audits=len(state.audits),
            video_loss=max((audit.loss.video for audit in state.audits), default=None),
            audio_loss=max((audit.loss.audio for audit in state.audits), default=None),
            exact_from_step=state.exact_from,
        )

    def _low_bit_backend(self) -> str:
        names = {shortcut.name for shortcut in self.combination.shortcuts}
        return str(self.low_bit.attention.video_self) if ShortcutName.LOW_BIT_ATTENTION in names else ""

    def _used(self, passes: StepPasses, state: LossyState, step: int, steps: int) -> frozenset[ShortcutName]:
        may_skip = any(shortcut.name is ShortcutName.STEP_SKIPPING for shortcut in self.combination.shortcuts)
        view = StepView(
            step=step,
            steps=steps,
            skipped_in_a_row=state.skipped_in_a_row,
            has_difference=state.difference is not None,
            change=_estimated_change(passes, state) if may_skip else None,
        )
        return self.combination.used_at(view)

    def _approximate(
        self, passes: StepPasses, state: LossyState, used: frozenset[ShortcutName]
    ) -> tuple[Pair, LossyState]:
        """The velocities with shortcuts, and the state after them but for its counts."""
        if ShortcutName.STEP_SKIPPING in used and state.velocity is not None:
            return state.velocity, dataclasses.replace(state, skipped_in_a_row=state.skipped_in_a_row + 1)
        numerics = self._numerics(used)
        if ShortcutName.GUIDANCE_REUSE in used and state.difference is not None:
            velocity = passes.guided_by(state.difference, numerics)
            return velocity, self._computed(passes, state, velocity, difference=state.difference)
        velocity = passes.guided(numerics)
        return velocity, self._computed(passes, state, velocity, difference=passes.difference(numerics))

    def _numerics(self, used: frozenset[ShortcutName]) -> PassNumerics:
        return PassNumerics(
            attention=(self.low_bit if ShortcutName.LOW_BIT_ATTENTION in used else self.exact).attention,
            fp8=self.low_bit.fp8 if ShortcutName.FP8_FEED_FORWARD in used else None,
        )

    def _audited(
        self, passes: StepPasses, before: LossyState, taken: LossyState, approximate: Pair, step: int
    ) -> tuple[Pair, LossyState]:
        """The exact velocities, with the error of the approximate ones."""
        exact = passes.guided(self.exact)
        norms, distances = _norms(passes, exact), _norms(passes, _less(approximate, exact))
        numbers = torch.stack([*distances, *norms]).tolist()
        loss = Loss(video=relative_error(numbers[0], numbers[2]), audio=relative_error(numbers[1], numbers[3]))
        state = self._computed(passes, before, exact, difference=passes.difference(self.exact))
        is_within = loss.is_within(self.combination.bound)
        return exact, dataclasses.replace(
            state,
            uses=taken.uses,
            audits=(*before.audits, Audit(step=step + 1, loss=loss)),
            exact_from=None if is_within else step + 1,
        )

    def _computed(self, passes: StepPasses, state: LossyState, velocity: Pair, *, difference: Pair) -> LossyState:
        """The state after a step that was computed."""
        return dataclasses.replace(
            state,
            sample=passes.sample,
            velocity=velocity,
            rate=_rate(passes, state, velocity),
            difference=difference,
            skipped_in_a_row=0,
            passes=state.passes + passes.count,
        )


def _rate(passes: StepPasses, state: LossyState, velocity: Pair) -> Tensor | None:
    if state.sample is None or state.velocity is None:
        return None
    changes = torch.stack(_norms(passes, _less(velocity, state.velocity)))
    moves = torch.stack(_norms(passes, _less(passes.sample, state.sample)))
    return (changes / moves).nan_to_num(nan=_LARGEST, posinf=_LARGEST)


def _estimated_change(passes: StepPasses, state: LossyState) -> Loss | None:
    """Relative change of the velocity since it was computed, if it changes with the latents at the last known rate."""
    if state.sample is None or state.velocity is None or state.rate is None:
        return None
    moves = torch.stack(_norms(passes, _less(passes.sample, state.sample)))
    changes = state.rate * moves / torch.stack(_norms(passes, state.velocity))
    video, audio = changes.tolist()
    return Loss(video=video, audio=audio)


def _norms(passes: StepPasses, pair: Pair) -> list[Tensor]:
    """Euclidean norms of the video, without a first frame that is given, and of the audio."""
    video, audio = pair
    return [torch.linalg.vector_norm(part) for part in (passes.generated(video), audio)]


def _less(pair: Pair, other: Pair) -> Pair:
    return pair[0] - other[0], pair[1] - other[1]


def _to(pair: Pair, device: torch.device) -> Pair:
    return pair[0].to(device), pair[1].to(device)


def _counted(counts: Mapping[ShortcutName, int], used: frozenset[ShortcutName]) -> dict[ShortcutName, int]:
    return dict(Counter(counts) + Counter(used))
