"""Feed-forward products in 8-bit floats, with one scale for each row of both factors.

The weights stay as they are and are narrowed for each product: that costs memory traffic of the size of the weights, where the
product costs that times the tokens, and leaves the exact product possible at every step.

Shapes: B batch, L tokens, C width, H hidden width, N output width.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.errors import ShortcutUnavailable
from ovi.quality import ShortcutName

_FP8_FORMATS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)  # MI300 has the second one only
_LEAST = 1e-12  # largest number of a row of zeros, so that its scale is none
_TRIAL_ROWS = 32
_TRIAL_ERROR = 0.01  # against the product of the same narrowed numbers: the output's rounding to half precision


@dataclass(kw_only=True, slots=True, frozen=True)
class ScaledRows:
    """A matrix [R, C] in 8-bit floats, with the scales [R, 1] of its rows in float32."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, matrix: Tensor, fp8: torch.dtype) -> "ScaledRows":
        """The matrix with the largest number of each row scaled to the largest one of the format."""
        largest = torch.linalg.vector_norm(matrix, ord=torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
        scales = (largest.clamp_min(_LEAST) / torch.finfo(fp8).max).to(matrix.dtype)
        return cls(values=(matrix / scales).to(fp8), scales=scales.float())

    @property
    def widened(self) -> Tensor:
        """The numbers that it stands for, in float32."""
        return self.values.float() * self.scales


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, fp8: torch.dtype) -> Tensor:
    """x [..., C] times weight [N, C] plus bias, from 8-bit factors: [..., N] in x's dtype."""
    rows, columns = ScaledRows.of(x.flatten(0, -2), fp8), ScaledRows.of(weight.to(x.dtype), fp8)
    product = _product(rows, columns, x.dtype)
    return (product if bias is None else product + bias).unflatten(0, x.shape[:-1])


def fp8_feed_forward(ffn: nn.Sequential, x: Tensor, fp8: torch.dtype) -> Tensor:
    """A feed-forward (linear, GELU, linear) of x [B, L, C] with products in 8-bit floats."""
    up, gelu, down = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(ffn))
    hidden = gelu(fp8_linear(x, up.weight, up.bias, fp8))  # B L H
    return fp8_linear(hidden, down.weight, down.bias, fp8)


def fp8_format(device: torch.device, dtype: torch.dtype, *, dim: int, ffn_dim: int) -> torch.dtype:
    """The 8-bit float format that the device multiplies: asked of torch, with a small product of each shape of a feed-forward.

    Raises ShortcutUnavailable where there is none, or its products are wrong.
    """
    reasons = []
    for fp8 in _FP8_FORMATS:
        wrong = [_trial(device, dtype, fp8, *shape) for shape in ((ffn_dim, dim), (dim, ffn_dim))]
        if not any(wrong):
            return fp8
        reasons.append(f"{str(fp8).removeprefix('torch.')}: {next(filter(None, wrong))}")
    raise ShortcutUnavailable(
        ShortcutName.FP8_FEED_FORWARD, f"no products in 8-bit floats on {device} ({'; '.join(reasons)})"
    )


def _product(rows: ScaledRows, columns: ScaledRows, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(
        rows.values, columns.values.t(), scale_a=rows.scales, scale_b=columns.scales.t(), out_dtype=dtype
    )


def _trial(device: torch.device, dtype: torch.dtype, fp8: torch.dtype, outputs: int, inputs: int) -> str:
    """Why products of this shape cannot be computed; empty if they can."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight = (
        torch.randn(rows, inputs, generator=generator, device="cpu").to(device, dtype)
        for rows in (_TRIAL_ROWS, outputs)
    )
    try:
        rows, columns = ScaledRows.of(x, fp8), ScaledRows.of(weight, fp8)
        product = _product(rows, columns, dtype).float()
        expected = F.linear(rows.widened, columns.widened)
        error = float(torch.linalg.vector_norm(product - expected) / torch.linalg.vector_norm(expected))
    except (RuntimeError, ValueError, NotImplementedError) as refused:
        return str(refused).partition("\n")[0]
    return "" if error <= _TRIAL_ERROR else f"its products are wrong by {error:.2g}"
