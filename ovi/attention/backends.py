"""The attention backends, each one function; which one runs is an argument, never a global.

Shapes: B batch, L query tokens, S key tokens, H heads, D head width.
"""

from collections.abc import Callable
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor


class AttentionBackend(StrEnum):
    """Names of the backends, as they stand in a clip's row."""

    SDPA = "sdpa"
    """PyTorch's fused kernels; torch picks the kernel."""
    MATH = "math"
    """Softmax written out in float32: the reference, and the way out where no fused kernel works."""


def attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = AttentionBackend.SDPA) -> Tensor:
    """Full softmax attention, no mask, scale 1/sqrt(D).

    q is [B, L, H, D]; k and v are [B, S, H, D]. Returns [B, L, H, D] in q's dtype.
    """
    return _BACKENDS[backend](q, k, v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # B H L D
    return out.transpose(1, 2)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blhd,bshd->bhls", q.float(), k.float()) * q.shape[-1] ** -0.5
    return torch.einsum("bhls,bshd->blhd", scores.softmax(dim=-1), v.float()).to(q.dtype)


_BACKENDS: dict[AttentionBackend, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    AttentionBackend.SDPA: _sdpa,
    AttentionBackend.MATH: _math,
}
