"""One backbone of the twin transformer: embeddings, blocks and head (Wan 2.2's DiT, github.com/Wan-Video/Wan2.2).

`fusion.py` runs the blocks of two backbones side by side. Module names are those of the published checkpoint.

Shapes: B batch, L tokens, C width, H heads, D head width, N text rows, T distinct timesteps of a forward pass (1, or 2
with a clean first frame). The tokens form T consecutive spans, one per timestep, so a modulation has T rows rather than
one row per token.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ovi.attention import AttentionBackend
from ovi.attention.backends import attention
from ovi.config import TransformerConfig
from ovi.kernels import operations
from ovi.kernels.types import KernelPlan
from ovi.models.feed_forward import Fp8Products, fp8_feed_forward


@dataclass(kw_only=True, slots=True, frozen=True)
class KeyValue:
    """Keys and values of a text in one block, padding rows included."""

    key: Tensor  # B text_len H D
    value: Tensor  # B text_len H D


@dataclass(kw_only=True, slots=True, frozen=True)
class TimeEmbedding:
    """Embeddings of the distinct timesteps of a forward pass and the spans of tokens they apply to."""

    embedding: Tensor  # T C
    modulation: Tensor  # T 6 C
    spans: tuple[int, ...]  # T span lengths, summing to L


@dataclass(kw_only=True, slots=True, frozen=True)
class BlockModulation:
    """Shift, scale and gate [T, C] of a block's self-attention and feed-forward, one row per span of tokens."""

    attention_shift: Tensor
    attention_scale: Tensor
    attention_gate: Tensor
    ffn_shift: Tensor
    ffn_scale: Tensor
    ffn_gate: Tensor
    spans: tuple[int, ...]  # T span lengths, summing to L


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] -> [B, L, C]."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def rotated(self, x: Tensor, rotation: Tensor, kernels: KernelPlan) -> Tensor:
        """The norm of x [B, L, C], as heads, turned by `rotation` [L, 1, D/2, 2]: [B, L, H, D]."""
        return operations.norm_rotate(x, weight=self.weight, rotation=rotation, eps=self.eps, kernels=kernels)


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are normalised over the full width before the head split."""

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

    def forward(self, x: Tensor, *, rotation: Tensor, backend: AttentionBackend, kernels: KernelPlan) -> Tensor:
        """x [B, L, C] -> [B, L, C]; `rotation` [L, 1, D/2, 2] turns queries and keys."""
        q = self.norm_q.rotated(self.q(x), rotation, kernels)
        k = self.norm_k.rotated(self.k(x), rotation, kernels)
        v = self.split_heads(self.v(x))
        return self.o(attention(q, k, v, backend).flatten(2))


class CrossAttention(Attention):
    """Attention of one modality to its text and, with the same queries, to the other modality."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.k_fusion = nn.Linear(config.dim, config.dim)
        self.v_fusion = nn.Linear(config.dim, config.dim)
        self.pre_attn_norm_fusion = nn.LayerNorm(config.dim, eps=config.eps)
        self.norm_k_fusion = RMSNorm(config.dim, config.eps)

    def text_key_value(self, text: Tensor, padding: int) -> KeyValue:
        """Keys and values of the embedded text [B, N+1, C], whose last row stands for `padding` padding rows."""
        key, value = self.norm_k(self.k(text)), self.v(text)
        return KeyValue(
            key=self.split_heads(_repeat_last(key, padding)), value=self.split_heads(_repeat_last(value, padding))
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,  # B L C
        *,
        text: KeyValue,
        other: Tensor,  # B L' C
        rotation: Tensor,
        other_rotation: Tensor,
        text_backend: AttentionBackend,
        other_backend: AttentionBackend,
        kernels: KernelPlan,
    ) -> Tensor:
        """Attention of x to the text plus attention of x to `other`, the tokens of the other modality: [B, L, C].

        The queries are turned by `rotation` and the keys of `other` by `other_rotation`; text has no positions.
        """
        q, rotated_q = operations.norm_and_rotate(
            self.q(x), weight=self.norm_q.weight, rotation=rotation, eps=self.norm_q.eps, kernels=kernels
        )
        from_text = attention(q, text.key, text.value, text_backend)
        other = self.pre_attn_norm_fusion(other)
        k = self.norm_k_fusion.rotated(self.k_fusion(other), other_rotation, kernels)
        v = self.split_heads(self.v_fusion(other))
        from_other = attention(rotated_q, k, v, other_backend)
        return self.o((from_text + from_other).flatten(2))


class Modulation(nn.Module):
    """A learned offset added to the timestep's modulation vectors."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, count, dim) / dim**0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors [T, count, C] -> [T, count, C]."""
        return self.modulation + vectors


