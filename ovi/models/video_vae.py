"""The video VAE of Wan 2.2: 16x in space, 4x in time, 48 channels (github.com/Wan-Video/Wan2.2, Apache-2.0).

All layers are causal in time, so a clip is processed in chunks: one frame, then four frames (encode) or one latent
frame (decode) at a time. The state that layers carry from chunk to chunk is in a `Stream`, one per clip. The modules
hold only weights, so clips cannot mix, and memory does not grow with a clip's length.

B batch, C channels, T video frames, F latent frames, t frames of a chunk, H W pixels, h w latents (H/16, W/16)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from ovi.config import SPATIAL_STRIDE, TEMPORAL_STRIDE, VideoVAEConfig
from ovi.errors import InvalidRequest
from ovi.finite import clamp_finite_
from ovi.kernels import KernelPlan, operations
from ovi.kernels.reference import normalize_channels_
from ovi.kernels.types import EAGER_PLAN
from ovi.models.tiling import Span, Tiling

# Per-channel statistics of the latents over Wan 2.2's training set; the transformer sees (latent - mean) / std.
# Not module buffers, because a module built on the meta device would lose their values.
LATENT_MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
LATENT_STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)

PATCH = 2  # pixels folded into channels before the first stage, in each direction


class StageSpec(NamedTuple):
    """One resolution of the encoder or the decoder."""

    multiplier: int
    """Channels in base widths."""
    resamples_space: bool
    """Whether the stage ends by halving (encoder) or doubling (decoder) height and width."""
    resamples_time: bool
    """Whether it also halves or doubles the number of frames."""


ENCODER_STAGES = (
    StageSpec(1, resamples_space=True, resamples_time=False),
    StageSpec(2, resamples_space=True, resamples_time=True),
    StageSpec(4, resamples_space=True, resamples_time=True),
    StageSpec(4, resamples_space=False, resamples_time=False),
)
DECODER_STAGES = (
    StageSpec(4, resamples_space=True, resamples_time=True),
    StageSpec(4, resamples_space=True, resamples_time=True),
    StageSpec(2, resamples_space=True, resamples_time=False),
    StageSpec(1, resamples_space=False, resamples_time=False),
)


@dataclass(slots=True)
class Stream:
    """State that the causal layers carry between the chunks of one clip; discarded after the clip."""

    kernels: KernelPlan = EAGER_PLAN
    is_first_chunk: bool = True
    """The first chunk is a single frame, which skips temporal up- and downsampling."""
    tails: dict[nn.Module, Tensor] = field(default_factory=dict)
    """The last input frames [B, C, 1 or 2, ., .] of each causal convolution."""

    def move(self, device: torch.device) -> None:
        """Move the state to a device, in place."""
        self.tails = {module: tail.to(device) for module, tail in self.tails.items()}


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution causal in time: each chunk is preceded by the last frames of the previous one, or zeros."""

    @property
    def memory(self) -> int:
        """Frames of a chunk that the next chunk needs."""
        return self.kernel_size[0] - self.stride[0]

    def forward(  # type: ignore[override]  # takes the stream
        self, x: Tensor, stream: Stream, norm: "RMSNorm | None" = None
    ) -> Tensor:  # [B,C,t,.,.]
        """Convolve x or, given a `norm`, silu(norm(x)), which is written to the window to save a copy of x."""
        window = self._window(x, stream)
        if norm is None:
            window[:, :, self.memory :] = x
        else:
            operations.norm_silu_(x, norm.gamma, window[:, :, self.memory :], kernels=stream.kernels)
        self.remember(window, stream)
        return super().forward(window)

    def remember(self, x: Tensor, stream: Stream) -> None:
        """Store a copy of the last frames of x; a view would keep all of x alive."""
        stream.tails[self] = x[:, :, -self.memory :].clone()

    def _window(self, x: Tensor, stream: Stream) -> Tensor:  # [B,C,memory+t,.,.]
        """A window for the frames of x, of which only those before x are there."""
        batch, channels, frames, *size = x.shape
        window = operations.empty_frames(x, batch, channels, self.memory + frames, *size, kernels=stream.kernels)
        tail = stream.tails.pop(self, None)
        window[:, :, : self.memory] = 0 if tail is None else tail
        return window


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels, dimension 1."""

    def __init__(self, dim: int, *, spatial_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised, as a new tensor."""
        return normalize_channels_(x.clone(), self.gamma)


