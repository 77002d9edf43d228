"""Numbers that are not finite (NaN or infinity), found where the tensors are: nothing waits for a device until it is asked.

A tensor is finite if its least and its greatest number are, since both are NaN where any number is. That takes one read of
the tensor, and no memory.
"""

import functools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 22  # numbers that are counted at a time: they and their copies stay in a processor's cache


def all_finite(tensor: Tensor) -> Tensor:
    """Whether every number of a tensor with at least one is finite: a boolean scalar on its device."""
    least, greatest = torch.aminmax(tensor)
    return torch.isfinite(least) & torch.isfinite(greatest)


def clamp_finite_(tensor: Tensor, low: float, high: float) -> Tensor:
    """Clamp in place; all of the tensor becomes NaN where any of its numbers is not finite, so that no infinity is hidden."""
    finite = all_finite(tensor)
    bounds = [torch.where(finite, bound, torch.nan).to(tensor.dtype) for bound in (low, high)]
    return tensor.clamp_(*bounds)


class FirstNonFinite:
    """The first step at which each of several tensors is not finite; kept on their device until `read`."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self._never = torch.iinfo(torch.int32).max
        self._first = torch.full((len(names),), self._never, dtype=torch.int32, device=device)

    def observe(self, step: int, *tensors: Tensor) -> None:
        """Look at the tensors after a step, one for each name."""
        finite = torch.stack([all_finite(tensor) for tensor in tensors])
        self._first = torch.where(finite, self._first, self._first.clamp(max=step))

    def read(self) -> Mapping[str, int]:
        """The names whose tensors were not finite, each with the first such step. Waits for the device."""
        steps = zip(self._names, self._first.tolist(), strict=True)
        return {name: step for name, step in steps if step != self._never}


def count_non_finite(tensor: Tensor) -> int:
    """The count of numbers that are not finite in a tensor on the CPU; 0 for one that does not hold floating-point numbers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    return sum(_count(chunk) for chunk in _chunks(tensor))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.reshape(-1).split(_CHUNK)


def _count(chunk: Tensor) -> int:
    if chunk.dtype.itemsize == 1:
        return _count_8_bit(chunk)
    return 0 if all_finite(chunk) else int(torch.isfinite(chunk).logical_not().sum())


def _count_8_bit(chunk: Tensor) -> int:
    """Torch reduces no 8-bit floats: their bits are compared with those of the few values that are not finite."""
    bits = chunk.view(torch.uint8).numpy()
    return sum(int(np.count_nonzero(bits == value)) for value in _bits_of_non_finite(chunk.dtype))


@functools.cache
def _bits_of_non_finite(dtype: torch.dtype) -> list[int]:
    every = torch.arange(256, dtype=torch.uint8)
    values: list[int] = every[torch.isfinite(every.view(dtype).float()).logical_not()].tolist()
    return values
