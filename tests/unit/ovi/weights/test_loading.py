"""Checkpoint folders: strict checks, complete errors, and no pickle that is ever executed."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.config import MODEL_SPECS, Component
from ovi.errors import CheckpointMismatch, CheckpointNotFound
from ovi.weights.digest import fingerprint
from ovi.weights.layout import TOKENIZER, component_file
from ovi.weights.loading import check_model, load_component
from ovi.weights.tokenizer import load_tokenizer

MODEL = "720x720_5s"
CPU = torch.device("cpu")
FILES = {component: component_file(component, MODEL_SPECS[MODEL]) for component in Component}


@pytest.fixture
def ckpts(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "ckpts")


def load(ckpts, component, dtype=torch.float32):
    return load_component(ckpts, component, MODEL, CPU, dtype)


def errors(ckpts, model=MODEL):
    """The errors of a folder by file."""
    return {status.path: status.error for status in check_model(ckpts, model) if status.error}


def test_a_complete_folder_has_no_errors(tiny_dir):
    assert errors(tiny_dir) == errors(tiny_dir, "960x960_5s") == {}


def test_a_missing_model_is_reported_with_the_command_that_downloads_it(tiny_dir):
    ((path, error),) = errors(tiny_dir, "960x960_10s").items()
    assert path == "Ovi/model_960x960_10s.safetensors"
    assert error.path == str(tiny_dir / path)
    assert isinstance(error, CheckpointNotFound)
    assert "ovi-ray weights download --model-name 960x960_10s" in error.expected


@pytest.mark.parametrize("component", list(Component))
def test_a_missing_file_is_reported_by_check_and_by_load(ckpts, component):
    (ckpts / FILES[component]).unlink()
    (status,) = [status for status in check_model(ckpts, MODEL) if status.error]
    assert (status.path, status.missing) == (FILES[component], True)
    with pytest.raises(CheckpointNotFound) as raised:
        load(ckpts, component)
    assert raised.value.path == str(ckpts / FILES[component])
    assert "ovi-ray weights download" in raised.value.expected


@pytest.mark.parametrize("component", list(Component))
def test_a_truncated_file_is_reported_by_check_and_by_load(ckpts, component):
    path = ckpts / FILES[component]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_unreadable(errors(ckpts)[FILES[component]], path)
    with pytest.raises(CheckpointMismatch) as raised:
        load(ckpts, component)
    assert_unreadable(raised.value, path)


def assert_unreadable(error, path):
    assert isinstance(error, CheckpointMismatch)
    assert error.path == str(path)
    assert (error.missing, error.extra, error.misshapen) == ((), (), ())
    assert f"{path.stat().st_size:,} bytes" in error.found


def test_missing_extra_and_misshapen_tensors_are_reported_together(ckpts):
    path = ckpts / FILES[Component.TRANSFORMER]
    tensors = load_file(path)
    del tensors["video_model.head.head.bias"]
    tensors["video_model.blocks.0.norm3.bias"] = torch.zeros(3)
    tensors["lora.weight"] = torch.zeros(2)
    save_file(tensors, path)
    with pytest.raises(CheckpointMismatch) as raised:
        load(ckpts, Component.TRANSFORMER)
    for error in (errors(ckpts)[FILES[Component.TRANSFORMER]], raised.value):
        assert error.missing == ("video_model.head.head.bias",)
        assert error.extra == ("lora.weight",)
        assert error.misshapen == ("video_model.blocks.0.norm3.bias",)
        assert "video_model.blocks.0.norm3.bias [3] (expected [40])" in error.found


@pytest.mark.parametrize("component", [Component.TEXT_ENCODER, Component.VIDEO_VAE, Component.AUDIO_VAE])
def test_wrong_tensors_in_a_pth_file_are_reported(ckpts, component):
    path = ckpts / FILES[component]
    tensors = torch.load(path, weights_only=True)
    removed = next(iter(tensors))
    torch.save({key: value for key, value in tensors.items() if key != removed} | {"surplus": torch.zeros(1)}, path)
    error = errors(ckpts)[FILES[component]]
    assert len(error.missing) == (2 if component is Component.TEXT_ENCODER else 1)  # the embedding has a second name
    assert [name for name in error.extra if name.endswith("surplus")] == list(error.extra)
    assert len(error.extra) == 1


def test_a_vocoder_with_half_of_a_weight_norm_is_reported_with_its_file(ckpts):
    path = ckpts / FILES[Component.VOCODER]
    generator = torch.load(path, weights_only=True)["generator"]
    del generator["conv_pre.weight_g"]
    torch.save({"generator": generator}, path)
    error = errors(ckpts)[FILES[Component.VOCODER]]
    assert error.path == str(path)
    assert "conv_pre.weight_g" in error.found


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_a_pickle_is_never_executed(ckpts):
    path = ckpts / FILES[Component.VIDEO_VAE]
    path.write_bytes(pickle.dumps({"encoder": Malicious()}))
    assert_unreadable(errors(ckpts)[FILES[Component.VIDEO_VAE]], path)
    torch.save({"encoder": Malicious()}, path)
    assert_unreadable(errors(ckpts)[FILES[Component.VIDEO_VAE]], path)


def test_files_in_the_format_before_torch_1_6_can_be_loaded(ckpts):
    path = ckpts / FILES[Component.VIDEO_VAE]
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert errors(ckpts) == {}
    assert load(ckpts, Component.VIDEO_VAE).decoder is not None


def test_weights_are_cast_to_the_dtype_except_in_the_audio_components(tiny_dir):
    dtypes = {component: load(tiny_dir, component, torch.bfloat16).state_dict() for component in Component}
    floating = {
        component: {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        for component, tensors in dtypes.items()
    }
    for component in (Component.TEXT_ENCODER, Component.TRANSFORMER, Component.VIDEO_VAE):
        assert floating[component] == {torch.bfloat16}
    for component in (Component.AUDIO_VAE, Component.VOCODER):
        assert floating[component] == {torch.float32}


def test_a_broken_tokenizer_is_reported(ckpts):
    (ckpts / TOKENIZER).write_text("{}", encoding="utf-8")
    assert isinstance(errors(ckpts)[TOKENIZER], CheckpointMismatch)
    with pytest.raises(CheckpointMismatch) as raised:
        load_tokenizer(ckpts, MODEL)
    assert raised.value.path == str(ckpts / TOKENIZER)


def test_the_fingerprint_does_not_depend_on_the_folder(tiny_dir, ckpts):
    assert fingerprint(tiny_dir, MODEL) == fingerprint(ckpts, MODEL)


def test_one_changed_bit_changes_the_fingerprint(tiny_dir, ckpts):
    path = ckpts / FILES[Component.TRANSFORMER]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(tiny_dir, MODEL) != fingerprint(ckpts, MODEL)
    assert fingerprint(tiny_dir, "960x960_5s") == fingerprint(ckpts, "960x960_5s")
