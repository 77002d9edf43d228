"""8-bit integer layers through quanto, which takes seconds to import: only where a model is quantized."""

import torch.nn.functional as F
from optimum.quanto import QLinear, freeze, qint8, quantize
from torch import Tensor, nn

_QUANTIZED = "*.blocks.*"  # module names that are quantized
_SAFE_MULTIPLE = 32  # of int8 weights in a row; multiples of 8 that are none of 16 were seen to crash


class WideningQLinear(QLinear):  # type: ignore[misc]  # quanto is untyped
    """A linear layer of 8-bit integers that are widened before the product."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        return F.linear(x, self.weight.dequantize(), self.bias)


def quantize_blocks(module: nn.Module) -> None:
    """Make the matrices of a transformer's blocks 8-bit integers."""
    quantize(module, weights=qint8, include=_QUANTIZED)
    freeze(module)


def avoid_overreads(module: nn.Module) -> None:
    """Torch's product of bf16 with int8 on the CPU reads past rows that do not fill its vectors, and crashes."""
    for layer in module.modules():
        if isinstance(layer, QLinear) and layer.in_features % _SAFE_MULTIPLE:
            layer.__class__ = WideningQLinear
