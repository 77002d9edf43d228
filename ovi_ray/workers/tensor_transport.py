"""Tensors in Ray's object store: numpy arrays, which Ray reads without a copy. bfloat16 is stored as uint16."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class Packed:
    """Tensors by name, as numpy arrays."""

    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    """torch dtypes, such as "bfloat16"."""


def pack(**tensors: Tensor) -> Packed:
    """Move tensors to host memory, ready for the object store."""
    return Packed(
        arrays={name: _bits(tensor.cpu().contiguous()) for name, tensor in tensors.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    )


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The packed tensors, on the CPU; copied, because the object store is read-only."""
    return {
        name: torch.from_numpy(array.copy()).view(getattr(torch, packed.dtypes[name]))
        for name, array in packed.arrays.items()
    }


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
