"""Rotary position embedding (arXiv 2104.09864) on interleaved channel pairs, over a 3-D grid or over time.

Shapes: L tokens, H heads, D head width, P rotated pairs (P <= D/2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

THETA = 10_000.0


@dataclass(kw_only=True, slots=True, frozen=True)
class Rotation:
    """Rotation angles of every token, as cosines and sines [L, 1, P] in float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def from_angles(cls, angles: Tensor, device: torch.device) -> "Rotation":
        """The rotation by angles [L, P] in float64; cosine and sine are computed before rounding to float32."""
        return cls(
            cos=angles.cos().float().unsqueeze(1).to(device),
            sin=angles.sin().float().unsqueeze(1).to(device),
        )


def video_rotation(frames: int, height: int, width: int, *, head_dim: int, device: torch.device) -> Rotation:
    """Rotation of video tokens in (frame, row, column) order.

    Of the D head channels, D - 4*(D//6) encode the frame, 2*(D//6) the row and 2*(D//6) the column.
    """
    temporal, spatial = _split_head(head_dim)
    f = _angles(frames, temporal)[:, None, None, :].expand(frames, height, width, -1)
    h = _angles(height, spatial)[None, :, None, :].expand(frames, height, width, -1)
    w = _angles(width, spatial)[None, None, :, :].expand(frames, height, width, -1)
    return Rotation.from_angles(torch.cat([f, h, w], dim=-1).flatten(0, 2), device)


def audio_rotation(length: int, *, head_dim: int, scale: float, device: torch.device) -> Rotation:
    """Rotation of audio tokens by `scale` positions per token; only the channels that encode the frame are rotated."""
    temporal, _ = _split_head(head_dim)
    return Rotation.from_angles(_angles(length, temporal) * scale, device)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first P channel pairs of x [B, L, H, D]; computed in float32, returned in x's dtype."""
    pairs = 2 * rotation.cos.shape[-1]
    even, odd = x[..., :pairs].float().unflatten(-1, (-1, 2)).unbind(-1)  # B L H P
    rotated = torch.stack(
        [even * rotation.cos - odd * rotation.sin, even * rotation.sin + odd * rotation.cos], dim=-1
    ).flatten(-2)
    return torch.cat([rotated.to(x.dtype), x[..., pairs:]], dim=-1)


def _split_head(head_dim: int) -> tuple[int, int]:
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial


def _angles(length: int, dim: int) -> Tensor:
    frequencies = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    return torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequencies)  # L dim/2
