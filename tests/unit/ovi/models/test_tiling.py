"""Tiled decodes: the layout of the tiles, and the difference from a decode of the whole frame."""

from itertools import pairwise

import pytest
import torch

from ovi.config import VideoVAEConfig
from ovi.models.tiling import Span, Tiling, spans
from ovi.models.video_vae import VideoVAE


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VideoVAE(VideoVAEConfig(dim=4, dec_dim=4)).eval()


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 48, 2, 20, 12, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def decode(vae, latents, tiling=None, frames_per_pass=4):
    return torch.cat(list(vae.decode_stream(latents, frames_per_pass, tiling)), dim=2)


@pytest.mark.parametrize("length", [4, 20, 44, 60, 61])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("overlap", [0, 2, 8])
def test_tiles_cover_a_frame_and_overlap_as_declared(length, count, overlap):
    tiles = spans(length, count, overlap)
    assert (tiles[0].start, tiles[-1].stop) == (0, length)
    assert len({tile.stop - tile.start for tile in tiles}) == 1
    for left, right in pairwise(tiles):
        assert left.stop - right.start == left.after == right.before >= overlap


def test_a_small_frame_gets_fewer_tiles():
    assert spans(10, 4, 8) == [Span(0, 10, 0, 0)]


def test_a_tiled_decode_is_close_to_the_whole_one(vae, latents):
    whole = decode(vae, latents)
    error = (decode(vae, latents, Tiling(rows=2, columns=2, overlap=4)) - whole).square().mean().sqrt()
    seamless = (decode(vae, latents, Tiling(rows=2, columns=2, overlap=0)) - whole).square().mean().sqrt()
    assert error < 0.08 * whole.std()  # random weights do not smooth the seams
    assert error < 0.5 * seamless  # the blending makes the difference


def test_far_from_a_seam_a_tiled_decode_equals_the_whole_one(vae):
    latents = torch.randn(1, 48, 2, 4, 40, generator=torch.Generator().manual_seed(1))
    tiled = decode(vae, latents, Tiling(rows=1, columns=2, overlap=4))
    whole = decode(vae, latents)
    torch.testing.assert_close(
        tiled[..., :64], whole[..., :64], rtol=0, atol=1e-5
    )  # the first 4 of the 18 latents before the seam


@pytest.mark.parametrize("frames_per_pass", [4, 1])
def test_parked_tiles_and_fewer_frames_per_pass_change_nothing(vae, latents, frames_per_pass):
    tiled = decode(vae, latents, Tiling(rows=2, columns=1, overlap=4))
    parked = decode(vae, latents, Tiling(rows=2, columns=1, overlap=4, parks=True), frames_per_pass)
    torch.testing.assert_close(parked, tiled, rtol=0, atol=1e-5)


def test_one_tile_equals_the_whole_decode(vae, latents):
    torch.testing.assert_close(decode(vae, latents, Tiling(rows=1, columns=1)), decode(vae, latents), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"overlap": -1}])
def test_an_invalid_tiling_is_refused(wrong):
    with pytest.raises(ValueError, match="expected at least one row"):
        Tiling(**{"rows": 2, "columns": 2, **wrong})
