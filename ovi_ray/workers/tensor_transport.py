"""Tensors as Ray's object store keeps them: numpy arrays, read without a copy. bf16 travels as its 16 bits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class Packed:
    """Tensors by name."""

    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]


def pack(**tensors: Tensor) -> Packed:
    """Tensors for the object store."""
    return Packed(
        arrays={name: _bits(tensor.cpu().contiguous()) for name, tensor in tensors.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    )


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The tensors that were packed, copied out of the read-only store."""
    return {
        name: torch.from_numpy(array.copy()).view(getattr(torch, packed.dtypes[name]))
        for name, array in packed.arrays.items()
    }


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
