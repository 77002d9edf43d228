from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ovi.config import Architecture, VocoderConfig
from ovi.errors import CheckpointMismatch
from ovi.models.vocoder import Vocoder, convert_state_dict, low_pass_filter


@pytest.fixture(scope="module")
def published(tiny_dir: Path) -> dict[str, Any]:
    return torch.load(tiny_dir / "MMAudio" / "ext_weights" / "best_netG.pt", weights_only=True)


@pytest.fixture(scope="module")
def config(tiny_dir: Path) -> VocoderConfig:
    return Architecture.read(tiny_dir).vocoder


@pytest.fixture(scope="module")
def vocoder(config: VocoderConfig, published: dict[str, Any]) -> Vocoder:
    return make_vocoder(config, convert_state_dict(published))


def make_vocoder(config: VocoderConfig, state: dict[str, Tensor]) -> Vocoder:
    with torch.device("meta"):
        vocoder = Vocoder(config)
    vocoder.load_state_dict(state, assign=True)
    return vocoder.eval()


@torch.inference_mode()
def test_the_waveform_equals_the_published_one(vocoder, golden, assert_close_to_std):
    assert_close_to_std(vocoder(golden["audio.mel"]), golden["audio.wave"])


@torch.inference_mode()
def test_bf16_is_close_to_float32(config, published, golden):
    # Some sixty convolutions deep, each with a few roundings of 2^-9, which add up like a random walk.
    wave = make_vocoder(config, convert_state_dict(published)).to(torch.bfloat16)(golden["audio.mel"])
    assert wave.dtype == torch.float32
    assert (wave - golden["audio.wave"]).square().mean().sqrt() / golden["audio.wave"].std() < 0.05


def test_both_forms_of_weight_norm_fold_to_the_same_weights(published):
    forms = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {}
    for key, value in published["generator"].items():
        layer, _, leaf = key.rpartition(".")
        renamed[f"{layer}.{forms.get(leaf, leaf)}"] = value
    assert renamed.keys() != published["generator"].keys()
    folded, expected = convert_state_dict(renamed), convert_state_dict(published)
    assert folded.keys() == expected.keys()
    assert all(torch.equal(folded[key], expected[key]) for key in expected)


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 5, 7), nn.ConvTranspose1d(3, 5, 4)])
def test_folds_as_torch_does(layer):
    layer = weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    folded = convert_state_dict(layer.state_dict())
    torch.testing.assert_close(folded["weight"], layer.weight.detach())


def test_a_folded_checkpoint_passes_through(published):
    folded = convert_state_dict(published)
    again = convert_state_dict(folded)
    assert again.keys() == folded.keys()
    assert all(again[key] is folded[key] for key in folded)


def test_a_direction_without_its_magnitude_is_named(published):
    state = {key: value for key, value in published["generator"].items() if key != "conv_pre.weight_g"}
    with pytest.raises(CheckpointMismatch, match=r"conv_pre\.weight_v but not conv_pre\.weight_g"):
        convert_state_dict(state)


def test_missing_tensors_are_named(config, published):
    state = convert_state_dict(published)
    del state["activation_post.downsample.lowpass.filter"]
    with pytest.raises(RuntimeError, match=r"Missing.*activation_post\.downsample\.lowpass\.filter"):
        make_vocoder(config, state)


def test_the_filter_is_the_published_one(published):
    torch.testing.assert_close(low_pass_filter(), published["generator"]["activation_post.upsample.filter"])


def test_the_published_size():
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig())
    magnitudes = sum(
        layer.weight.shape[0] for layer in vocoder.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    )
    assert sum(p.numel() for p in vocoder.parameters()) + magnitudes == 112_231_250
