"""Checkpoint folders: strict, told in full, and never unpickled."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.config import MODEL_SPECS, Component
from ovi.errors import CheckpointMismatch, CheckpointNotFound
from ovi.weights.layout import TOKENIZER, component_file
from ovi.weights.loading import check_model, fingerprint, load_component, load_tokenizer

MODEL = "720x720_5s"
CPU = torch.device("cpu")
FILES = {component: component_file(component, MODEL_SPECS[MODEL]) for component in Component}


@pytest.fixture
def ckpts(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "ckpts")


def load(ckpts, component, dtype=torch.float32):
    return load_component(ckpts, component, MODEL, CPU, dtype)


def problems(ckpts, model=MODEL):
    return [str(status.error) for status in check_model(ckpts, model) if status.error]


def test_a_sound_folder_has_no_problems(tiny_dir):
    assert problems(tiny_dir) == []
    assert problems(tiny_dir, "960x960_5s") == []


def test_a_missing_model_is_named_with_how_to_get_it(tiny_dir):
    (found,) = problems(tiny_dir, "960x960_10s")
    assert "Ovi/model_960x960_10s.safetensors: no such file" in found
    assert "ovi-ray weights download --model-name 960x960_10s" in found


@pytest.mark.parametrize("component", list(Component))
def test_a_missing_file_is_named_at_check_and_at_load(ckpts, component):
    (ckpts / FILES[component]).unlink()
    assert FILES[component] in problems(ckpts)[0]
    with pytest.raises(CheckpointNotFound, match="ovi-ray weights download"):
        load(ckpts, component)


@pytest.mark.parametrize("component", list(Component))
def test_a_truncated_file_is_named_at_check_and_at_load(ckpts, component):
    path = ckpts / FILES[component]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (found,) = problems(ckpts)
    assert str(path) in found
    assert "truncated or not a checkpoint" in found
    with pytest.raises(CheckpointMismatch, match="truncated or not a checkpoint"):
        load(ckpts, component)


def test_missing_extra_and_misshapen_tensors_are_told_at_once(ckpts):
    path = ckpts / FILES[Component.TRANSFORMER]
    tensors = load_file(path)
    del tensors["video_model.head.head.bias"]
    tensors["video_model.blocks.0.norm3.bias"] = torch.zeros(3)
    tensors["lora.weight"] = torch.zeros(2)
    save_file(tensors, path)
    with pytest.raises(CheckpointMismatch) as caught:
        load(ckpts, Component.TRANSFORMER)
    for message in (problems(ckpts)[0], str(caught.value)):
        assert "1 tensors missing: video_model.head.head.bias" in message
        assert "1 tensors extra: lora.weight" in message
        assert "1 tensors misshapen: video_model.blocks.0.norm3.bias [3] (expected [40])" in message


@pytest.mark.parametrize("component", [Component.TEXT_ENCODER, Component.VIDEO_VAE, Component.AUDIO_VAE])
def test_other_tensors_in_a_pth_file_are_told(ckpts, component):
    path = ckpts / FILES[component]
    tensors = torch.load(path, weights_only=True)
    gone = next(iter(tensors))
    torch.save({key: value for key, value in tensors.items() if key != gone} | {"surplus": torch.zeros(1)}, path)
    (found,) = problems(ckpts)
    assert "1 tensors missing" in found or "2 tensors missing" in found  # the text embedding is tied to a second name
    assert "surplus" in found


def test_a_vocoder_with_half_of_a_weight_norm_is_told_with_its_file(ckpts):
    path = ckpts / FILES[Component.VOCODER]
    generator = torch.load(path, weights_only=True)["generator"]
    del generator["conv_pre.weight_g"]
    torch.save({"generator": generator}, path)
    (found,) = problems(ckpts)
    assert str(path) in found
    assert "conv_pre.weight_g" in found


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_a_pickle_is_never_run(ckpts):
    (ckpts / FILES[Component.VIDEO_VAE]).write_bytes(pickle.dumps({"encoder": Malicious()}))
    assert "truncated or not a checkpoint" in problems(ckpts)[0]
    torch.save({"encoder": Malicious()}, ckpts / FILES[Component.VIDEO_VAE])
    assert "truncated or not a checkpoint" in problems(ckpts)[0]


def test_the_format_before_torch_1_6_loads_too(ckpts):
    path = ckpts / FILES[Component.VIDEO_VAE]
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert problems(ckpts) == []
    assert load(ckpts, Component.VIDEO_VAE).decoder is not None


def test_weights_come_in_the_wanted_dtype_but_sound_stays_float32(tiny_dir):
    dtypes = {component: load(tiny_dir, component, torch.bfloat16).state_dict() for component in Component}
    floating = {
        component: {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        for component, tensors in dtypes.items()
    }
    for component in (Component.TEXT_ENCODER, Component.TRANSFORMER, Component.VIDEO_VAE):
        assert floating[component] == {torch.bfloat16}
    for component in (Component.AUDIO_VAE, Component.VOCODER):
        assert floating[component] == {torch.float32}


def test_a_broken_tokenizer_is_named(ckpts):
    (ckpts / TOKENIZER).write_text("{}", encoding="utf-8")
    assert "tokenizer.json: not a tokenizer" in problems(ckpts)[0]
    with pytest.raises(CheckpointMismatch):
        load_tokenizer(ckpts, MODEL)


def test_equal_weights_have_equal_fingerprints_wherever_they_lie(tiny_dir, ckpts):
    assert fingerprint(tiny_dir, MODEL) == fingerprint(ckpts, MODEL)


def test_one_changed_bit_changes_the_fingerprint(tiny_dir, ckpts):
    path = ckpts / FILES[Component.TRANSFORMER]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(tiny_dir, MODEL) != fingerprint(ckpts, MODEL)
    assert fingerprint(tiny_dir, "960x960_5s") == fingerprint(ckpts, "960x960_5s")
