"""Feed-forward products in 8-bit floats, with one scale for each row of both factors.

The weights stay as they are and are narrowed for each product: that costs memory traffic of the size of the weights, where the
product costs that times the tokens, and leaves the exact product possible at every step.

Shapes: B batch, L tokens, C width, H hidden width, N output width, R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.errors import ShortcutUnavailable
from ovi.kernels import KernelPlan, operations
from ovi.quality import ShortcutName
from ovi.timing import seconds_per_call

Timer = Callable[[Callable[[], object], torch.device], float]
"""Seconds of a call on a device."""

_FORMATS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)  # MI300 has the second one only
_TRIAL_ROWS = 32
_TIMED_ROWS = 4096  # enough to keep a GPU busy
_TRIAL_ERROR = 0.01  # against the product of the same numbers narrowed by plain torch: rounding to half precision


@dataclass(kw_only=True, slots=True, frozen=True)
class Fp8Products:
    """A device's way to multiply in 8-bit floats."""

    format: torch.dtype
    fused: bool = False
    """Whether one Triton kernel narrows rows, with the GELU before them, instead of plain torch."""

    def narrow(self, matrix: Tensor, gelu_bias: Tensor | None = None) -> "ScaledRows":
        """A matrix [R, C] in the format; with a bias [C], GELU of the matrix plus the bias."""
        values, scales = operations.narrow_rows(matrix, self.format, gelu_bias=gelu_bias, fused=self.fused)
        return ScaledRows(values=values, scales=scales)


@dataclass(kw_only=True, slots=True, frozen=True)
class ScaledRows:
    """A matrix [R, C] in 8-bit floats, with the scales [R, 1] of its rows in float32."""

    values: Tensor
    scales: Tensor

    @property
    def widened(self) -> Tensor:
        """The numbers that it stands for, in float32."""
        return self.values.float() * self.scales


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, fp8: Fp8Products) -> Tensor:
    """x [..., C] times weight [N, C] plus bias, from 8-bit factors: [..., N] in x's dtype."""
    product = _product(fp8.narrow(x.flatten(0, -2)), fp8.narrow(weight.to(x.dtype)), x.dtype)
    return (product if bias is None else product.add_(bias)).unflatten(0, x.shape[:-1])


def fp8_feed_forward(ffn: nn.Sequential, x: Tensor, fp8: Fp8Products) -> Tensor:
    """A feed-forward (linear, GELU, linear) of x [B, L, C] with products in 8-bit floats."""
    up, down = cast("nn.Linear", ffn[0]), cast("nn.Linear", ffn[2])
    hidden = fp8_linear(x.flatten(0, -2), up.weight, None, fp8)  # R H, before its bias
    rows = fp8.narrow(hidden, up.bias.to(x.dtype))
    product = _product(rows, fp8.narrow(down.weight.to(x.dtype)), x.dtype)
    return product.add_(down.bias).unflatten(0, x.shape[:-1])


@torch.inference_mode()
def fp8_products(
    device: torch.device,
    dtype: torch.dtype,
    *,
    dim: int,
    ffn_dim: int,
    kernels: KernelPlan,
    fused: bool = False,
    timer: Timer | None = None,
) -> Fp8Products:
    """The fastest way to a feed-forward in 8-bit floats: asked of torch, with small products and a feed-forward of the shape.

    `kernels` are those of the exact feed-forward, which must take longer, and `fused` allows the Triton kernel. Without a
    timer, a GPU is timed and a CPU is not. Raises ShortcutUnavailable where no way works, is right and is faster.
    """
    ffn = _feed_forward(device, dtype, dim, ffn_dim)
    ways = [Fp8Products(format=each, fused=way) for each in _FORMATS for way in ((True, False) if fused else (False,))]
    wrong = {way: _why_unusable(way, ffn, device, dtype) for way in ways}
    usable = [way for way in ways if not wrong[way]]
    if not usable:
        reasons = dict.fromkeys(f"{str(way.format).removeprefix('torch.')}: {wrong[way]}" for way in ways)
        raise _unavailable(f"no products in 8-bit floats on {device} ({'; '.join(reasons)})")
    timer = timer or (seconds_per_call if device.type == "cuda" else None)
    return usable[0] if timer is None else _fastest(usable, ffn, kernels, timer, device)


def _fastest(
    ways: list[Fp8Products], ffn: nn.Sequential, kernels: KernelPlan, timer: Timer, device: torch.device
) -> Fp8Products:
    """The fastest way. Raises ShortcutUnavailable if the exact feed-forward is as fast."""
    weight = cast("nn.Linear", ffn[0]).weight
    x = torch.randn(1, _TIMED_ROWS, weight.shape[1], device=device, dtype=weight.dtype)
    exact = timer(lambda: ffn[2](operations.linear_gelu(x, cast("nn.Linear", ffn[0]), kernels=kernels)), device)
    seconds = {way: timer(partial(fp8_feed_forward, ffn, x, way), device) for way in ways}
    fastest = min(ways, key=seconds.__getitem__)
    if seconds[fastest] >= exact:
        raise _unavailable(
            f"it is not faster on {device}: {1000 * seconds[fastest]:.3g} ms for a feed-forward of {_TIMED_ROWS} tokens,"
            f" {1000 * exact:.3g} ms exactly"
        )
    return fastest


def _product(rows: ScaledRows, columns: ScaledRows, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(
        rows.values, columns.values.t(), scale_a=rows.scales, scale_b=columns.scales.t(), out_dtype=dtype
    )


def _why_unusable(way: Fp8Products, ffn: nn.Sequential, device: torch.device, dtype: torch.dtype) -> str:
    """Why a feed-forward cannot be computed in a way; empty if it can."""
    generator = torch.Generator("cpu").manual_seed(0)
    width = cast("nn.Linear", ffn[0]).in_features
    x = torch.randn(1, _TRIAL_ROWS, width, generator=generator).to(device, dtype)
    try:
        found = fp8_feed_forward(ffn, x, way).float()
        expected = _in_float32(ffn, x, Fp8Products(format=way.format))
        error = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
    except Exception as refused:  # Triton may raise anything where it compiles
        return f"{type(refused).__name__}: {str(refused).partition(chr(10))[0]}"
    return "" if error <= _TRIAL_ERROR else f"its products are wrong by {error:.2g}"


def _in_float32(ffn: nn.Sequential, x: Tensor, fp8: Fp8Products) -> Tensor:
    """The feed-forward of the numbers that plain torch narrows, with products in float32."""
    up, down = cast("nn.Linear", ffn[0]), cast("nn.Linear", ffn[2])
    hidden = F.linear(fp8.narrow(x.flatten(0, -2)).widened, fp8.narrow(up.weight).widened)
    rows = fp8.narrow(hidden.to(x.dtype), up.bias)
    return F.linear(rows.widened, fp8.narrow(down.weight).widened, down.bias.float()).unflatten(0, x.shape[:-1])


def _feed_forward(device: torch.device, dtype: torch.dtype, dim: int, ffn_dim: int) -> nn.Sequential:
    """A feed-forward with random weights that keep the scale of its input."""
    up, down = nn.Linear(dim, ffn_dim, device=device, dtype=dtype), nn.Linear(ffn_dim, dim, device=device, dtype=dtype)
    return nn.Sequential(up, nn.GELU(approximate="tanh"), down)


def _unavailable(reason: str) -> ShortcutUnavailable:
    return ShortcutUnavailable(ShortcutName.FP8_FEED_FORWARD, reason)