class Chain(nn.ModuleList):
    """A sequence of layers that share a stream."""

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Run the layers."""
        for layer in self:
            x = layer(x, stream)
        return x


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # Keys are the indices of these layers in the published checkpoint, where activations and dropout have the others.
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_dim, spatial_dims=3),
                "2": CausalConv3d(in_dim, out_dim, 3, padding=(0, 1, 1)),
                "3": RMSNorm(out_dim, spatial_dims=3),
                "6": CausalConv3d(out_dim, out_dim, 3, padding=(0, 1, 1)),
            }
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv3d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,in,t,.,.] -> [B,out,t,.,.]
        """Run the block on one chunk."""
        norm1, conv1, norm2, conv2 = self.residual.values()
        residual: Tensor = conv1(x, stream, norm1)
        residual = conv2(residual, stream, norm2)
        return residual.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """x + single-head self-attention within each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,C,t,h,w]
        """Run the block on one chunk. The stream is unused: frames do not attend to each other."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3).contiguous()
        y = F.scaled_dot_product_attention(*qkv)
        y = self.proj(rearrange(y, "n 1 (h w) c -> n c h w", h=x.shape[3]))
        attended: Tensor = rearrange(y, "(b t) c h w -> b c t h w", t=x.shape[2])
        return attended.add_(x)


class Upsample(nn.Module):
    """Doubles height and width and, if `doubles_time`, the frames of every chunk but the first."""

    def __init__(self, dim: int, *, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(dim, dim, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if doubles_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,C,t,h,w] -> [B,C,t or 2t,2h,2w]
        """Run the layer on one chunk."""
        if self.time_conv is not None and not stream.is_first_chunk:
            # The first chunk leaves no tail: the second one starts from zeros, as in training.
            x = _interleaved(self.time_conv(x, stream), stream)
        batch, dim, frames, height, width = x.shape
        out = operations.empty_frames(x, batch, dim, frames, 2 * height, 2 * width, kernels=stream.kernels)
        for i in range(frames):  # one at a time: the enlarged input of the convolution is the largest tensor here
            out[:, :, i] = self.resample(x[:, :, i])
        return out


def _interleaved(x: Tensor, stream: Stream) -> Tensor:
    """[B,2C,t,h,w] -> [B,C,2t,h,w]: the first half of the channels holds the even frames."""
    batch, channels, frames, height, width = x.shape
    size = (batch, channels // 2, 2 * frames, height, width)
    out = operations.empty_frames(x, *size, kernels=stream.kernels)
    out[:, :, 0::2], out[:, :, 1::2] = x.chunk(2, dim=1)
    return out


class Downsample(nn.Module):
    """Halves height and width and, if `halves_time`, the frames of every chunk but the first."""

    def __init__(self, dim: int, *, halves_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if halves_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,C,t,h,w] -> [B,C,t or t/2,h/2,w/2]
        """Run the layer on one chunk."""
        frames = x.shape[2]
        x = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(x, "(b t) c h w -> b c t h w", t=frames)
        if self.time_conv is None:
            return x
        if stream.is_first_chunk:
            self.time_conv.remember(x, stream)
            return x
        halved: Tensor = self.time_conv(x, stream)
        return halved


class DownStage(nn.Module):
    """Two residual blocks and a downsampling, plus an averaging shortcut."""

    def __init__(self, in_dim: int, out_dim: int, spec: StageSpec) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.spec = spec
        self.downsamples = Chain([ResidualBlock(in_dim, out_dim), ResidualBlock(out_dim, out_dim)])
        if spec.resamples_space:
            self.downsamples.append(Downsample(out_dim, halves_time=spec.resamples_time))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Run the stage on one chunk."""
        y: Tensor = self.downsamples(x, stream)
        return y.add_(average_down(x, self.out_dim, self.spec))


