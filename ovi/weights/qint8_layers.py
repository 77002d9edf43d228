"""8-bit integer layers through quanto. Import this module lazily: quanto takes seconds to import."""

import torch.nn.functional as F
from optimum.quanto import QLinear, freeze, qint8, quantize
from torch import Tensor, nn

_QUANTIZED = "*.blocks.*"  # pattern of the module names to quantize
_SAFE_MULTIPLE = 32  # int8 weights per row that are safe; multiples of 8 but not of 16 were seen to crash


class WideningQLinear(QLinear):  # type: ignore[misc]  # quanto is untyped
    """A linear layer whose 8-bit integer weights are dequantized before the product."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        return F.linear(x, self.weight.dequantize(), self.bias)


def quantize_blocks(module: nn.Module) -> None:
    """Quantize the weight matrices of a transformer's blocks to 8-bit integers, in place."""
    quantize(module, weights=qint8, include=_QUANTIZED)
    freeze(module)


def avoid_overreads(module: nn.Module) -> None:
    """Replace the layers on which torch's CPU kernel would read out of bounds, in place.

    Its product of bf16 with int8 reads past the end of rows that do not fill its vectors, and crashes the process.
    """
    for layer in module.modules():
        if isinstance(layer, QLinear) and layer.in_features % _SAFE_MULTIPLE:
            layer.__class__ = WideningQLinear
