"""The fused kernels and the plan that names those in use (no torch)."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class KernelMode(StrEnum):
    """The kernels that a pipeline may use, as named in job files."""

    AUTO = "auto"
    """On a GPU, each kernel that rounds where plain torch rounds, is right there and is faster."""
    EAGER = "eager"
    """None: plain torch."""
    FUSED = "fused"
    """As `auto`, and also those that round less often than plain torch, which changes pixels."""


class FusedKernel(StrEnum):
    """Operations that one kernel computes, with one read of what plain torch reads several times."""

    RESIDUAL_NORM = "residual_norm"
    """A gated residual and the layer norm after it, with its learned scale or the modulation."""
    NORM_ROTATE = "norm_rotate"
    """The RMS norm of queries or keys and their rotation."""
    LINEAR_GELU = "linear_gelu"
    """GELU in the product before it."""
    CHANNELS_LAST = "channels_last"
    """Not a kernel but a layout: the video decoder's convolutions read and write the channels of a pixel side by side."""
    NORM_SILU = "norm_silu"
    """The video decoder's RMS norm and SiLU, written where the convolution reads them."""

    @property
    def rounds_as_eager(self) -> bool:
        """Whether half precision is rounded where plain torch rounds it, so that only the order of sums differs."""
        return self is not FusedKernel.LINEAR_GELU


@dataclass(kw_only=True, slots=True, frozen=True)
class KernelPlan:
    """The kernels in use on a device, a field for each; chosen once and passed to the model."""

    residual_norm: bool = False
    norm_rotate: bool = False
    linear_gelu: bool = False
    channels_last: bool = False
    norm_silu: bool = False

    @classmethod
    def of(cls, kernels: Iterable[FusedKernel]) -> Self:
        """The plan that uses the given kernels."""
        return cls(**dict.fromkeys(map(str, kernels), True))

    @property
    def in_transformer(self) -> Self:
        """The part of the plan that denoising uses."""
        return dataclasses.replace(self, channels_last=False, norm_silu=False)

    @property
    def in_decoder(self) -> Self:
        """The part of the plan that decoding uses."""
        return type(self)(channels_last=self.channels_last, norm_silu=self.norm_silu)

    def __str__(self) -> str:
        """The form used in results: "eager", or the names of the kernels."""
        used = [field.name for field in dataclasses.fields(self) if getattr(self, field.name)]
        return ", ".join(used) or str(KernelMode.EAGER)


EAGER_PLAN = KernelPlan()
"""Plain torch alone."""