class UpStage(nn.Module):
    """Three residual blocks and an upsampling, plus a repeating shortcut; the last stage has neither of the two."""

    def __init__(self, in_dim: int, out_dim: int, spec: StageSpec) -> None:
        super().__init__()
        self.spec = spec
        dims = (in_dim, out_dim, out_dim)
        self.upsamples = Chain([ResidualBlock(dim, out_dim) for dim in dims])
        if spec.resamples_space:
            self.upsamples.append(Upsample(out_dim, doubles_time=spec.resamples_time))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Run the stage on one chunk."""
        y: Tensor = self.upsamples(x, stream)
        if self.spec.resamples_space:
            add_duplicated_(y, x, 2 if self.spec.resamples_time else 1, is_first_chunk=stream.is_first_chunk)
        return y


def average_down(x: Tensor, out_dim: int, spec: StageSpec) -> Tensor:
    """Fold the frames and pixels that the stage merges into channels, then average groups of channels to `out_dim`.

    [B,C,t,h,w] -> [B,out_dim,t or t/2,h or h/2,w or w/2]; an odd number of frames is padded with zeros in front.
    """
    q, r = 1 + spec.resamples_time, 1 + spec.resamples_space
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % q, 0))
    x = rearrange(x, "b c (t q) (h r) (w s) -> b (c q r s) t h w", q=q, r=r, s=r)
    averaged: Tensor = reduce(x, "b (c group) t h w -> b c t h w", "mean", c=out_dim)
    return averaged


def add_duplicated_(y: Tensor, x: Tensor, factor_t: int, *, is_first_chunk: bool) -> None:
    """Add x to y in place, with each value of x repeated to the size of y in channels, frames, height and width.

    x [B,C,t,h,w], y [B,out,t*factor_t,2h,2w]. The repeats of a channel fill (out, factor_t, 2, 2) in that order, so
    every (frame, row, column) phase of y adds one strided slice of x, without a copy. On the first chunk y has only the
    last phase in time.
    """
    stride = x.shape[1] // y.shape[1]  # channels of x per channel of y
    phases = factor_t * 4
    steps = 1 if is_first_chunk else factor_t
    for step, row, column in product(range(steps), range(2), range(2)):
        phase = (factor_t - steps + step) * 4 + row * 2 + column
        y[:, :, step::steps, row::2, column::2].add_(x[:, phase * stride // phases :: stride])


class Encoder(nn.Module):
    """Encodes folded pixels to the mean and log-variance of latents."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        dims = [dim, *(dim * spec.multiplier for spec in ENCODER_STAGES)]
        self.conv1 = CausalConv3d(3 * PATCH**2, dim, 3, padding=(0, 1, 1))
        self.downsamples = Chain([DownStage(dims[i], dims[i + 1], spec) for i, spec in enumerate(ENCODER_STAGES)])
        self.middle = _middle(dims[-1])
        self.head = _head(dims[-1], out_dim)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,12,1 or 4,H/2,W/2] -> [B,out_dim,1,h,w]
        """Encode one chunk of frames."""
        x = self.conv1(x, stream)
        x = self.downsamples(x, stream)
        x = self.middle(x, stream)
        norm, conv = self.head.values()
        moments: Tensor = conv(x, stream, norm)
        return moments


