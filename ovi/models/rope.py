"""Rotary position embedding (arXiv 2104.09864) on interleaved channel pairs, over a 3-D grid or over time.

A rotation is a tensor [L, 1, D/2, 2] in float32: the cosine and the sine of every token's angle for every channel pair. It
is a complex number in all but dtype, because a compiler can read it in both forms. Pairs that encode no position turn by 0.
`ovi.kernels` turns queries and keys by it.

Shapes: L tokens, H heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

THETA = 10_000.0


def video_rotation(frames: int, height: int, width: int, *, head_dim: int, device: torch.device) -> Tensor:
    """Rotation of video tokens in (frame, row, column) order.

    Of the D head channels, D - 4*(D//6) encode the frame, 2*(D//6) the row and 2*(D//6) the column.
    """
    temporal, spatial = _split_head(head_dim)
    f = _angles(frames, temporal)[:, None, None, :].expand(frames, height, width, -1)
    h = _angles(height, spatial)[None, :, None, :].expand(frames, height, width, -1)
    w = _angles(width, spatial)[None, None, :, :].expand(frames, height, width, -1)
    return _rotation(torch.cat([f, h, w], dim=-1).flatten(0, 2), device)


def audio_rotation(length: int, *, head_dim: int, scale: float, device: torch.device) -> Tensor:
    """Rotation of audio tokens by `scale` positions per token; only the channels that encode the frame are turned."""
    temporal, _ = _split_head(head_dim)
    angles = _angles(length, temporal) * scale
    return _rotation(F.pad(angles, (0, (head_dim - temporal) // 2)), device)


def _rotation(angles: Tensor, device: torch.device) -> Tensor:
    """The rotation by angles [L, D/2] in float64; cosine and sine are computed before rounding to float32."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float().unsqueeze(1).to(device)


def _split_head(head_dim: int) -> tuple[int, int]:
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial


def _angles(length: int, dim: int) -> Tensor:
    frequencies = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    return torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequencies)  # L dim/2
