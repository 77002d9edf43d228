"""Classifier-free guidance (arXiv 2207.12598), one scale per modality, with skip-layer guidance in the negative pass."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ovi.attention import AttentionPlan
from ovi.models.fusion import FusionTransformer, Grid, TextContext
from ovi.types import PromptEmbeds


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance:
    """Inputs of the guided velocity that are constant over a clip's steps."""

    positive: TextContext
    negative: TextContext
    grid: Grid
    first_frame_is_clean: bool
    video_scale: float
    audio_scale: float
    skip_layer: int | None
    """Index of the block that the negative pass leaves out; None for none."""
    attention: AttentionPlan


def embed_texts(transformer: FusionTransformer, embeds: PromptEmbeds) -> tuple[TextContext, TextContext]:
    """Text contexts of the positive and of the negative pass. The prompt serves both modalities."""
    positive = transformer.embed_text(video=embeds.positive, audio=embeds.positive)
    return positive, transformer.embed_text(video=embeds.video_negative, audio=embeds.audio_negative)


def guided_velocity(
    transformer: FusionTransformer, *, video: Tensor, audio: Tensor, t: float, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Guided velocities, float32, of video latents [48, F, h, w] and audio latents [L, 20] at t in [0, 1000]."""
    velocities = partial(
        transformer,
        video=video.to(transformer.dtype),
        audio=audio.to(transformer.dtype),
        grid=guidance.grid,
        time=transformer.embed_time(t, guidance.grid, guidance.first_frame_is_clean),
        attention=guidance.attention,
    )
    positive = velocities(text=guidance.positive)
    negative = velocities(text=guidance.negative, skip_layer=guidance.skip_layer)
    return (
        _guide(positive=positive[0], negative=negative[0], scale=guidance.video_scale),
        _guide(positive=positive[1], negative=negative[1], scale=guidance.audio_scale),
    )


def _guide(*, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative.float() + scale * (positive.float() - negative.float())
