"""The fused kernels in Triton, one program for each token or block of pixels. Half precision is rounded where torch rounds it.

Sums are taken in float32 in another order than torch's, so that results differ by float32's rounding, and a result in half
precision that lies at the edge between two numbers may become the other one. The functions launch a kernel; their arguments
and shapes are those of `reference`, with the spans as their first length. CUDA and ROCm; CPUs with $TRITON_INTERPRET=1.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovi.kernels.reference import LEAST

_CHANNELS_PER_WARP = 512
_MAX_WARPS = 8
_PIXELS, _CHANNELS_AT_ONCE = 64, 32  # of a program: what it reads twice stays in the cache
_IN_EVERY_SIZE = ("length", "boundary", "gate_stride", "scale_stride")
"""Arguments whose values compile no kernel of their own."""


@triton.jit(do_not_specialize=_IN_EVERY_SIZE)
def _residual_norm(  # type: ignore[no-untyped-def]
    x,
    update,
    gates,
    scale,
    shift,
    total,
    normed,
    length,
    boundary,
    gate_stride,
    scale_stride,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    MODULATED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    span = ((row % length) >= boundary).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    at = row * CHANNELS + channel
    dtype = x.dtype.element_ty
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        change = tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        if gates is not None:
            change *= tl.load(gates + span * gate_stride + channel, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + change).to(dtype)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if normed is not None:
        centred = tl.where(inside, value - tl.sum(value, axis=0) / CHANNELS, 0.0)
        unit = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / CHANNELS + eps)
        factor = tl.load(scale + span * scale_stride + channel, mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(shift + span * scale_stride + channel, mask=inside, other=0.0).to(tl.float32)
        if MODULATED:
            unit = unit.to(dtype).to(tl.float32)
            factor = (1.0 + factor).to(dtype).to(tl.float32)
        tl.store(normed + at, (unit * factor + offset).to(dtype), mask=inside)


@triton.jit(do_not_specialize=("length",))
def _norm_rotate(  # type: ignore[no-untyped-def]
    x,
    weight,
    rotation,
    normed,
    rotated,
    length,
    eps,
    CHANNELS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    at = row * CHANNELS + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / CHANNELS + eps)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    unit = (value * inverse * factor).to(x.dtype.element_ty)
    if normed is not None:
        tl.store(normed + at, unit, mask=inside)
    turn = tl.load(rotation + (row % length) * HEAD + channel % HEAD)  # every head's pairs turn alike
    even, odd = tl.split(tl.reshape(unit.to(tl.float32), (BLOCK // 2, 2)))
    cos, sin = tl.split(tl.reshape(turn, (BLOCK // 2, 2)))
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(rotated + at, turned.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("pixels",))
def _norm_silu(  # type: ignore[no-untyped-def]
    x,
    gamma,
    out,
    pixels,
    x_clip,
    x_channel,
    x_pixel,
    out_clip,
    out_channel,
    out_pixel,
    root,
    CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
    PIXELS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    clip = tl.program_id(1).to(tl.int64)
    step = tl.arange(0, STEP)
    dtype = x.dtype.element_ty
    x_at, out_at = x + clip * x_clip + pixel[None, :] * x_pixel, out + clip * out_clip + pixel[None, :] * out_pixel
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    for first in range(0, CHANNELS, STEP):
        channel = (first + step)[:, None]
        inside = (channel < CHANNELS) & (pixel < pixels)[None, :]
        value = tl.load(x_at + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(value * value, axis=0)
    norm = tl.maximum(tl.sqrt(total).to(dtype).to(tl.float32), 1e-12)[None, :]
    for first in range(0, CHANNELS, STEP):  # once more, from the cache
        channel = (first + step)[:, None]
        inside = (channel < CHANNELS) & (pixel < pixels)[None, :]
        value = tl.load(x_at + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32) * root
        unit = (value / norm).to(dtype).to(tl.float32) * factor.to(dtype).to(tl.float32)
        unit = unit.to(dtype).to(tl.float32)
        silu = unit / (1.0 + tl.exp(-unit))
        tl.store(out_at + channel * out_channel, silu.to(dtype), mask=inside)


@triton.jit
def _narrow_rows(  # type: ignore[no-untyped-def]
    x,
    gelu_bias,
    values,
    scales,
    largest_value,
    least,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    dtype = x.dtype.element_ty
    value = tl.load(x + row * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
    if gelu_bias is not None:
        value += tl.load(gelu_bias + channel, mask=inside, other=0.0).to(tl.float32)
        value = value.to(dtype).to(tl.float32)
        inner = 1.5957691216057308 * (value + 0.044715 * value * value * value)  # 2 sqrt(2 / pi)
        value = (value / (1.0 + tl.exp(-inner))).to(dtype).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), least) / largest_value
    scale = scale.to(dtype).to(tl.float32)
    narrowed = (value / scale).to(dtype).to(tl.float32).to(values.dtype.element_ty)
    tl.store(values + row * CHANNELS + channel, narrowed, mask=inside)
    tl.store(scales + row, scale)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float) -> Tensor:
    """As in `reference`."""
    normed = torch.empty_like(x)
    _launch_residual_norm(x, shift=shift, scale=scale, normed=normed, boundary=boundary, eps=eps, modulated=True)
    return normed


def gate_norm(
    x: Tensor, update: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, boundary: int, eps: float
) -> tuple[Tensor, Tensor]:
    """As in `reference`."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _launch_residual_norm(
        x,
        update=update,
        gates=gates,
        shift=bias.expand(1, -1),
        scale=weight.expand(1, -1),
        total=total,
        normed=normed,
        boundary=boundary,
        eps=eps,
    )
    return total, normed


