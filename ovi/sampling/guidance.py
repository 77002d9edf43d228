"""Classifier-free guidance (arXiv 2207.12598) with skip-layer guidance for the negative pass, one scale a modality."""

from dataclasses import dataclass

from torch import Tensor

from ovi.attention import AttentionPlan
from ovi.models.fusion import FusionTransformer, Grid, TextContext
from ovi.types import PromptEmbeds


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance:
    """Everything about a clip that stays the same from step to step."""

    positive: TextContext
    negative: TextContext
    grid: Grid
    first_frame_is_clean: bool
    video_scale: float
    audio_scale: float
    skip_layer: int | None
    """Block that the negative pass leaves out."""
    attention: AttentionPlan


def embed_texts(transformer: FusionTransformer, embeds: PromptEmbeds) -> tuple[TextContext, TextContext]:
    """Text contexts of the positive pass, where one text serves both modalities, and of the negative pass."""
    positive = transformer.embed_text(embeds.positive, embeds.positive)
    return positive, transformer.embed_text(embeds.video_negative, embeds.audio_negative)


def guided_velocity(
    transformer: FusionTransformer, video: Tensor, audio: Tensor, t: float, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Guided velocities, float32, at video latents [48, F, h, w] and audio latents [L, 20] and time t in [0, 1000]."""
    time = transformer.embed_time(t, guidance.grid, guidance.first_frame_is_clean)
    dtype = transformer.dtype
    video, audio = video.to(dtype), audio.to(dtype)
    positive = transformer(video, audio, guidance.positive, guidance.grid, time, None, guidance.attention)
    negative = transformer(
        video, audio, guidance.negative, guidance.grid, time, guidance.skip_layer, guidance.attention
    )
    return (
        _guide(positive[0].float(), negative[0].float(), guidance.video_scale),
        _guide(positive[1].float(), negative[1].float(), guidance.audio_scale),
    )


def _guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative + scale * (positive - negative)
