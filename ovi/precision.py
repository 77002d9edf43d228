"""Float32 that is float32.

By default torch lets NVIDIA's convolutions round float32 inputs to TensorFloat-32, with 10 bits of mantissa, and a program may
allow it to matrix products too. The settings belong to the process, so they are changed only while something is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.backends import cudnn

T = TypeVar("T")


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32; other dtypes are not affected. Also a decorator.

    Torch has each setting twice, in an older and in a newer form, and fails where they disagree: both are set and restored.
    """
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
    precisions = [setting.fp32_precision for setting in settings]
    matmul = _read(torch.get_float32_matmul_precision, "highest")
    convolution = _read(lambda: cudnn.allow_tf32, True)
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = convolution
        for setting, precision in zip(settings, precisions, strict=True):
            setting.fp32_precision = precision


def _read(setting: Callable[[], T], default: T) -> T:
    """A setting in its older form; the default where only the newer form was ever changed, which makes torch refuse."""
    try:
        return setting()
    except RuntimeError:
        return default
