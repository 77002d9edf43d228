"""The ways to run a convolution. The libraries below torch are right and fast in one of them, by device and version."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

FIND_MODE = "MIOPEN_FIND_MODE"


class ConvolutionPath(StrEnum):
    """A way to run convolutions; torch calls MIOpen `cudnn` on ROCm."""

    DEFAULT = "default"
    """As torch chooses."""
    SEARCHED = "searched"
    """The fastest kernel of cuDNN or MIOpen for each shape, searched for at its first use."""
    FAST_FIND = "fast_find"
    """The kernel that MIOpen's heuristics name, without its search: on ROCm only, where the search may take minutes."""
    WITHOUT_CUDNN = "without_cudnn"
    """Torch's own kernels."""
    AS_CONV2D = "as_conv2d"
    """A 3-D convolution as one 2-D convolution of all frames for each frame of its kernel, summed."""


@contextmanager
def convolving(path: ConvolutionPath) -> Iterator[None]:
    """Run the convolutions of the block in a way. The settings are the process's: one such block at a time."""
    match path:
        case ConvolutionPath.DEFAULT:
            yield
        case ConvolutionPath.SEARCHED:
            with _set("benchmark", True):
                yield
        case ConvolutionPath.FAST_FIND:
            with _environment(FIND_MODE, "FAST"):  # which MIOpen reads once, at the first convolution of a process
                yield
        case ConvolutionPath.WITHOUT_CUDNN:
            with _set("enabled", False):
                yield
        case ConvolutionPath.AS_CONV2D:
            with _FrameByFrame():
                yield


def conv3d_as_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv3d` of x [B, C, T, H, W], with one 2-D convolution of all frames for each frame of the kernel."""
    (step, *steps), (pad, *pads), (spread, *spreads) = map(_triple, (stride, padding, dilation))
    x = F.pad(x, (0, 0, 0, 0, pad, pad)) if pad else x
    batch, frames = x.shape[0], (x.shape[2] - spread * (weight.shape[2] - 1) - 1) // step + 1
    total: Tensor | None = None
    for k in range(weight.shape[2]):
        first = k * spread
        seen = x[:, :, first : first + (frames - 1) * step + 1 : step].transpose(1, 2).flatten(0, 1)  # BT C H W
        part = F.conv2d(seen, weight[:, :, k], None if k else bias, steps, pads, spreads, groups)
        total = part if total is None else total.add_(part)
    assert total is not None  # a kernel has frames
    return total.unflatten(0, (batch, frames)).transpose(1, 2).contiguous()


class _FrameByFrame(TorchFunctionMode):
    """Replaces 3-D convolutions with numbers as their padding, which are all that the models have."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call = conv3d_as_conv2d if func is torch.conv3d else func
        return call(*args, **(kwargs or {}))


@contextmanager
def _set(name: str, value: bool) -> Iterator[None]:
    before = getattr(cudnn, name)
    setattr(cudnn, name, value)
    try:
        yield
    finally:
        setattr(cudnn, name, before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _triple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