class Block(nn.Module):
    """One block of one backbone: three residual steps, which `FusionTransformer` interleaves with the other backbone's."""

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

    def modulation_at(self, time: TimeEmbedding) -> BlockModulation:
        """The block's modulation for the timesteps of a forward pass."""
        shift, scale, gates, ffn_shift, ffn_scale, ffn_gates = self.modulation(time.modulation).unbind(1)  # T C each
        return BlockModulation(
            attention_shift=shift,
            attention_scale=scale,
            attention_gate=gates,
            ffn_shift=ffn_shift,
            ffn_scale=ffn_scale,
            ffn_gate=ffn_gates,
            spans=time.spans,
        )

    def apply_self_attention(
        self, x: Tensor, m: BlockModulation, *, rotation: Tensor, backend: AttentionBackend, kernels: KernelPlan
    ) -> tuple[Tensor, Tensor]:
        """x [B, L, C] plus its modulated self-attention, and the norm of the sum, which the cross-attention reads."""
        normed = operations.norm_modulate(
            x, shift=m.attention_shift, scale=m.attention_scale, spans=m.spans, eps=self.norm1.eps, kernels=kernels
        )
        update = self.self_attn(normed, rotation=rotation, backend=backend, kernels=kernels)
        return operations.gate_norm(x, update, gates=m.attention_gate, spans=m.spans, norm=self.norm3, kernels=kernels)

    def apply_cross_attention(
        self,
        x: Tensor,  # B L C
        normed: Tensor,  # B L C
        m: BlockModulation,
        *,
        text: KeyValue,
        other: Tensor,  # B L' C
        rotation: Tensor,
        other_rotation: Tensor,
        text_backend: AttentionBackend,
        other_backend: AttentionBackend,
        kernels: KernelPlan,
    ) -> tuple[Tensor, Tensor]:
        """x plus its attention to the text and to `other`, the tokens of the other modality, and the modulated norm of the sum.

        `normed` is the norm of x, and the norm that is returned is for the feed-forward.
        """
        update = self.cross_attn(
            normed,
            text=text,
            other=other,
            rotation=rotation,
            other_rotation=other_rotation,
            text_backend=text_backend,
            other_backend=other_backend,
            kernels=kernels,
        )
        return operations.add_norm_modulate(
            x, update, shift=m.ffn_shift, scale=m.ffn_scale, spans=m.spans, eps=self.norm2.eps, kernels=kernels
        )

    def apply_feed_forward(
        self, x: Tensor, normed: Tensor, m: BlockModulation, *, kernels: KernelPlan, fp8: Fp8Products | None = None
    ) -> Tensor:
        """x [B, L, C] plus the feed-forward of its modulated norm; `fp8` is the way of its 8-bit products, if any."""
        if fp8 is None:
            widen, narrow = cast("nn.Linear", self.ffn[0]), self.ffn[2]
            update = narrow(operations.linear_gelu(normed, widen, kernels=kernels))
        else:
            update = fp8_feed_forward(self.ffn, normed, fp8)
        return operations.gate(x, update, gates=m.ffn_gate, spans=m.spans, kernels=kernels)


class Head(nn.Module):
    """Final norm, modulation and projection to patches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: TimeEmbedding, kernels: KernelPlan) -> Tensor:
        """x [B, L, C] -> patches [B, L, prod(patch) * out_dim]."""
        shift, scale = (self.modulation + time.embedding.unsqueeze(1)).unbind(1)  # T C
        normed = operations.norm_modulate(
            x, shift=shift, scale=scale, spans=time.spans, eps=self.norm.eps, kernels=kernels
        )
        return self.head(normed)


class ChannelLastConv1d(nn.Conv1d):
    """A 1-D convolution over [B, L, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] -> [B, L, C'], with the channels of a token side by side in memory, as later layers read them."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2).contiguous()


class VideoPatchEmbedding(nn.Conv3d):
    """Latents to tokens: a convolution whose patches do not overlap, computed as the product that it is."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 48, F, h, w] -> [B, L, C], tokens in (frame, row, column) order."""
        frames, height, width = self.kernel_size
        patches = rearrange(x, "b c (f pf) (h ph) (w pw) -> b (f h w) (c pf ph pw)", pf=frames, ph=height, pw=width)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class ConvMLP(nn.Module):
    """Gated feed-forward of convolutions; the hidden width is 2/3 of 4*dim, rounded up to a multiple of 256."""

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

        The published model pads the rows with zeros to text_len and attends to the padding. All padding rows are equal,
        so one of them is computed and repeated text_len - N times.
        """
        rows, padding = self.text_rows(text)
        layers = cast("Iterable[Block]", self.blocks)
        return tuple(block.cross_attn.text_key_value(rows, padding) for block in layers)

    def text_rows(self, text: Tensor) -> tuple[Tensor, int]:
        """Source of every block's keys and values: the embedded rows [B, N+1, C], and the weight of the last one."""
        return self.text_embedding(F.pad(text, (0, 0, 0, 1)).unsqueeze(0)), self.config.text_len - text.shape[0]

    def embed_time(self, times: list[float], spans: tuple[int, ...]) -> TimeEmbedding:
        """Embeddings of the distinct timesteps; `times[i]` applies to `spans[i]` consecutive tokens."""
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


def _repeat_last(rows: Tensor, count: int) -> Tensor:
    """Rows [B, N+1, C] with the last one `count` times: [B, N+count, C]."""
    return torch.cat([rows[:, :-1], rows[:, -1:].expand(-1, count, -1)], dim=1)


def _patch_embedding(config: TransformerConfig) -> nn.Module:
    if len(config.patch_size) == 1:
        return nn.Sequential(
            ChannelLastConv1d(config.in_dim, config.dim, kernel_size=7, padding=3),
            nn.SiLU(),
            ConvMLP(config.dim, kernel_size=7),
        )
    frames, height, width = config.patch_size
    patch = (frames, height, width)
    return VideoPatchEmbedding(config.in_dim, config.dim, kernel_size=patch, stride=patch)