class Decoder(nn.Module):
    """Decodes latents to folded pixels, in two parts: `forward`, which sees whole frames, and `enlarge`."""

    def __init__(self, dim: int, z_dim: int) -> None:
        super().__init__()
        out_dims = [dim * spec.multiplier for spec in DECODER_STAGES]
        in_dims = [out_dims[0], *out_dims]
        self.conv1 = CausalConv3d(z_dim, in_dims[0], 3, padding=(0, 1, 1))
        self.middle = _middle(in_dims[0])
        self.upsamples = Chain([UpStage(in_dims[i], out_dims[i], spec) for i, spec in enumerate(DECODER_STAGES)])
        self.head = _head(out_dims[-1], 3 * PATCH**2)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # [B,z,1,h,w] -> [B,C,1,h,w]
        """Features of one latent frame; attends over the whole frame. `enlarge` turns them into pixels."""
        x = self.conv1(x, stream)
        features: Tensor = self.middle(x, stream)
        return features

    def enlarge(
        self, x: Tensor, stream: Stream, frames_per_pass: int
    ) -> Tensor:  # [B,C,1,h,w] -> [B,12,1 or 4,H/2,W/2]
        """Turn features into folded pixels; its receptive field is 13 latents, so it can run tile by tile.

        The stages after the last doubling of frames have the largest activations. They can process the frames in several
        passes of `frames_per_pass`: the layers are causal, so the result is the same with less memory.
        """
        doubling = sum(spec.resamples_time for spec in DECODER_STAGES)
        x = self.upsamples[:doubling](x, stream)
        pieces = torch.split(x, frames_per_pass, dim=2)
        return torch.cat([self._enlarge(piece, self.upsamples[doubling:], stream) for piece in pieces], dim=2)

    def _enlarge(self, x: Tensor, stages: nn.Module, stream: Stream) -> Tensor:
        x = stages(x, stream)
        norm, conv = self.head.values()
        pixels: Tensor = conv(x, stream, norm)
        return pixels


