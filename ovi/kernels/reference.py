"""The operations between products, attention and convolutions in plain torch: what the fused kernels must compute.

Shapes: B batch, L tokens, C width, H heads, D head width, T spans of tokens. Row i of a tensor [T, C] belongs to span i.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 1e-12
"""The largest number that a row of zeros is taken to have when it is narrowed, so that its scale is not zero."""


def norm_modulate(x: Tensor, *, shift: Tensor, scale: Tensor, spans: tuple[int, ...], eps: float) -> Tensor:
    """The layer norm of x [B, L, C], modulated by shift and scale [T, C]."""
    return modulate(F.layer_norm(x, x.shape[-1:], eps=eps), shift=shift, scale=scale, spans=spans)


def gate_norm(
    x: Tensor,
    update: Tensor,
    *,
    gates: Tensor,
    spans: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x plus the gated update, both [B, L, C], and the layer norm of the sum with its weight and bias [C]."""
    x = gate(x, update, gates=gates, spans=spans)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_norm_modulate(
    x: Tensor, update: Tensor, *, shift: Tensor, scale: Tensor, spans: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor]:
    """x plus the update, both [B, L, C], and the modulated layer norm of the sum."""
    x = x + update
    return x, norm_modulate(x, shift=shift, scale=scale, spans=spans, eps=eps)


def gate(x: Tensor, update: Tensor, *, gates: Tensor, spans: tuple[int, ...]) -> Tensor:
    """x + gates * update over [B, L, C], with gates [T, C]."""
    parts = zip(x.split(spans, dim=1), update.split(spans, dim=1), gates, strict=True)
    return _join([torch.addcmul(part, change, row) for part, change, row in parts])


def modulate(x: Tensor, *, shift: Tensor, scale: Tensor, spans: tuple[int, ...]) -> Tensor:
    """x * (1 + scale) + shift over [B, L, C], with shift and scale [T, C]."""
    parts = zip(x.split(spans, dim=1), shift, scale, strict=True)
    return _join([torch.addcmul(row_shift, part, 1 + row_scale) for part, row_shift, row_scale in parts])


def norm_and_rotate(x: Tensor, *, weight: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of x [B, L, C] with its weight [C], as heads [B, L, H, D], and the same turned by [L, 1, D/2, 2]."""
    normed = F.rms_norm(x, x.shape[-1:], weight, eps).unflatten(-1, (-1, 2 * rotation.shape[-2]))
    return normed, rotate(normed, rotation)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the channel pairs of x [B, L, H, D]; computed in float32, returned in x's dtype.

    One complex product, which reads and writes x once. A compiler is given the same product in real numbers: it fuses
    them with what comes before, and has no complex ones.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # B L H D/2 2
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)


def linear_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """GELU, by its tanh form, of a linear layer of x [..., in]: [..., out]."""
    return F.gelu(linear(x), approximate="tanh")


def norm_silu_(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """Write silu(x / |x| * sqrt(C) * gamma), over the channels of x [B, C, t, h, w], to out; gamma is [C, 1, 1, 1]."""
    out.copy_(x)
    F.silu(normalize_channels_(out, gamma), inplace=True)


def normalize_channels_(x: Tensor, gamma: Tensor) -> Tensor:
    """x / |x| * sqrt(C) * gamma over the channels, dimension 1, in place."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    return x.div_(norm).mul_(gamma * gamma.shape[0] ** 0.5)


def narrow_rows(x: Tensor, fp8: torch.dtype, gelu_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [R, C] in 8-bit floats, with the largest number of each row scaled to the largest one of the format.

    Returns the numbers and the scales [R, 1] of the rows, in float32. With a bias [C], it is added and GELU taken before.
    """
    if gelu_bias is not None:
        x = F.gelu(x + gelu_bias, approximate="tanh")
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scales = (largest.clamp_min(LEAST) / torch.finfo(fp8).max).to(x.dtype)
    return (x / scales).to(fp8), scales.float()


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
