"""Which backend runs at which site of the model, and the shapes it runs on. Pure: no torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from ovi.attention.names import AttentionBackend, Site
from ovi.config import TransformerConfig


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionShape:
    """One call: q [1, query_length, num_heads, head_dim] against key_length keys."""

    query_length: int
    key_length: int
    num_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.query_length}x{self.key_length} h{self.num_heads} d{self.head_dim}"

    @property
    def score_bytes(self) -> int:
        """Bytes of the whole score matrix in float32."""
        return 4 * self.num_heads * self.query_length * self.key_length


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionPlan:
    """A backend for each site: chosen once for a size of clip, passed to the model as an argument."""

    video_self: AttentionBackend
    audio_self: AttentionBackend
    video_to_audio: AttentionBackend
    audio_to_video: AttentionBackend
    video_to_text: AttentionBackend
    audio_to_text: AttentionBackend

    @classmethod
    def uniform(cls, backend: AttentionBackend) -> Self:
        """The same backend everywhere."""
        return cls(**dict.fromkeys(map(str, Site), backend))

    @classmethod
    def of(cls, backends: Mapping[Site, AttentionBackend]) -> Self:
        """The plan of a backend by site."""
        return cls(**{str(site): backend for site, backend in backends.items()})

    def __str__(self) -> str:
        """As it stands in a clip's row: one name, or each name with its sites."""
        pairs = sorted((str(getattr(self, field.name)), field.name) for field in dataclasses.fields(self))
        groups = {name: [site for _, site in group] for name, group in groupby(pairs, key=lambda pair: pair[0])}
        if len(groups) == 1:
            return next(iter(groups))
        return "; ".join(f"{name}: {', '.join(sites)}" for name, sites in groups.items())


TORCHS_CHOICE = AttentionPlan.uniform(AttentionBackend.SDPA)


def attention_shapes(
    video: TransformerConfig, audio: TransformerConfig, video_shape: tuple[int, ...], audio_length: int
) -> dict[Site, AttentionShape]:
    """The shapes at every site for video latents [48, F, h, w] and audio latents [audio_length, 20]."""
    tokens = math.prod(size // patch for size, patch in zip(video_shape[1:], video.patch_size, strict=True))

    def shape(config: TransformerConfig, queries: int, keys: int) -> AttentionShape:
        return AttentionShape(
            query_length=queries, key_length=keys, num_heads=config.num_heads, head_dim=config.head_dim
        )

    return {
        Site.VIDEO_SELF: shape(video, tokens, tokens),
        Site.AUDIO_SELF: shape(audio, audio_length, audio_length),
        Site.VIDEO_TO_AUDIO: shape(video, tokens, audio_length),
        Site.AUDIO_TO_VIDEO: shape(audio, audio_length, tokens),
        Site.VIDEO_TO_TEXT: shape(video, tokens, video.text_len),
        Site.AUDIO_TO_TEXT: shape(audio, audio_length, audio.text_len),
    }
