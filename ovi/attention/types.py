"""Attention backends, the sites of the model where attention runs, and the plan that assigns them (no torch)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import Self

from ovi.config import TransformerConfig


class AttentionBackend(StrEnum):
    """Names of the backends, as used in job files and results."""

    AUTO = "auto"
    """Benchmark the backends on the device and use the fastest accurate one at each site."""
    FLASH_ATTN_3 = "flash_attn_3"
    """FlashAttention-3, from the package `flash_attn_interface`."""
    FLASH_ATTN_2 = "flash_attn_2"
    """FlashAttention-2, from the package `flash_attn`."""
    SAGE = "sage"
    """SageAttention: computes in 8 bits, so inexact."""
    SDPA = "sdpa"
    """PyTorch's `scaled_dot_product_attention`, with the kernel that PyTorch selects."""
    SDPA_FLASH = "sdpa_flash"
    """The FlashAttention kernel inside PyTorch."""
    SDPA_CUDNN = "sdpa_cudnn"
    """cuDNN's fused attention through PyTorch."""
    SDPA_EFFICIENT = "sdpa_efficient"
    """PyTorch's memory-efficient kernel."""
    SDPA_AOTRITON = "sdpa_aotriton"
    """AOTriton, which implements PyTorch's flash kernel on ROCm."""
    AITER = "aiter"
    """AMD's AI Tensor Engine for ROCm, from the package `amd-aiter`."""
    SDPA_MATH = "sdpa_math"
    """Unfused softmax with the whole score matrix in memory; the fallback where no fused kernel works."""
    FLASH_ATTN_3_FP8 = "flash_attn_3_fp8"
    """FlashAttention-3 with 8-bit floats, so inexact."""


INEXACT = frozenset({AttentionBackend.SAGE, AttentionBackend.FLASH_ATTN_3_FP8})
"""Backends that compute in fewer bits than their inputs have."""


class Site(StrEnum):
    """The attention calls of a block, named QUERIES_to_KEYS. Shapes differ by site, so the fastest backend may too."""

    VIDEO_SELF = "video_self"
    AUDIO_SELF = "audio_self"
    VIDEO_TO_AUDIO = "video_to_audio"
    AUDIO_TO_VIDEO = "audio_to_video"
    VIDEO_TO_TEXT = "video_to_text"
    AUDIO_TO_TEXT = "audio_to_text"


_EXACT_LENGTH = 2048  # shorter lengths hardly differ between clips of a model


def _bucket_length(length: int) -> int:
    return length if length <= _EXACT_LENGTH else 2 ** round(math.log2(length)) - 1


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionShape:
    """Shape of one attention call: q [1, query_length, num_heads, head_dim], k and v [1, key_length, ...]."""

    query_length: int
    key_length: int
    num_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.query_length}x{self.key_length} h{self.num_heads} d{self.head_dim}"

    @property
    def bucket(self) -> Self:
        """The shape that stands for all of about its size: lengths over 2,048 become the nearest power of two, less one.

        Such an odd length is no multiple of any block of a kernel, which is where kernels go wrong.
        """
        return replace(self, query_length=_bucket_length(self.query_length), key_length=_bucket_length(self.key_length))

    @property
    def score_bytes(self) -> int:
        """Bytes of the score matrix in float32."""
        return 4 * self.num_heads * self.query_length * self.key_length


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionPlan:
    """The backend of each site; chosen once per clip size and passed to the model as an argument."""

    video_self: AttentionBackend
    audio_self: AttentionBackend
    video_to_audio: AttentionBackend
    audio_to_video: AttentionBackend
    video_to_text: AttentionBackend
    audio_to_text: AttentionBackend

    @classmethod
    def uniform(cls, backend: AttentionBackend) -> Self:
        """The plan that uses one backend at every site."""
        return cls(**dict.fromkeys(map(str, Site), backend))

    @classmethod
    def of(cls, backends: Mapping[Site, AttentionBackend]) -> Self:
        """The plan with the given backend at each site."""
        return cls(**{str(site): backend for site, backend in backends.items()})

    def __str__(self) -> str:
        """The form used in results: a single name, or each name with its sites."""
        pairs = sorted((str(getattr(self, field.name)), field.name) for field in dataclasses.fields(self))
        groups = {name: [site for _, site in group] for name, group in groupby(pairs, key=lambda pair: pair[0])}
        if len(groups) == 1:
            return next(iter(groups))
        return "; ".join(f"{name}: {', '.join(sites)}" for name, sites in groups.items())


SDPA_PLAN = AttentionPlan.uniform(AttentionBackend.SDPA)
"""PyTorch's default kernel at every site."""


def attention_shapes(
    video: TransformerConfig, audio: TransformerConfig, video_shape: tuple[int, ...], audio_length: int
) -> dict[Site, AttentionShape]:
    """The shape at each site, for video latents of `video_shape` (48, F, h, w) and `audio_length` audio latents."""
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
