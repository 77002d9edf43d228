"""One backbone of the twin transformer: embeddings, attention layers and head (Wan 2.2's DiT, github.com/Wan-Video/Wan2.2).

The blocks are joined in `fusion.py`. Module names are those of the published checkpoint.

Shapes: B batch, L tokens, C width, H heads, D head width, N text rows, T distinct times of a pass (1, or 2 with a clean
first frame), S span lengths: the tokens are T runs, one a time, so a modulation is T rows and never one row a token.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.attention import AttentionBackend
from ovi.attention.backends import attention
from ovi.config import TransformerConfig
from ovi.models.rope import Rotation, rotate


@dataclass(kw_only=True, slots=True, frozen=True)
class KeyValue:
    """Keys and values of a text in one block: the text's own rows, and the one row that all its padding shares."""

    key: Tensor  # B N+1 H D
    value: Tensor  # B N+1 H D
    padding: int
    """How often the last row counts."""

    def expand(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, text_len, H, D], as if every padding row had been computed."""
        return self._repeat_last(self.key), self._repeat_last(self.value)

    def _repeat_last(self, rows: Tensor) -> Tensor:
        last = rows[:, -1:].expand(-1, self.padding, -1, -1)
        return torch.cat([rows[:, :-1], last], dim=1)


@dataclass(kw_only=True, slots=True, frozen=True)
class TimeEmbedding:
    """Embedding of the distinct times of a pass and the runs of tokens they belong to."""

    embedding: Tensor  # T C
    modulation: Tensor  # T 6 C
    spans: tuple[int, ...]  # T run lengths, summing to L


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] -> [B, L, C]."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Projections of a self-attention; q and k are normalised over the whole width before the head split."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, H, D]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor, rotation: Rotation, backend: AttentionBackend) -> Tensor:
        """Self-attention of x [B, L, C]."""
        q = rotate(self.split_heads(self.norm_q(self.q(x))), rotation)
        k = rotate(self.split_heads(self.norm_k(self.k(x))), rotation)
        v = self.split_heads(self.v(x))
        return self.o(attention(q, k, v, backend).flatten(2))


class CrossAttention(Attention):
    """Cross-attention to the text and, with the same queries, to the other modality."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.k_fusion = nn.Linear(config.dim, config.dim)
        self.v_fusion = nn.Linear(config.dim, config.dim)
        self.pre_attn_norm_fusion = nn.LayerNorm(config.dim, eps=config.eps)
        self.norm_k_fusion = RMSNorm(config.dim, config.eps)

    def text_key_value(self, text: Tensor, padding: int) -> KeyValue:
        """Keys and values of the embedded text [B, N+1, C], whose last row stands for `padding` rows."""
        return KeyValue(
            key=self.split_heads(self.norm_k(self.k(text))), value=self.split_heads(self.v(text)), padding=padding
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,  # B L C
        text: KeyValue,
        other: Tensor,  # B L' C
        rotation: Rotation,
        other_rotation: Rotation,
        text_backend: AttentionBackend,
        other_backend: AttentionBackend,
    ) -> Tensor:
        """Attention of x to the text plus attention of x to the other modality."""
        q = self.split_heads(self.norm_q(self.q(x)))
        key, value = text.expand()
        from_text = attention(q, key, value, text_backend)
        other = self.pre_attn_norm_fusion(other)
        k = rotate(self.split_heads(self.norm_k_fusion(self.k_fusion(other))), other_rotation)
        v = self.split_heads(self.v_fusion(other))
        from_other = attention(rotate(q, rotation), k, v, other_backend)
        return self.o((from_text + from_other).flatten(2))


class Modulation(nn.Module):
    """A learned offset added to the time's modulation vectors."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, count, dim) / dim**0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors [T, count, C] -> [T, count, C]."""
        return self.modulation + vectors


