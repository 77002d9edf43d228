from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from ovi.config import Architecture, VideoVAEConfig
from ovi.errors import InvalidRequest
from ovi.models.video_vae import CausalConv3d, Stream, VideoVAE


@pytest.fixture(scope="module")
def published(tiny_dir: Path) -> dict[str, Tensor]:
    return torch.load(tiny_dir / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth", weights_only=True)


@pytest.fixture(scope="module")
def config(tiny_dir: Path) -> VideoVAEConfig:
    return Architecture.read(tiny_dir).video_vae


@pytest.fixture(scope="module")
def vae(config: VideoVAEConfig, published: dict[str, Tensor]) -> VideoVAE:
    return make_vae(config, published)


def make_vae(config: VideoVAEConfig, state: dict[str, Tensor]) -> VideoVAE:
    with torch.device("meta"):
        vae = VideoVAE(config)
    vae.load_state_dict(state, assign=True)
    return vae.eval()


def root_mean_square_error(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual - expected).square().mean().sqrt() / expected.std()


@pytest.mark.parametrize(("pixels", "latents"), [("vae.image", "vae.image_latent"), ("vae.video", "vae.video_latent")])
@torch.inference_mode()
def test_encodes_as_the_published_model(vae, golden, assert_close_to_std, pixels, latents):
    assert_close_to_std(vae.encode(golden[pixels]), golden[latents])


@pytest.mark.parametrize(("latents", "pixels"), [("vae.z", "vae.z_decoded"), ("vae.z1", "vae.z1_decoded")])
@torch.inference_mode()
def test_decodes_as_the_published_model(vae, golden, assert_close_to_std, latents, pixels):
    assert_close_to_std(vae.decode(golden[latents]), golden[pixels])


@pytest.mark.parametrize("frames_per_pass", [1, 2])
@torch.inference_mode()
def test_decodes_equally_in_several_passes(vae, golden, assert_close_to_std, frames_per_pass):
    chunks = list(vae.decode_stream(golden["vae.z"], frames_per_pass))
    assert_close_to_std(torch.cat(chunks, dim=2), golden["vae.z_decoded"])


@torch.inference_mode()
def test_a_stream_yields_one_frame_then_four_at_a_time_and_equals_the_whole_decode(vae, golden):
    chunks = list(vae.decode_stream(golden["vae.z"]))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(golden["vae.z"]))


@torch.inference_mode()
def test_interleaved_streams_do_not_mix(vae, golden):
    first, second = golden["vae.z"], golden["vae.z"].flip(2)
    pairs = list(zip(vae.decode_stream(first), vae.decode_stream(second), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), vae.decode(first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), vae.decode(second))


@torch.inference_mode()
def test_an_abandoned_stream_does_not_affect_the_next(vae, golden):
    expected = vae.decode(golden["vae.z"])
    next(vae.decode_stream(golden["vae.z"].neg()))
    assert torch.equal(vae.decode(golden["vae.z"]), expected)


@torch.inference_mode()
def test_a_clip_decodes_equally_alone_and_in_a_batch(vae, golden, assert_close_to_std):
    batch = torch.cat([golden["vae.z"], golden["vae.z"].neg()])
    assert_close_to_std(vae.decode(batch)[:1], golden["vae.z_decoded"])


def stream_in(arguments):
    return {id(argument): argument for argument in arguments if isinstance(argument, Stream)}


@torch.inference_mode()
def test_a_convolution_keeps_only_two_frames():
    conv = CausalConv3d(3, 4, 3, padding=(0, 1, 1))
    stream = Stream()
    for frames in (1, 4, 4):
        chunk = torch.randn(1, 3, frames, 8, 8)
        assert conv(chunk, stream).shape == (1, 4, frames, 8, 8)
        tail = stream.tails[conv]
        assert tail.shape[2] == 2
        assert tail.untyped_storage().nbytes() == tail.numel() * tail.element_size()
    assert torch.equal(stream.tails[conv], chunk[:, :, -2:])


@torch.inference_mode()
def test_the_state_of_a_stream_does_not_grow(vae, golden):
    streams = {}
    with register_module_forward_pre_hook(lambda _, arguments: streams.update(stream_in(arguments))):
        sizes = [
            sum(tail.untyped_storage().nbytes() for stream in streams.values() for tail in stream.tails.values())
            for _ in vae.decode_stream(golden["vae.z"].repeat(1, 1, 2, 1, 1))
        ]
    assert len(streams) == 1
    assert len(sizes) == 8
    assert sizes[0] > 0
    assert len(set(sizes[1:])) == 1


def test_a_stream_outside_inference_mode_keeps_no_autograd_graph(vae, golden):
    assert not any(chunk.requires_grad for chunk in vae.decode_stream(golden["vae.z"][:, :, :2]))


@torch.inference_mode()
def test_bf16_is_close_to_float32(config, published, golden):
    # bf16 rounds to 2^-9; some hundred roundings on the longest path add up like a random walk to 2%.
    vae = make_vae(config, published).to(torch.bfloat16)
    for latents, pixels in (("vae.z", "vae.z_decoded"), ("vae.z1", "vae.z1_decoded")):
        decoded = vae.decode(golden[latents])
        assert decoded.dtype == torch.float32
        assert decoded.abs().max() <= 1
        assert root_mean_square_error(decoded, golden[pixels]) < 0.03
    assert root_mean_square_error(vae.encode(golden["vae.video"]), golden["vae.video_latent"]) < 0.03


@pytest.mark.parametrize("shape", [(1, 3, 2, 32, 32), (1, 3, 1, 40, 32), (1, 3, 5, 32, 24), (1, 3, 0, 32, 32)])
def test_a_video_of_unsupported_size_is_refused(vae, shape):
    with pytest.raises(InvalidRequest, match="4k\\+1 frames"):
        vae.encode(torch.zeros(shape))


def test_missing_and_extra_tensors_are_named(config, published):
    with torch.device("meta"):
        vae = VideoVAE(config)
    state = dict(published)
    state["decoder.head.9.weight"] = state.pop("decoder.head.2.weight")
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing.*decoder\.head\.2\.weight.*Unexpected.*decoder\.head\.9\.weight"
    ):
        vae.load_state_dict(state, assign=True)


def test_latents_of_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="z_dim is 16; expected 48"):
        VideoVAE(VideoVAEConfig(z_dim=16, dim=4, dec_dim=4))


def test_the_published_size():
    with torch.device("meta"):
        vae = VideoVAE(VideoVAEConfig())
    assert sum(p.numel() for p in vae.parameters()) == 704_688_668