def add_norm_modulate(
    x: Tensor, update: Tensor, shift: Tensor, scale: Tensor, boundary: int, eps: float
) -> tuple[Tensor, Tensor]:
    """As in `reference`."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _launch_residual_norm(
        x,
        update=update,
        shift=shift,
        scale=scale,
        total=total,
        normed=normed,
        boundary=boundary,
        eps=eps,
        modulated=True,
    )
    return total, normed


def gate(x: Tensor, update: Tensor, gates: Tensor, boundary: int) -> Tensor:
    """As in `reference`."""
    total = torch.empty_like(x)
    _launch_residual_norm(x, update=update, gates=gates, total=total, boundary=boundary)
    return total


def norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor, eps: float, *, normed: Tensor | None = None) -> Tensor:
    """The second result of `reference.norm_and_rotate`, [B, L, H, D]; the first is written to `normed`, if there is one."""
    batch, length, channels = x.shape
    head = 2 * rotation.shape[-2]
    rotated = x.new_empty(batch, length, channels // head, head)
    block = triton.next_power_of_2(channels)
    with _on(x):
        _norm_rotate[(batch * length,)](
            x,
            weight,
            rotation,
            normed,
            rotated,
            length,
            eps,
            CHANNELS=channels,
            HEAD=head,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return rotated


def norm_silu_(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """As in `reference`. In x, and in out, the frames of a channel lie side by side, or the channels of a pixel do."""
    batch, channels, *size = x.shape
    pixels = math.prod(size)
    with _on(x):
        _norm_silu[triton.cdiv(pixels, _PIXELS), batch](
            x,
            gamma,
            out,
            pixels,
            x.stride(0),
            x.stride(1),
            _pixel_stride(x),
            out.stride(0),
            out.stride(1),
            _pixel_stride(out),
            channels**0.5,
            CHANNELS=channels,
            STEP=_CHANNELS_AT_ONCE,
            PIXELS=_PIXELS,
        )


def narrow_rows(x: Tensor, fp8: torch.dtype, gelu_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As in `reference`."""
    rows, channels = x.shape
    values, scales = torch.empty_like(x, dtype=fp8), x.new_empty(rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(channels)
    with _on(x):
        _narrow_rows[(rows,)](
            x,
            gelu_bias,
            values,
            scales,
            torch.finfo(fp8).max,
            LEAST,
            CHANNELS=channels,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return values, scales


def _launch_residual_norm(
    x: Tensor,
    *,
    boundary: int,
    update: Tensor | None = None,
    gates: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    normed: Tensor | None = None,
    eps: float = 0.0,
    modulated: bool = False,
) -> None:
    """The rows of shift and scale have one stride, which is 0 where a single row serves all tokens."""
    batch, length, channels = x.shape
    block = triton.next_power_of_2(channels)
    with _on(x):
        _residual_norm[(batch * length,)](
            x,
            update,
            gates,
            scale,
            shift,
            total,
            normed,
            length,
            boundary,
            _row_stride(gates),
            _row_stride(scale),
            eps,
            CHANNELS=channels,
            BLOCK=block,
            MODULATED=modulated,
            num_warps=_warps(block),
        )


def _pixel_stride(x: Tensor) -> int:
    return 1 if x[0, 0].is_contiguous() else x.shape[1]


def _row_stride(rows: Tensor | None) -> int:
    return 0 if rows is None or len(rows) == 1 else rows.stride(0)


def _warps(block: int) -> int:
    return max(1, min(_MAX_WARPS, block // _CHANNELS_PER_WARP))


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
