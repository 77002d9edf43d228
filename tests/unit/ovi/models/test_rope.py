"""The rotation of channel pairs, against a direct computation with cosines and sines."""

import pytest
import torch

from ovi.kernels.reference import rotate
from ovi.models.rope import audio_rotation, video_rotation

CPU = torch.device("cpu")


def rotated_pair_by_pair(x, rotation, turned):
    """The rotation in real numbers of the first `turned` channels of x; the others are not touched."""
    cos, sin = rotation[..., : turned // 2, 0], rotation[..., : turned // 2, 1]
    even, odd = x[..., :turned:2].float(), x[..., 1:turned:2].float()
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([pairs.to(x.dtype), x[..., turned:]], dim=-1)


@pytest.fixture(
    params=[
        (video_rotation(31, 6, 5, head_dim=128, device=CPU), 128),
        (video_rotation(3, 2, 3, head_dim=16, device=CPU), 16),
        (audio_rotation(157, head_dim=128, scale=0.19676, device=CPU), 44),
        (audio_rotation(13, head_dim=16, scale=0.19676, device=CPU), 8),
    ],
    ids=["video", "narrow video", "audio", "narrow audio"],
)
def rotation_and_turned(request):
    return request.param


@pytest.mark.parametrize("heads", [1, 3, 24])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rotation_in_half_precision_has_the_bits_of_the_direct_computation(rotation_and_turned, heads, dtype):
    rotation, turned = rotation_and_turned
    x = (4 * torch.randn(1, rotation.shape[0], heads, 2 * rotation.shape[2])).to(dtype)
    assert torch.equal(rotate(x, rotation), rotated_pair_by_pair(x, rotation, turned))


def test_a_rotation_in_float32_differs_from_the_direct_computation_by_its_rounding(rotation_and_turned):
    rotation, turned = rotation_and_turned
    x = torch.randn(1, rotation.shape[0], 3, 2 * rotation.shape[2])
    torch.testing.assert_close(rotate(x, rotation), rotated_pair_by_pair(x, rotation, turned), rtol=0, atol=1e-6)


def test_a_rotation_keeps_the_length_of_every_pair(rotation_and_turned):
    rotation, _ = rotation_and_turned
    x = torch.randn(1, rotation.shape[0], 2, 2 * rotation.shape[2])
    before, after = (y.unflatten(-1, (-1, 2)).norm(dim=-1) for y in (x, rotate(x, rotation)))
    torch.testing.assert_close(before, after)


def test_a_rotation_reads_queries_that_are_not_contiguous(rotation_and_turned):
    rotation, turned = rotation_and_turned
    x = torch.randn(1, 2, rotation.shape[0], 2 * rotation.shape[2]).transpose(1, 2)
    torch.testing.assert_close(rotate(x, rotation), rotated_pair_by_pair(x, rotation, turned), rtol=0, atol=1e-6)
