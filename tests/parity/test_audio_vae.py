from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovi.config import Architecture, AudioVAEConfig
from ovi.errors import InvalidRequest
from ovi.models.audio_vae import AudioVAE, convert_state_dict


@pytest.fixture(scope="module")
def published(tiny_dir: Path) -> dict[str, Tensor]:
    return torch.load(tiny_dir / "MMAudio" / "ext_weights" / "v1-16.pth", weights_only=True)


@pytest.fixture(scope="module")
def config(tiny_dir: Path) -> AudioVAEConfig:
    return Architecture.read(tiny_dir).audio_vae


@pytest.fixture(scope="module")
def vae(config: AudioVAEConfig, published: dict[str, Tensor]) -> AudioVAE:
    return make_vae(config, published)


def make_vae(config: AudioVAEConfig, published: dict[str, Tensor]) -> AudioVAE:
    with torch.device("meta"):
        vae = AudioVAE(config)
    vae.load_state_dict(convert_state_dict(published), assign=True)
    return vae.eval()


@torch.inference_mode()
def test_decodes_as_the_published_model(vae, golden, assert_close_to_std):
    assert_close_to_std(vae.decode(golden["audio.z"]), golden["audio.mel"])


@torch.inference_mode()
def test_encodes_as_the_published_model(vae, golden, assert_close_to_std):
    assert_close_to_std(vae.encode(golden["audio.mel_in"]), golden["audio.mel_in_latent_mean"])


@torch.inference_mode()
def test_a_clip_decodes_equally_alone_and_in_a_batch(vae, golden, assert_close_to_std):
    batch = torch.cat([golden["audio.z"], golden["audio.z"].neg()])
    assert_close_to_std(vae.decode(batch)[:1], golden["audio.mel"])


@torch.inference_mode()
def test_bf16_is_close_to_float32(config, published, golden):
    # About forty layers, each with a few roundings of 2^-9, which add up like a random walk.
    mel = make_vae(config, published).to(torch.bfloat16).decode(golden["audio.z"])
    assert mel.dtype == torch.float32
    assert (mel - golden["audio.mel"]).square().mean().sqrt() / golden["audio.mel"].std() < 0.03


def test_conversion_normalises_every_output_channel(published):
    for key, value in convert_state_dict(published).items():
        if key.endswith(".weight"):
            norms = torch.linalg.vector_norm(value, dim=(1, 2))
            torch.testing.assert_close(norms, torch.ones_like(norms), atol=0.02, rtol=0)
        else:
            assert torch.equal(value, published[key])


def test_an_odd_spectrogram_is_refused(vae):
    with pytest.raises(InvalidRequest, match="33 frames; expected an even number"):
        vae.encode(torch.zeros(1, 80, 33))


def test_missing_tensors_are_named(config, published):
    with torch.device("meta"):
        vae = AudioVAE(config)
    state = {key: value for key, value in published.items() if key != "data_mean"}
    with pytest.raises(RuntimeError, match=r"Missing.*data_mean"):
        vae.load_state_dict(convert_state_dict(state), assign=True)


def test_the_published_size():
    with torch.device("meta"):
        vae = AudioVAE(AudioVAEConfig())
    assert sum(p.numel() for p in vae.decoder.parameters()) == 99_127_297
