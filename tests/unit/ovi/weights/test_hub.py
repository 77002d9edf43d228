"""Download of weights, with a fake hub."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ovi.errors import CheckpointError, InvalidRequest
from ovi.weights.formats import WeightFormat
from ovi.weights.hub import download_model, published_files
from ovi.weights.loading import check_model

FOLDERS = {"chetwinlow1/Ovi": "Ovi", "Wan-AI/Wan2.2-TI2V-5B": "Wan2.2-TI2V-5B", "hkchengrex/MMAudio": "MMAudio"}


class FakeHub:
    """Serves a checkpoint folder as the three published repositories."""

    def __init__(self, ckpt_dir, unreachable_after=100):
        self.ckpt_dir = ckpt_dir
        self.left = unreachable_after
        self.fetched = []

    def __call__(self, repo_id, filename, *, local_dir):
        if self.left == 0:
            raise LocalEntryNotFoundError("no connection")
        self.left -= 1
        self.fetched.append((repo_id, filename))
        target = Path(local_dir) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.ckpt_dir / FOLDERS[repo_id] / filename, target)
        return str(target)


def test_only_the_files_of_the_model_are_downloaded_and_they_pass_the_check(tiny_dir, tmp_path):
    hub = FakeHub(tiny_dir)
    download_model("960x960_5s", tmp_path, fetch=hub)
    shutil.copy(tiny_dir / "architecture.json", tmp_path)
    assert hub.fetched == [
        ("Wan-AI/Wan2.2-TI2V-5B", "models_t5_umt5-xxl-enc-bf16.pth"),
        ("chetwinlow1/Ovi", "model_960x960.safetensors"),
        ("Wan-AI/Wan2.2-TI2V-5B", "Wan2.2_VAE.pth"),
        ("hkchengrex/MMAudio", "ext_weights/v1-16.pth"),
        ("hkchengrex/MMAudio", "ext_weights/best_netG.pt"),
        ("Wan-AI/Wan2.2-TI2V-5B", "google/umt5-xxl/tokenizer.json"),
    ]
    assert not [status for status in check_model(tmp_path, "960x960_5s") if status.error]


def test_existing_files_are_not_downloaded_again(tiny_dir, tmp_path):
    download_model("720x720_5s", tmp_path, fetch=FakeHub(tiny_dir))
    hub = FakeHub(tiny_dir)
    assert [file.path for file in download_model("960x960_5s", tmp_path, fetch=hub)] == [
        "Ovi/model_960x960.safetensors"
    ]


def test_a_lost_connection_is_reported_and_the_next_download_continues(tiny_dir, tmp_path):
    with pytest.raises(CheckpointError) as raised:
        download_model("720x720_5s", tmp_path, fetch=FakeHub(tiny_dir, unreachable_after=2))
    assert raised.value.path == str(tmp_path / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth")
    assert "https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B (no connection)" in raised.value.found
    hub = FakeHub(tiny_dir)
    download_model("720x720_5s", tmp_path, fetch=hub)
    assert len(hub.fetched) == 4


def test_an_unknown_model_is_refused():
    with pytest.raises(InvalidRequest, match="expected one of"):
        published_files("480p")


def test_fp8_downloads_the_8_bit_transformer_instead_of_the_other():
    files = {file.path: file.repo_id for file in published_files("720x720_5s", WeightFormat.FP8)}
    assert files["Ovi/model_fp8_e4m3fn.safetensors"] == "rkfg/Ovi-fp8_quantized"
    assert "Ovi/model.safetensors" not in files
    assert len(files) == 6


def test_a_model_that_is_not_published_in_fp8_is_refused():
    with pytest.raises(InvalidRequest, match="expected model_name 720x720_5s"):
        published_files("960x960_5s", WeightFormat.FP8)


def test_the_caller_is_notified_of_each_file_before_its_download(tiny_dir, tmp_path):
    hub, notified = FakeHub(tiny_dir), []
    download_model(
        "720x720_5s", tmp_path, on_file=lambda file: notified.append((file.path, len(hub.fetched))), fetch=hub
    )
    assert notified[0] == ("Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth", 0)
    assert [downloaded for _, downloaded in notified] == list(range(6))
