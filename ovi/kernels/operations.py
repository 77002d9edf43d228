"""The operations between products, attention and convolutions, each as a fused kernel where the plan names it.

A fused kernel is an operation of torch's own registry, so that it runs on meta tensors too, where its memory traffic can be
counted. Shapes as in `reference`, whose functions serve where the plan names no kernel.
"""

from typing import cast

import torch
from torch import Tensor, nn

from ovi.kernels import reference
from ovi.kernels.types import KernelPlan

_MAX_SPANS = 2


def norm_modulate(
    x: Tensor, *, shift: Tensor, scale: Tensor, spans: tuple[int, ...], eps: float, kernels: KernelPlan
) -> Tensor:
    """The layer norm of x [B, L, C], modulated by shift and scale [T, C]."""
    if kernels.residual_norm:
        return cast("Tensor", _norm_modulate(x.contiguous(), shift, scale, _boundary(spans), eps))
    return reference.norm_modulate(x, shift=shift, scale=scale, spans=spans, eps=eps)


def gate_norm(
    x: Tensor,
    update: Tensor,
    *,
    gates: Tensor,
    spans: tuple[int, ...],
    norm: nn.LayerNorm,
    kernels: KernelPlan,
) -> tuple[Tensor, Tensor]:
    """x plus the gated update, both [B, L, C], and the norm of the sum."""
    if kernels.residual_norm:
        found = _gate_norm(
            x.contiguous(), update.contiguous(), gates, norm.weight, norm.bias, _boundary(spans), norm.eps
        )
        return cast("tuple[Tensor, Tensor]", found)
    return reference.gate_norm(x, update, gates=gates, spans=spans, weight=norm.weight, bias=norm.bias, eps=norm.eps)


def add_norm_modulate(
    x: Tensor,
    update: Tensor,
    *,
    shift: Tensor,
    scale: Tensor,
    spans: tuple[int, ...],
    eps: float,
    kernels: KernelPlan,
) -> tuple[Tensor, Tensor]:
    """x plus the update, both [B, L, C], and the modulated layer norm of the sum."""
    if kernels.residual_norm:
        found = _add_norm_modulate(x.contiguous(), update.contiguous(), shift, scale, _boundary(spans), eps)
        return cast("tuple[Tensor, Tensor]", found)
    return reference.add_norm_modulate(x, update, shift=shift, scale=scale, spans=spans, eps=eps)


def gate(x: Tensor, update: Tensor, *, gates: Tensor, spans: tuple[int, ...], kernels: KernelPlan) -> Tensor:
    """x + gates * update over [B, L, C], with gates [T, C]."""
    if kernels.residual_norm:
        return cast("Tensor", _gate(x.contiguous(), update.contiguous(), gates, _boundary(spans)))
    return reference.gate(x, update, gates=gates, spans=spans)


def norm_rotate(x: Tensor, *, weight: Tensor, rotation: Tensor, eps: float, kernels: KernelPlan) -> Tensor:
    """The RMS norm of x [B, L, C] with its weight [C], as heads, turned by the rotation: [B, L, H, D]."""
    if kernels.norm_rotate:
        return cast("Tensor", _norm_rotate(x.contiguous(), weight, rotation, eps))
    return reference.norm_and_rotate(x, weight=weight, rotation=rotation, eps=eps)[1]


def norm_and_rotate(
    x: Tensor, *, weight: Tensor, rotation: Tensor, eps: float, kernels: KernelPlan
) -> tuple[Tensor, Tensor]:
    """As `norm_rotate`, with the norm before it is turned as the first result."""
    if kernels.norm_rotate:
        return cast("tuple[Tensor, Tensor]", _norm_and_rotate(x.contiguous(), weight, rotation, eps))
    return reference.norm_and_rotate(x, weight=weight, rotation=rotation, eps=eps)


def linear_gelu(x: Tensor, linear: nn.Linear, *, kernels: KernelPlan) -> Tensor:
    """GELU, by its tanh form, of a linear layer of x [..., in]: [..., out].

    In the product, GELU is given sums in float32, and its result is the only rounding. Torch takes the tanh form there on
    GPUs alone. Layers with narrow weights have products of their own.
    """
    if kernels.linear_gelu and type(linear) is nn.Linear:
        rows = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.t(), use_gelu=True)
        return rows.unflatten(0, x.shape[:-1])
    return reference.linear_gelu(x, linear)


