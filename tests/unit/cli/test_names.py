"""Names of files that are not UTF-8, that hold brackets and spaces, and that stand for other files."""

import os
import shutil

import pytest
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.runtime import ray_executor
from tests.support.cli import ROOT
from tests.support.lists import LFS_POINTER

LATIN1 = os.fsdecode(b"caf\xe9")
PROFILE = ROOT / "cluster" / "profiles" / "b.yaml"


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """A job that passes the checks is a failure: neither Ray nor a model is started."""

    def reached(*args, **kwargs):
        raise AssertionError("the job was started")

    monkeypatch.setattr(ray_executor, "ray_session", reached)


def refused(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("text_prompt\nA fox\n")
    return path


# -- names that are not UTF-8 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("render", "NAME/p.csv", "--ckpt-dir", "CKPTS", "--out", "out"),
        ("render", "NAME/job.yaml", "--out", "out"),
        ("render", "PROMPTS", "--ckpt-dir", "CKPTS", "--out", "NAME/out"),
        ("render", "PROMPTS", "--ckpt-dir", "NAME", "--out", "out"),
        ("render", "PROMPTS", "--ckpt-dir", "CKPTS", "--out", "out", "--image-path", "NAME/f.png"),
        ("render", "PROMPTS", "--ckpt-dir", "CKPTS", "--out", "out", "--cluster", "NAME/c.yaml"),
        ("plan", "NAME/p.csv", "--cluster", PROFILE),
        ("plan", "PROMPTS", "--cluster", "NAME/c.yaml"),
        ("plan", "PROMPTS", "--cluster", PROFILE, "--timeline", "NAME/t.html"),
        ("plan", "PROMPTS", "--cluster", PROFILE, "--actual", "NAME/out"),
        ("retry", "NAME"),
        ("explain", "NAME"),
        ("doctor", "--ckpt-dir", "NAME"),
        ("weights", "check", "NAME"),
        ("weights", "tiny", "NAME"),
        ("weights", "download", "NAME"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_name_that_is_not_utf8_is_refused_by_its_bytes_in_every_place(command, tiny_dir, prompts, tmp_path):
    (tmp_path / LATIN1).mkdir()
    shutil.copy(prompts, tmp_path / LATIN1)
    values = {"PROMPTS": str(prompts), "CKPTS": str(tiny_dir), "out": str(tmp_path / "out")}
    words = [values.get(word, str(word).replace("NAME", str(tmp_path / LATIN1))) for word in command]
    message = refused(*words)
    assert "caf\\xe9" in message
    assert "UTF-8" in message
    assert sorted(path.name for path in (tmp_path / LATIN1).iterdir()) == ["p.csv"]


def test_a_working_folder_whose_name_is_not_utf8_is_refused(tiny_dir, prompts, tmp_path, monkeypatch):
    (tmp_path / LATIN1).mkdir()
    monkeypatch.chdir(tmp_path / LATIN1)
    message = refused("render", prompts, "--ckpt-dir", tiny_dir, "--out", "out")
    assert "the working folder" in message
    assert "caf\\xe9" in message


def test_a_parquet_file_in_a_folder_whose_name_is_not_utf8_is_refused_by_name(tiny_dir, tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / f"{LATIN1}.parquet").write_bytes(b"PAR1")
    message = refused("render", tmp_path / "list", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    assert "caf\\xe9.parquet" in message


# -- brackets and spaces -----------------------------------------------------------------------------------------------


def test_brackets_in_paths_and_cells_are_told_as_they_are(tiny_dir, tmp_path):
    folder = tmp_path / "takes [/final] [v2]"
    folder.mkdir(parents=True)
    path = folder / "p [bold].csv"
    path.write_text("text_prompt,seed,image_path,[red]x\nA [/b] fox,[/seed],[i]/f.png,1\n")
    message = refused("render", path, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    assert str(path) in message
    for words in ("'[/seed]'", "'[i]/f.png'", "[red]x"):
        assert words in message


def test_an_argument_that_is_no_option_is_told_with_its_brackets(prompts):
    assert "[/x]" in refused("render", prompts, "--nope[/x]")


def test_a_command_that_fetches_weights_can_be_pasted(prompts, tmp_path):
    ckpts = tmp_path / "my ckpts"
    ckpts.mkdir()
    message = refused("render", prompts, "--ckpt-dir", ckpts, "--out", tmp_path / "out")
    assert f"ovi-ray weights download --model-name 720x720_5s '{ckpts}'" in message


# -- files that stand for others ---------------------------------------------------------------------------------------


def test_pointers_and_links_that_lead_nowhere_are_named_in_a_checkpoint_folder(tiny_dir, prompts, tmp_path):
    ckpts = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    (tmp_path / "link").symlink_to("cleared")
    assert "a link to cleared, which does not exist" in refused(
        "render", prompts, "--ckpt-dir", tmp_path / "link", "--out", tmp_path / "out"
    )
    (ckpts / "Ovi" / "model.safetensors").write_bytes(LFS_POINTER)
    vae = ckpts / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth"
    vae.unlink()
    vae.symlink_to("../../blobs/0c4f")
    tokenizer = ckpts / "Wan2.2-TI2V-5B" / "google"
    shutil.rmtree(tokenizer)
    tokenizer.symlink_to("gone")
    (ckpts / "MMAudio" / "ext_weights" / "v1-16.pth").write_text("/annex/objects/SHA256-s1--00.pth\n")
    message = refused("render", prompts, "--ckpt-dir", ckpts, "--out", tmp_path / "out")
    architecture = ckpts / "architecture.json"
    architecture.unlink()
    architecture.symlink_to("lost.json")
    assert "a link to lost.json, which does not exist" in refused(
        "render", prompts, "--ckpt-dir", ckpts, "--out", tmp_path / "out"
    )
    for words in (
        "a Git LFS pointer in place of the file",
        "a git-annex pointer in place of the file",
        "a link to ../../blobs/0c4f, which does not exist",
        "a link to gone, which does not exist",
    ):
        assert words in message


# -- names that are too long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["retry"], ["weights", "check"], ["render", "LIST", "--out", "OUT", "--ckpt-dir"]])
def test_a_name_that_is_too_long_for_any_file_is_a_file_that_is_not_there(command, prompts, tmp_path):
    places = {"LIST": prompts, "OUT": tmp_path / "out"}
    words = [str(places.get(word, word)) for word in command]
    result = CliRunner().invoke(app, [*words, "x" * 300], env={"COLUMNS": "80"})
    assert result.exit_code == 2, result.output
