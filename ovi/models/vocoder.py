"""BigVGAN (arXiv 2206.04658, github.com/NVIDIA/BigVGAN, MIT): mel spectrogram to waveform, 256 samples per mel frame.

Its periodic activations run at twice the sample rate, between two low-pass filters, so that the harmonics that they
generate do not alias.

B batch, C channels, T mel frames, S samples (256 T)
"""

from collections.abc import Mapping
from functools import cache
from math import inf, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.config import VocoderConfig
from ovi.errors import CheckpointMismatch
from ovi.finite import clamp_finite_

UPSAMPLE_RATES = (4, 4, 2, 2, 2, 2)
UPSAMPLE_KERNELS = (8, 8, 4, 4, 4, 4)
RESIDUAL_KERNELS = (3, 7, 11)
DILATIONS = (1, 3, 5)
FILTER_TAPS = 12
CUTOFF = 0.25  # of the low-pass filter, as a fraction of the doubled sample rate
HALF_WIDTH = 0.3  # half the width of the filter's transition band

# Weight norm stores a magnitude and a direction per weight, under one of two pairs of names.
_WEIGHT_NORM_FORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def convert_state_dict(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published checkpoint, unwrapped from 'generator' and with its weight norm folded, as `Vocoder` expects it.

    Raises CheckpointMismatch for a direction without its magnitude.
    """
    raw = raw.get("generator", raw)
    folded = {key: value for key, value in raw.items() if not key.endswith(sum(_WEIGHT_NORM_FORMS, ()))}
    for magnitude, direction in _WEIGHT_NORM_FORMS:
        for key in raw:
            if key.endswith(direction):
                layer = key.removesuffix(direction)
                if layer + magnitude not in raw:
                    raise CheckpointMismatch(f"the vocoder's checkpoint has {key} but not {layer + magnitude}")
                folded[layer + "weight"] = _fold(raw[layer + magnitude], raw[key])
    return folded


def _fold(magnitude: Tensor, direction: Tensor) -> Tensor:  # [n, 1, 1], [n, ., .]
    norm: Tensor = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
    return direction * (magnitude / norm)


@cache  # a vocoder has hundreds of them, and on the meta device each takes milliseconds
def low_pass_filter() -> Tensor:
    """The Kaiser-windowed sinc filter of the up- and downsampling, [1, 1, 12], normalised to sum to one. One tensor for all.

    The window's beta follows from the attenuation that 12 taps reach over the transition band (Kaiser's formulas).
    """
    attenuation = 2.285 * (FILTER_TAPS / 2 - 1) * pi * 4 * HALF_WIDTH + 7.95  # 51 dB
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7), device="cpu")
    time = torch.arange(FILTER_TAPS, device="cpu") - (FILTER_TAPS - 1) / 2
    taps = window * torch.sinc(2 * CUTOFF * time)
    return (taps / taps.sum()).view(1, 1, -1)


class SnakeBeta(nn.Module):
    """x + sin^2(e^alpha x) / e^beta, with one (alpha, beta) per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:  # [B,C,S]
        """Run the activation."""
        frequency = self.alpha.exp().unsqueeze(-1)
        amplitude = 1 / (self.beta.exp() + 1e-9).unsqueeze(-1)
        return (x * frequency).sin_().square_().mul_(amplitude).add_(x)


class LowPass(nn.Module):
    """A depthwise low-pass filter, which the checkpoint stores with the weights."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", low_pass_filter().to(torch.get_default_device(), copy=True))

    def per_channel(self, channels: int) -> Tensor:
        """The filter as the weight of a depthwise convolution, [C,1,12]."""
        return self.filter.expand(channels, -1, -1)


class Upsample(LowPass):
    """Doubles the sample rate."""

    def forward(self, x: Tensor) -> Tensor:  # [B,C,S] -> [B,C,2S]
        """Run the filter; the ends are replicated so that it sees no step there."""
        channels = x.shape[1]
        margin = FILTER_TAPS // 2 - 1
        x = F.pad(x, (margin, margin), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.per_channel(channels), stride=2, groups=channels)
        return x[..., 3 * margin : -3 * margin]


class Downsample(nn.Module):
    """Halves the sample rate."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:  # [B,C,2S] -> [B,C,S]
        """Run the filter."""
        channels = x.shape[1]
        x = F.pad(x, (FILTER_TAPS // 2 - 1, FILTER_TAPS // 2), mode="replicate")
        return F.conv1d(x, self.lowpass.per_channel(channels), stride=2, groups=channels)


class Activation(nn.Module):
    """SnakeBeta at twice the sample rate."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.act = SnakeBeta(dim)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:  # [B,C,S]
        """Run the activation."""
        y: Tensor = self.downsample(self.act(self.upsample(x)))
        return y


class ResidualBlock(nn.Module):
    """Three residual steps with growing dilation, each a dilated and an undilated convolution of the same kernel size."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size, dilation=d, padding=d * (kernel_size // 2)) for d in DILATIONS
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2) for _ in DILATIONS)
        self.activations = nn.ModuleList(Activation(dim) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:  # [B,C,S]
        """Run the block."""
        activations = iter(self.activations)
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            branch = conv1(next(activations)(x))
            x = x + conv2(next(activations)(branch))
        return x


class Vocoder(nn.Module):
    """Mel spectrogram to waveform. Inference only: the weights are frozen. Loads what `convert_state_dict` returns."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        widths = [config.upsample_initial_channel >> i for i in range(len(UPSAMPLE_RATES) + 1)]
        self.conv_pre = nn.Conv1d(config.num_mels, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            # Each in a sequence of one, as the checkpoint's names require.
            nn.Sequential(
                nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, stride=rate, padding=(kernel - rate) // 2)
            )
            for i, (rate, kernel) in enumerate(zip(UPSAMPLE_RATES, UPSAMPLE_KERNELS, strict=True))
        )
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, kernel) for width in widths[1:] for kernel in RESIDUAL_KERNELS
        )
        self.activation_post = Activation(widths[-1])
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)
        self.requires_grad_(False)

    def forward(self, mel: Tensor) -> Tensor:
        """Waveform of a log-mel spectrogram: [B, 80, T] -> [B, 1, 256 T] in [-1, 1] or NaN, float32, 16 kHz."""
        x = self.conv_pre(mel.to(self.conv_pre.weight.dtype))
        blocks = iter(self.resblocks)
        for upsample in self.ups:
            x = upsample(x)
            x = sum(next(blocks)(x) for _ in RESIDUAL_KERNELS) / len(RESIDUAL_KERNELS)
        wave: Tensor = self.conv_post(self.activation_post(x))
        return clamp_finite_(wave.float(), -inf, inf).tanh_()  # tanh alone would hide an infinity