def _middle(dim: int) -> Chain:
    return Chain([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def _head(in_dim: int, out_dim: int) -> nn.ModuleDict:
    norm = RMSNorm(in_dim, spatial_dims=3)
    return nn.ModuleDict({"0": norm, "2": CausalConv3d(in_dim, out_dim, 3, padding=(0, 1, 1))})


class VideoVAE(nn.Module):
    """Encodes first frames and decodes clips. Inference only: the weights are frozen.

    Raises ValueError if `z_dim` is not that of the published latent statistics.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        if config.z_dim != len(LATENT_MEAN):
            raise ValueError(
                f"z_dim is {config.z_dim}; expected {len(LATENT_MEAN)}, the width of the published latents"
            )
        self.encoder = Encoder(config.dim, 2 * config.z_dim)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config.dec_dim, config.z_dim)
        self._kernels = EAGER_PLAN
        self.requires_grad_(False)  # a stream consumed outside inference mode would keep its autograd graph alive

    def fuse(self, kernels: KernelPlan) -> None:
        """Compute with the fused kernels and in the layout of a plan, which the model's device must have."""
        self._kernels = kernels
        if kernels.channels_last:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    layer.weight.data = operations.with_channels_last(layer.weight)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latent means of a clip, float32.

        [B, 3, T, H, W] in [-1, 1] -> [B, 48, 1+(T-1)/4, H/16, W/16]. Raises InvalidRequest unless T is 4k+1 and H and
        W are multiples of 16.
        """
        _check_video(video)
        video = video.to(self.conv1.weight.dtype)
        chunks = [1] + [TEMPORAL_STRIDE] * (video.shape[2] // TEMPORAL_STRIDE)
        stream = Stream(kernels=self._kernels)
        means = []
        for chunk in torch.split(video, chunks, dim=2):
            folded = rearrange(chunk, "b c t (h q) (w r) -> b (c r q) t h w", q=PATCH, r=PATCH)
            mean, _log_variance = torch.chunk(self.conv1(self.encoder(folded, stream)), 2, dim=1)
            means.append(mean.float())
            stream.is_first_chunk = False
        mean, std = _latent_statistics(video.device)
        return (torch.cat(means, dim=2) - mean) / std

    def decode_stream(
        self, latents: Tensor, frames_per_pass: int = TEMPORAL_STRIDE, tiling: Tiling | None = None
    ) -> Iterator[Tensor]:
        """Decode normalised latents [B, 48, F, h, w] chunk by chunk to float32 pixels in [-1, 1], or NaN (`clamp_finite_`).

        Yields [B, 3, 1, H, W], then [B, 3, 4, H, W] for every further latent frame. Fewer `frames_per_pass` (4, 2 or 1)
        need less memory for the same pixels up to rounding. A `tiling` needs even less, but slightly changes the pixels
        near its blended seams. An abandoned iterator frees its memory when it is garbage-collected.
        """
        stream, tiled = Stream(kernels=self._kernels), None
        if tiling is not None:
            tiled = _TiledDecoder(self.decoder, tiling, latents.shape[-2], latents.shape[-1], self._kernels)
        mean, std = _latent_statistics(latents.device)
        for latent in torch.split(latents, 1, dim=2):
            z = (latent.float() * std + mean).to(self.conv2.weight.dtype)
            features = self.decoder(self.conv2(z), stream)
            if tiled is None:
                pixels = self.decoder.enlarge(features, stream, frames_per_pass)
            else:
                pixels = tiled.enlarge(features, frames_per_pass)
            unfolded = rearrange(pixels, "b (c r q) t h w -> b c t (h q) (w r)", q=PATCH, r=PATCH)
            stream.is_first_chunk = False
            yield clamp_finite_(unfolded.float(), -1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip: [B, 48, F, h, w] -> [B, 3, 4(F-1)+1, H, W] in [-1, 1], float32."""
        return torch.cat(list(self.decode_stream(latents)), dim=2)


class _TiledDecoder:
    """Enlarges the features of a frame tile by tile, with one stream per tile."""

    def __init__(self, decoder: Decoder, tiling: Tiling, height: int, width: int, kernels: KernelPlan) -> None:
        self.decoder = decoder
        self.parks = tiling.parks
        self.tiles = [(rows, columns, Stream(kernels=kernels)) for rows, columns in tiling.tiles(height, width)]

    def enlarge(self, features: Tensor, frames_per_pass: int) -> Tensor:
        """The result of `Decoder.enlarge` in float32, up to differences near the seams."""
        pixels: Tensor | None = None
        *_, height, width = features.shape
        scale = SPATIAL_STRIDE // PATCH
        for rows, columns, stream in self.tiles:
            tile = self._tile(features, rows, columns, stream, frames_per_pass)
            if pixels is None:
                pixels = tile.new_zeros(*tile.shape[:3], height * scale, width * scale, dtype=torch.float32)
            seams = [_seam_weights(span, scale, tile.device) for span in (rows, columns)]
            target = pixels[..., rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
            target.addcmul_(tile.float(), seams[0].unsqueeze(1) * seams[1])
        if pixels is None:
            raise ValueError("the tiling has no tiles; expected at least one")
        return pixels

    def _tile(self, features: Tensor, rows: Span, columns: Span, stream: Stream, frames_per_pass: int) -> Tensor:
        if self.parks:
            stream.move(features.device)
        part = features[..., rows.start : rows.stop, columns.start : columns.stop]
        tile = self.decoder.enlarge(part, stream, frames_per_pass)
        stream.is_first_chunk = False
        if self.parks:
            stream.move(torch.device("cpu"))
        return tile


def _seam_weights(span: Span, scale: int, device: torch.device) -> Tensor:
    """Blending weight of each pixel of a tile, [(stop - start) * scale]; overlapping weights sum to one."""
    weights = torch.ones((span.stop - span.start) * scale, device=device)
    if span.before:
        weights[: span.before * scale] = _ramp(span.before * scale, device)
    if span.after:
        weights[-span.after * scale :] = _ramp(span.after * scale, device).flip(0)
    return weights


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weights from 0 to 1 over the middle half; the outermost quarter, which lacks its neighbourhood, has weight 0."""
    position = (torch.arange(length, device=device) + 0.5) / length
    return (2 * position - 0.5).clamp(0, 1)


def _latent_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([LATENT_MEAN, LATENT_STD], device=device).view(2, -1, 1, 1, 1)
    return mean, std


def _check_video(video: Tensor) -> None:
    *_, frames, height, width = video.shape
    if frames % TEMPORAL_STRIDE != 1 or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise InvalidRequest(
            f"the video has {frames} frames of {height}x{width}; expected 4k+1 frames, each side a multiple of 16"
        )