def norm_silu_(x: Tensor, gamma: Tensor, out: Tensor, *, kernels: KernelPlan) -> None:
    """Write silu(x / |x| * sqrt(C) * gamma), over the channels of x [B, C, t, h, w], to out; gamma is [C, 1, 1, 1].

    `out` is some frames of a window.
    """
    if kernels.norm_silu:
        _norm_silu_(x if _has_one_stride(x) else x.contiguous(), gamma, out)
    else:
        reference.norm_silu_(x, gamma, out)


def narrow_rows(x: Tensor, fp8: torch.dtype, *, gelu_bias: Tensor | None = None, fused: bool) -> tuple[Tensor, Tensor]:
    """x [R, C] in 8-bit floats and the scales [R, 1] of its rows; with a bias [C], of GELU of x plus the bias."""
    if fused:
        return cast("tuple[Tensor, Tensor]", _narrow_rows(x.contiguous(), fp8, gelu_bias))
    return reference.narrow_rows(x, fp8, gelu_bias)


def empty_frames(like: Tensor, *size: int, kernels: KernelPlan) -> Tensor:
    """Frames of some size [B, C, t, h, w], not written yet, in the layout of a plan."""
    layout = torch.channels_last_3d if kernels.channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def with_channels_last(x: Tensor) -> Tensor:
    """Frames, images or weights of a convolution with the channels of a pixel side by side."""
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


@torch.library.custom_op("ovi::norm_modulate", mutates_args=())
def _norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float) -> Tensor:
    from ovi.kernels import triton_kernels

    return triton_kernels.norm_modulate(x, shift, scale, boundary, eps)


@_norm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ovi::gate_norm", mutates_args=())
def _gate_norm(
    x: Tensor, update: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, boundary: int, eps: float
) -> tuple[Tensor, Tensor]:
    from ovi.kernels import triton_kernels

    return triton_kernels.gate_norm(x, update, gates, weight, bias, boundary, eps)


@_gate_norm.register_fake
def _(
    x: Tensor, update: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, boundary: int, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("ovi::add_norm_modulate", mutates_args=())
def _add_norm_modulate(
    x: Tensor, update: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float
) -> tuple[Tensor, Tensor]:
    from ovi.kernels import triton_kernels

    return triton_kernels.add_norm_modulate(x, update, shift, scale, boundary, eps)


@_add_norm_modulate.register_fake
def _(x: Tensor, update: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("ovi::gate", mutates_args=())
def _gate(x: Tensor, update: Tensor, gates: Tensor, boundary: int) -> Tensor:
    from ovi.kernels import triton_kernels

    return triton_kernels.gate(x, update, gates, boundary)


@_gate.register_fake
def _(x: Tensor, update: Tensor, gates: Tensor, boundary: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ovi::norm_rotate", mutates_args=())
def _norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> Tensor:
    from ovi.kernels import triton_kernels

    return triton_kernels.norm_rotate(x, weight, rotation, eps)


@_norm_rotate.register_fake
def _(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> Tensor:
    return _heads_like(x, rotation)


@torch.library.custom_op("ovi::norm_and_rotate", mutates_args=())
def _norm_and_rotate(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from ovi.kernels import triton_kernels

    normed = _heads_like(x, rotation)
    return normed, triton_kernels.norm_rotate(x, weight, rotation, eps, normed=normed)


@_norm_and_rotate.register_fake
def _(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _heads_like(x, rotation), _heads_like(x, rotation)


@torch.library.custom_op("ovi::norm_silu_", mutates_args=("out",))
def _norm_silu_(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    from ovi.kernels import triton_kernels

    triton_kernels.norm_silu_(x, gamma, out)


@_norm_silu_.register_fake
def _(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    pass


@torch.library.custom_op("ovi::narrow_rows", mutates_args=())
def _narrow_rows(x: Tensor, fp8: torch.dtype, gelu_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    from ovi.kernels import triton_kernels

    return triton_kernels.narrow_rows(x, fp8, gelu_bias)


@_narrow_rows.register_fake
def _(x: Tensor, fp8: torch.dtype, gelu_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=fp8), x.new_empty(x.shape[0], 1, dtype=torch.float32)


def _heads_like(x: Tensor, rotation: Tensor) -> Tensor:
    head = 2 * rotation.shape[-2]
    return x.new_empty(*x.shape[:-1], x.shape[-1] // head, head)


def _has_one_stride(x: Tensor) -> bool:
    """Whether the pixels of a clip lie at equal distances: channel by channel, or with the channels of a pixel side by side."""
    return x[0, 0].is_contiguous() or x[0].permute(1, 2, 3, 0).is_contiguous()


def _boundary(spans: tuple[int, ...]) -> int:
    """The first token of the second span; without one, a number that no token has."""
    assert len(spans) <= _MAX_SPANS  # the clean first frame and the rest
    return spans[0]