class Block(nn.Module):
    """Weights of one block of one backbone; `fusion.FusionTransformer` runs two of them side by side."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.self_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = Modulation(config.dim, 6)


class Head(nn.Module):
    """Final norm, modulation and projection to patches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: TimeEmbedding) -> Tensor:
        """x [B, L, C] -> patches [B, L, prod(patch) * out_dim]."""
        shift, scale = (self.modulation + time.embedding.unsqueeze(1)).unbind(1)  # T C
        return self.head(modulate(self.norm(x), shift, scale, time.spans))


class ChannelLastConv1d(nn.Conv1d):
    """A 1-D convolution over [B, L, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] -> [B, L, C']."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvMLP(nn.Module):
    """Gated feed-forward of convolutions; the hidden width is 2/3 of 4*dim, rounded up to 256."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        hidden = 256 * math.ceil(int(2 * 4 * dim / 3) / 256)
        padding = kernel_size // 2
        self.w1 = ChannelLastConv1d(dim, hidden, kernel_size, padding=padding, bias=False)
        self.w2 = ChannelLastConv1d(hidden, dim, kernel_size, padding=padding, bias=False)
        self.w3 = ChannelLastConv1d(dim, hidden, kernel_size, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] -> [B, L, C]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Backbone(nn.Module):
    """Embeddings, blocks and head of one modality."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = _patch_embedding(config)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.head = Head(config)

    def embed_text(self, text: Tensor) -> tuple[KeyValue, ...]:
        """Keys and values of a text [N, text_dim] in every block, N <= text_len.

        The published model pads the rows with zeros to text_len and masks nothing. All padding rows are alike, so one of
        them is computed and counted text_len - N times.
        """
        padding = self.config.text_len - text.shape[0]
        rows = self.text_embedding(F.pad(text, (0, 0, 0, 1)).unsqueeze(0))  # B N+1 C
        layers = cast("Iterable[Block]", self.blocks)
        return tuple(block.cross_attn.text_key_value(rows, padding) for block in layers)

    def embed_time(self, times: list[float], spans: tuple[int, ...]) -> TimeEmbedding:
        """Embedding of the distinct times, each for a run of `spans` tokens."""
        waves = sinusoidal_embedding(times, self.config.freq_dim).to(self.head.modulation)  # T freq_dim
        embedding = self.time_embedding(waves)
        modulation = self.time_projection(embedding).unflatten(-1, (6, -1))
        return TimeEmbedding(embedding=embedding, modulation=modulation, spans=spans)


def sinusoidal_embedding(times: list[float], dim: int) -> Tensor:
    """[cos | sin] of t * 10000^(-i/half), float64 on the CPU: [T, dim]."""
    half = dim // 2
    frequencies = 10_000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = torch.outer(torch.tensor(times, dtype=torch.float64, device="cpu"), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, spans: tuple[int, ...]) -> Tensor:
    """x [B, L, C] times 1 + scale plus shift, both [T, C], each row over its run of tokens."""
    runs = zip(x.split(spans, dim=1), shift, scale, strict=True)
    return _join([torch.addcmul(row_shift, run, 1 + row_scale) for run, row_shift, row_scale in runs])


def gate(x: Tensor, update: Tensor, gates: Tensor, spans: tuple[int, ...]) -> Tensor:
    """x + gate * update over [B, L, C]; the gates are [T, C], each row over its run of tokens."""
    runs = zip(x.split(spans, dim=1), update.split(spans, dim=1), gates, strict=True)
    return _join([torch.addcmul(run, part, row) for run, part, row in runs])


def _join(runs: list[Tensor]) -> Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _patch_embedding(config: TransformerConfig) -> nn.Module:
    if len(config.patch_size) == 1:
        return nn.Sequential(
            ChannelLastConv1d(config.in_dim, config.dim, kernel_size=7, padding=3),
            nn.SiLU(),
            ConvMLP(config.dim, kernel_size=7),
        )
    frames, height, width = config.patch_size
    patch = (frames, height, width)
    return nn.Conv3d(config.in_dim, config.dim, kernel_size=patch, stride=patch)
