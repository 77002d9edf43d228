"""The denoising loop: from noise to latents, with the transformer passed in and the state explicit."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ovi.attention import AttentionPlan
from ovi.attention.types import SDPA_PLAN
from ovi.config import ModelSpec, SamplingParams
from ovi.errors import DenoiseStopped, NonFiniteError
from ovi.finite import FirstNonFinite
from ovi.models.fusion import FusionTransformer
from ovi.sampling.guidance import Guidance, PassNumerics, StepPasses, embed_texts
from ovi.sampling.lossy import LossyPolicy, LossyState
from ovi.sampling.partner import NegativePass
from ovi.sampling.solvers import SolverState, make_solver
from ovi.stages import Stage
from ovi.types import Latents, PromptEmbeds

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, total steps)."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DenoiseState:
    """A partially denoised clip: one solver state per modality, float32."""

    video: SolverState
    audio: SolverState
    lossy: LossyState | None = None
    """State of the clip's shortcuts; None for an exact clip, and before the first step."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self.video.index

    def to(self, device: torch.device) -> Self:
        """The same state with its tensors on `device`."""
        lossy = None if self.lossy is None else self.lossy.to(device)
        return type(self)(video=self.video.to(device), audio=self.audio.to(device), lossy=lossy)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        parts = {"video": self.video.tensors(), "audio": self.audio.tensors()}
        if self.lossy is not None:
            parts["lossy"] = self.lossy.tensors()
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `tensors`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        lossy = part("lossy.")
        return cls(
            video=SolverState.from_tensors(part("video.")),
            audio=SolverState.from_tensors(part("audio.")),
            lossy=LossyState.from_tensors(lossy) if lossy else None,
        )


def initial_noise(
    spec: ModelSpec, latent_height: int, latent_width: int, channels: tuple[int, int], seed: int
) -> Latents:
    """Initial noise: video [48, F, h, w] and audio [L, 20], float32; `channels` is (video, audio).

    Each is drawn on the CPU from a new generator with the clip's seed, so the noise is the same on every device.
    """
    video_channels, audio_channels = channels
    return Latents(
        video=_noise((video_channels, spec.video_latent_length, latent_height, latent_width), seed),
        audio=_noise((spec.audio_latent_length, audio_channels), seed),
    )


def start(noise: Latents) -> DenoiseState:
    """The state before the first step."""
    return DenoiseState(video=SolverState(sample=noise.video), audio=SolverState(sample=noise.audio))


def denoise(
    transformer: FusionTransformer,
    state: DenoiseState,
    embeds: PromptEmbeds,
    params: SamplingParams,
    *,
    first_frame: Tensor | None = None,
    attention: AttentionPlan = SDPA_PLAN,
    policy: LossyPolicy | None = None,
    partner: NegativePass | None = None,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Latents:
    """Run the solvers from `state` to the last step.

    `first_frame` is the latent [48, 1, h, w] of an image; it overwrites latent frame 0 before every step and after the
    last. `policy` takes lossy shortcuts; without one every step is exact, and a `partner` computes the negative passes on
    another device, with equal numbers. `should_stop` is called before every step; when it returns true, DenoiseStopped is
    raised with the state to continue from. Raises NonFiniteError where it would return latents, or a state, that are not
    finite.
    """
    solver = make_solver(params.solver_name, params.sample_steps, params.shift)
    guidance = _guidance(transformer, state, embeds, params, first_frame is not None)
    exact = PassNumerics(attention=attention)
    non_finite = FirstNonFinite(("video latents", "audio latents"), state.video.sample.device)
    while state.step < params.sample_steps:
        if should_stop is not None and should_stop():
            _check(non_finite, params, transformer.dtype, attention)
            raise DenoiseStopped(state)
        video, audio = _with_first_frame(state.video, first_frame), state.audio
        t = solver.timesteps[state.step]
        helper = partner if policy is None else None  # a lossy step may leave its negative pass out
        passes = StepPasses(transformer, video=video.sample, audio=audio.sample, t=t, guidance=guidance, partner=helper)
        if policy is None:
            velocities, lossy = passes.guided(exact), None
        else:
            remembered = state.lossy or LossyState()
            velocities, lossy = policy.step(passes, remembered, step=state.step, steps=params.sample_steps)
        state = DenoiseState(
            video=solver.step(video, velocities[0]), audio=solver.step(audio, velocities[1]), lossy=lossy
        )
        non_finite.observe(state.step, state.video.sample, state.audio.sample)
        if on_step is not None:
            on_step(state.step, params.sample_steps)
    _check(non_finite, params, transformer.dtype, attention)
    return Latents(
        video=_with_first_frame(state.video, first_frame).sample,
        audio=state.audio.sample,
        loss=None if policy is None else policy.report(state.lossy or LossyState()),
    )


def _check(non_finite: FirstNonFinite, params: SamplingParams, dtype: torch.dtype, attention: AttentionPlan) -> None:
    """Raises NonFiniteError. The only place where a denoise waits for its device."""
    found = non_finite.read()
    if not found:
        return
    step = min(found.values())
    scales = f"video {params.video_guidance_scale:g}, audio {params.audio_guidance_scale:g}, shift {params.shift:g}"
    raise NonFiniteError(
        " and ".join(name for name, first in found.items() if first == step),
        stage=Stage.DENOISE,
        first=f"after step {step} of {params.sample_steps}",
        step=step,
        causes=(
            "damaged weights of the transformer",
            f"an overflow in {str(dtype).removeprefix('torch.')}",
            f"the attention backend ({attention})",
            f"guidance or shift out of range ({scales})",
        ),
    )


def _guidance(
    transformer: FusionTransformer,
    state: DenoiseState,
    embeds: PromptEmbeds,
    params: SamplingParams,
    first_frame_is_clean: bool,
) -> Guidance:
    video, audio = state.video.sample, state.audio.sample
    positive, negative = embed_texts(transformer, embeds)
    return Guidance(
        positive=positive,
        negative=negative,
        grid=transformer.embed_grid(video.shape, audio.shape[0], video.device),
        first_frame_is_clean=first_frame_is_clean,
        video_scale=params.video_guidance_scale,
        audio_scale=params.audio_guidance_scale,
        skip_layer=params.slg_layer or None,  # 0 leaves out no block
    )


def _with_first_frame(state: SolverState, first_frame: Tensor | None) -> SolverState:
    if first_frame is None:
        return state
    sample = torch.cat([first_frame.to(state.sample), state.sample[:, 1:]], dim=1)
    return dataclasses.replace(state, sample=sample)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu", dtype=torch.float32)
