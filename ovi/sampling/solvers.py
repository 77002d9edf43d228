"""ODE solvers of the published model: UniPC, DPM-Solver++ and flow-match Euler.

A solver is a noise schedule (floats) and a step function from state to state. The state holds every tensor that the next
step needs, so a partially denoised clip can be saved and resumed bit for bit. A flow model interpolates
x = (1 - sigma) * x0 + sigma * noise and predicts the velocity noise - x0.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ovi.config import SolverName

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(kw_only=True, slots=True, frozen=True)
class SolverState:
    """State of a trajectory before step `index`."""

    sample: Tensor
    index: int = 0
    predictions: tuple[Tensor, ...] = ()
    """Earlier predictions of x0 that the next step uses, newest first."""
    previous_sample: Tensor | None = None
    """The corrected sample of the last prediction, from which UniPC's corrector starts."""
    order: int = 0
    """Order of the last step, which its correction uses too."""

    def to(self, device: torch.device) -> Self:
        """The same state with its tensors on `device`."""
        return dataclasses.replace(
            self,
            sample=self.sample.to(device),
            predictions=tuple(prediction.to(device) for prediction in self.predictions),
            previous_sample=None if self.previous_sample is None else self.previous_sample.to(device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The complete state as named tensors, for a file."""
        named = {f"predictions.{i}": prediction for i, prediction in enumerate(self.predictions)}
        if self.previous_sample is not None:
            named["previous_sample"] = self.previous_sample
        return {"sample": self.sample, **named, "position": torch.tensor([self.index, self.order])}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        index, order = tensors["position"].tolist()
        count = sum(name.startswith("predictions.") for name in tensors)
        return cls(
            sample=tensors["sample"],
            index=index,
            predictions=tuple(tensors[f"predictions.{i}"] for i in range(count)),
            previous_sample=tensors.get("previous_sample"),
            order=order,
        )


class Solver(Protocol):
    """A noise schedule and the step along it."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise level before each step, then 0: one value more than there are steps."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Time in [0, 1000] that the model is given at each step."""

    def step(self, state: SolverState, velocity: Tensor) -> SolverState:
        """The state after one step, from the velocity predicted at `state.sample`."""


def make_solver(name: SolverName, steps: int, shift: float) -> Solver:
    """The published solver of that name, with its schedule of `steps` steps."""
    match name:
        case SolverName.UNIPC:
            return UniPC.schedule(steps, shift)
        case SolverName.DPMPP:
            return DPMSolverPP.schedule(steps, shift)
        case SolverName.EULER:
            return Euler.schedule(steps, shift)


@dataclass(kw_only=True, slots=True, frozen=True)
class UniPC:
    """UniPC (arXiv 2302.04867), order 2, B2(h), predicting x0, with the corrector after every step but the first."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def schedule(cls, steps: int, shift: float) -> Self:
        """The published schedule: starts at sigma 0.999, with times truncated to integers."""
        sigmas = _shifted(np.linspace(1 - 1 / NUM_TRAIN_TIMESTEPS, 0, steps + 1)[:-1], shift)
        return cls(sigmas=_rounded(sigmas), timesteps=tuple(float(int(t)) for t in sigmas * NUM_TRAIN_TIMESTEPS))

    def step(self, state: SolverState, velocity: Tensor) -> SolverState:
        """Correct the current sample with its new prediction, then predict the next sample."""
        prediction = state.sample - self.sigmas[state.index] * velocity
        sample = self._correct(state, prediction) if state.index > 0 else state.sample
        order = min(2, len(self.timesteps) - state.index, state.index + 1)
        predictions = (prediction, *state.predictions[:1])
        return SolverState(
            sample=self._predict(sample, predictions, state.index, order),
            index=state.index + 1,
            predictions=predictions,
            previous_sample=sample,
            order=order,
        )

    def _predict(self, sample: Tensor, predictions: tuple[Tensor, ...], index: int, order: int) -> Tensor:
        move = _Move.between(self.sigmas[index], self.sigmas[index + 1])
        estimate = move.first_order(sample, predictions[0])
        if order == 1:
            return estimate
        ratio = (_half_log_snr(self.sigmas[index - 1]) - move.start) / move.h
        slope = (predictions[1] - predictions[0]) / ratio
        return estimate - move.alpha * move.phi * 0.5 * slope

    def _correct(self, state: SolverState, prediction: Tensor) -> Tensor:
        """UniC: recompute the sample from the previous one, using the prediction at the sample itself."""
        if state.previous_sample is None:
            raise ValueError(f"previous_sample is None at step {state.index}; expected the sample of the step before")
        move = _Move.between(self.sigmas[state.index - 1], self.sigmas[state.index])
        base = state.predictions[0]
        estimate = move.first_order(state.previous_sample, base)
        if state.order == 1:
            return estimate - move.alpha * move.phi * 0.5 * (prediction - base)
        ratio = (_half_log_snr(self.sigmas[state.index - 2]) - move.start) / move.h
        old, new = move.corrector_weights(ratio)
        slope = (state.predictions[1] - base) / ratio
        return estimate - move.alpha * move.phi * (old * slope + new * (prediction - base))


@dataclass(kw_only=True, slots=True, frozen=True)
class DPMSolverPP:
    """DPM-Solver++ 2M (arXiv 2211.01095), midpoint, first order at the first and last step."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def schedule(cls, steps: int, shift: float) -> Self:
        """The published schedule: starts at pure noise, with times truncated to integers."""
        sigmas = _shifted(np.linspace(1, 0, steps + 1)[:steps], shift)
        return cls(sigmas=_rounded(sigmas), timesteps=tuple(float(int(t)) for t in sigmas * NUM_TRAIN_TIMESTEPS))

    def step(self, state: SolverState, velocity: Tensor) -> SolverState:
        """One multistep step."""
        index = state.index
        prediction = state.sample - self.sigmas[index] * velocity
        move = _Move.between(self.sigmas[index], self.sigmas[index + 1])
        sample = move.first_order(state.sample, prediction)
        if 0 < index < len(self.timesteps) - 1:
            ratio = (move.start - _half_log_snr(self.sigmas[index - 1])) / move.h
            slope = (prediction - state.predictions[0]) / ratio
            sample = sample - 0.5 * move.alpha * move.phi * slope
        return SolverState(sample=sample, index=index + 1, predictions=(prediction,))


@dataclass(kw_only=True, slots=True, frozen=True)
class Euler:
    """Flow-match Euler as in diffusers, which shifts its lowest sigma before it shifts the schedule."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def schedule(cls, steps: int, shift: float) -> Self:
        """The published schedule: from pure noise to the shifted lowest sigma, with times not truncated."""
        lowest = float(_shifted(np.array(1 / NUM_TRAIN_TIMESTEPS), shift))
        sigmas = _shifted(np.linspace(1, lowest, steps), shift)
        return cls(sigmas=_rounded(sigmas), timesteps=_rounded(sigmas * NUM_TRAIN_TIMESTEPS)[:-1])

    def step(self, state: SolverState, velocity: Tensor) -> SolverState:
        """One Euler step along the velocity to the next sigma."""
        sample = state.sample + (self.sigmas[state.index + 1] - self.sigmas[state.index]) * velocity
        return SolverState(sample=sample, index=state.index + 1)


@dataclass(kw_only=True, slots=True, frozen=True)
class _Move:
    """Constants of one exponential-integrator step from one sigma to a lower one."""

    ratio: float  # sigma_end / sigma_start
    alpha: float  # 1 - sigma_end
    start: float  # half log-SNR at the start
    h: float  # increase of the half log-SNR; infinite at either end of the schedule
    phi: float  # e^-h - 1

    @classmethod
    def between(cls, start: float, end: float) -> "_Move":
        h = _half_log_snr(end) - _half_log_snr(start)
        return cls(ratio=end / start, alpha=1 - end, start=_half_log_snr(start), h=h, phi=math.expm1(-h))

    def first_order(self, sample: Tensor, prediction: Tensor) -> Tensor:
        return self.ratio * sample - self.alpha * self.phi * prediction

    def corrector_weights(self, ratio: float) -> tuple[float, float]:
        """Weights of the old and new slope: solves [[1, 1], [ratio, 1]] w = b of the UniPC paper's equation 8, B2(h)."""
        phi_2 = self.phi / -self.h - 1
        phi_3 = phi_2 / -self.h - 0.5
        b_1, b_2 = phi_2 / self.phi, 2 * phi_3 / self.phi
        old = (b_2 - b_1) / (ratio - 1)
        return old, b_1 - old


def _half_log_snr(sigma: float) -> float:
    if sigma == 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _rounded(sigmas: np.ndarray) -> tuple[float, ...]:
    """The sigmas rounded to float32, as in the published schedules, followed by the final 0."""
    return (*(float(s) for s in sigmas.astype(np.float32)), 0.0)
