"""The 16 kHz mel-spectrogram VAE of MMAudio (arXiv 2412.15322): 80 mel bands to 20 channels at half the length.

Its 1-D convolutions preserve magnitudes (EDM2, arXiv 2312.02696): every output channel of a weight has unit norm, and
activations, sums and norms are scaled to preserve the variance of their inputs. Checkpoints hold the weights before
that normalisation; `convert_state_dict` applies it once, so the modules here are plain convolutions.

B batch, C channels, T mel frames, L latents (T/2)
"""

from collections.abc import Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.config import AudioVAEConfig
from ovi.errors import InvalidRequest

LEVEL_MULTIPLIERS = (1, 2, 4)  # width of each level in base widths, from mel to latents
HALVED_AFTER = 0  # encoder level after which the length is halved
DOUBLED_AFTER = 1  # decoder level, counted from the mel side, after which the length is doubled
EPSILON = 1e-4
ACTIVATION_LIMIT = 256.0  # activations are clamped to [-limit, limit], as in training
RESIDUAL_SHARE = 0.3  # weight of the branch in every residual sum
SILU_GAIN = 0.596  # root mean square of silu(x) for x ~ N(0, 1)


def convert_state_dict(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict with normalised convolution weights, as `AudioVAE` expects it."""
    return {key: _normalise_weight(value) if key.endswith(".weight") else value for key, value in raw.items()}


def _normalise_weight(weight: Tensor) -> Tensor:  # [out, in, kernel]
    fan_in = weight[0].numel()
    norm: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    return weight / (EPSILON + norm / sqrt(fan_in)) / sqrt(fan_in)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """x divided by its root mean square over the channel dimension `dim`."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / (EPSILON + norm / sqrt(x.shape[dim]))


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU, scaled to preserve the magnitude of normally distributed inputs."""
    return F.silu(x) / SILU_GAIN


def residual_sum(x: Tensor, branch: Tensor) -> Tensor:
    """Weighted sum, scaled to preserve the magnitude of two independent inputs."""
    return x.lerp(branch, RESIDUAL_SHARE) / sqrt((1 - RESIDUAL_SHARE) ** 2 + RESIDUAL_SHARE**2)


def limit(x: Tensor) -> Tensor:
    """x clamped to [-ACTIVATION_LIMIT, ACTIVATION_LIMIT]."""
    return x.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def _conv(in_dim: int, out_dim: int, kernel_size: int = 3) -> nn.Conv1d:
    return nn.Conv1d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two convolutions on the pixel-normalised input, with a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_dim, out_dim)
        self.conv2 = _conv(out_dim, out_dim)
        self.nin_shortcut = _conv(in_dim, out_dim, 1) if in_dim != out_dim else None

    def forward(self, x: Tensor) -> Tensor:  # [B,in,T] -> [B,out,T]
        """Run the block."""
        x = pixel_norm(x)
        branch = self.conv2(scaled_silu(self.conv1(scaled_silu(x))))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return residual_sum(x, branch)


class AttentionBlock(nn.Module):
    """Single-head self-attention over time with pixel-normalised queries, keys and values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = _conv(dim, 3 * dim, 1)
        self.proj_out = _conv(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B,C,T]
        """Run the block."""
        batch, dim, length = x.shape
        qkv = self.qkv(x).view(batch, dim, 3, length)  # q, k and v of a channel are adjacent
        q, k, v = pixel_norm(qkv).permute(2, 0, 3, 1).unsqueeze(2)  # each [B,1,T,C]
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)  # [B,C,T]
        return residual_sum(x, self.proj_out(y))


class Downsample(nn.Module):
    """Halves the length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = _conv(dim, dim, 1)
        self.conv2 = _conv(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B,C,T] -> [B,C,T/2]
        """Run the layer."""
        y: Tensor = self.conv2(F.avg_pool1d(self.conv1(x), kernel_size=2))
        return y


class Upsample(nn.Module):
    """Doubles the length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = _conv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [B,C,L] -> [B,C,2L]
        """Run the layer."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
        return y


class Level(nn.Module):
    """Residual blocks of one width, optionally followed by down- or upsampling."""

    def __init__(self, dims: list[int], *, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(dims[i], dims[i + 1]) for i in range(len(dims) - 1))
        self.downsample = Downsample(dims[-1]) if downsample else None
        self.upsample = Upsample(dims[-1]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the level."""
        for block in self.block:
            x = limit(block(x))
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Middle(nn.Module):
    """The innermost blocks; the only ones with attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(dim, dim)
        self.attn_1 = AttentionBlock(dim)
        self.block_2 = ResidualBlock(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        return limit(self.block_2(self.attn_1(self.block_1(x))))


class Encoder(nn.Module):
    """Encodes a normalised mel spectrogram to the mean and log-variance of its latents."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.hidden_dim * m for m in LEVEL_MULTIPLIERS]
        in_widths = [config.hidden_dim, *widths]
        self.conv_in = _conv(config.data_dim, config.hidden_dim)
        self.down = nn.ModuleList(
            Level([in_widths[i], width, width], downsample=i == HALVED_AFTER) for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.conv_out = _conv(widths[-1], 2 * config.embed_dim)
        self.learnable_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:  # [B,80,T] -> [B,40,L]
        """Encode."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        moments: Tensor = self.conv_out(scaled_silu(self.mid(x)))
        return moments * (1 + self.learnable_gain)


class Decoder(nn.Module):
    """Decodes latents to a normalised mel spectrogram."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.hidden_dim * m for m in LEVEL_MULTIPLIERS]
        in_widths = [*widths[1:], widths[-1]]
        self.conv_in = _conv(config.embed_dim, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level([in_widths[i], width, width, width], upsample=i == DOUBLED_AFTER) for i, width in enumerate(widths)
        )
        self.conv_out = _conv(widths[0], config.data_dim)
        self.learnable_gain = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:  # [B,20,L] -> [B,80,T]
        """Decode."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        mel: Tensor = self.conv_out(scaled_silu(x))
        return mel * (1 + self.learnable_gain)


class AudioVAE(nn.Module):
    """Encodes and decodes log-mel spectrograms. Inference only: the weights are frozen.

    Its state dict is what `convert_state_dict` returns, including the mel's mean and standard deviation.
    """

    data_mean: Tensor  # [1,80,1]
    data_std: Tensor  # [1,80,1]

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.register_buffer("data_mean", torch.zeros(1, config.data_dim, 1))
        self.register_buffer("data_std", torch.ones(1, config.data_dim, 1))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.requires_grad_(False)

    def encode(self, mel: Tensor) -> Tensor:
        """Latent means of a log-mel spectrogram: [B, 80, T] -> [B, 20, T/2], float32.

        Raises InvalidRequest for an odd T, as halving would drop its last frame.
        """
        if mel.shape[-1] % 2:
            raise InvalidRequest(f"the spectrogram has {mel.shape[-1]} frames; expected an even number")
        normalised = (mel.float() - self.data_mean.float()) / self.data_std.float()
        mean, _log_variance = torch.chunk(self.encoder(normalised.to(self._dtype)).float(), 2, dim=1)
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """Log-mel spectrogram of audio latents: [B, 20, L] -> [B, 80, 2L], float32."""
        normalised: Tensor = self.decoder(latents.to(self._dtype)).float()
        return normalised * self.data_std.float() + self.data_mean.float()

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype
