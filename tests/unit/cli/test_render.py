"""`ovi-ray render` and `weights`: every problem is reported at once, before any model loads."""

import json
import os
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ovi.weights import hub
from ovi_ray.cli import app
from ovi_ray.runtime import ray_executor
from tests.support.jobs import result_rows

pytestmark = pytest.mark.usefixtures("nothing_starts")


@pytest.fixture
def nothing_starts(monkeypatch):
    """A job that passes the checks is a failure: neither Ray nor a model is started."""

    def reached(*args, **kwargs):
        raise AssertionError("the job was started")

    monkeypatch.setattr(ray_executor, "ray_session", reached)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stderr, result.stdout


def render(prompts, tiny_dir, tmp_path, *options):
    return call("render", prompts, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", *options)


def refused(*arguments):
    code, message, _ = call(*arguments)
    assert code == 2, message
    return message


def write(path, content, encoding="utf-8"):
    path.write_text(content, encoding=encoding)
    return path


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["render"],
        ["retry"],
        ["plan"],
        ["doctor"],
        ["weights"],
        ["weights", "download"],
        ["weights", "check"],
        ["weights", "tiny"],
    ],
)
def test_every_command_has_help(command):
    code, _, text = call(*command, "--help")
    assert code == 0
    assert "Usage" in text
    if command and command != ["weights"]:
        assert f"ovi-ray {' '.join(command)}" in text  # an example


# -- what can be wrong with a prompt list -----------------------------------------------------------------------------


def test_a_missing_list_is_named(tiny_dir, tmp_path):
    code, message, _ = render(tmp_path / "nowhere.csv", tiny_dir, tmp_path)
    assert code == 2
    assert "nowhere.csv" in message


@pytest.mark.parametrize(
    "given", ["my prompts.xlsx", "prompts.ods", "lists/", "my lists/a b", "fox", "C:\\x\\y", "job.yml", "//a.csv"]
)
def test_a_list_that_is_not_there_is_refused_with_how_to_write_a_prompt(tiny_dir, tmp_path, monkeypatch, given):
    (tmp_path / "my lists").mkdir()
    monkeypatch.chdir(tmp_path)
    message = refused("render", given, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    assert "a file that does not exist" in message
    assert "--prompt" in message or given.endswith(".yml")


def test_a_mistyped_job_file_is_refused_with_the_name_of_its_neighbour(tiny_dir, tmp_path):
    write(tmp_path / "night.yaml", "seed: 1\n")
    message = refused("render", tmp_path / "nigth.yaml", "--ckpt-dir", tiny_dir)
    assert "'night.yaml'" in message


def test_a_list_and_a_prompt_are_refused_and_so_is_neither(tiny_dir, tmp_path):
    prompts = write(tmp_path / "p.csv", "text_prompt\na fox\n")
    both = refused("render", prompts, "--prompt", "a dog", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    neither = refused("render", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    assert "either a prompt list or a prompt" in both
    assert "PROMPTS is missing" in neither


def test_a_list_without_prompts_names_the_column_it_needs(tiny_dir, tmp_path):
    code, message, _ = render(write(tmp_path / "p.csv", "prompt\na fox\n"), tiny_dir, tmp_path)
    assert code == 2
    assert "text_prompt" in message
    assert "p.csv" in message


def test_every_bad_cell_of_every_row_is_reported_with_its_row_and_field(tiny_dir, tmp_path):
    Image.new("RGB", (40_000, 2)).save(tmp_path / "wide.png")
    write(tmp_path / "not.png", "no image")
    rows = [
        "text_prompt,image_path,seed,sample_steps,video_frame_height_width,solver_name,model_name",
        "a fox,missing.png,1,4,704x1280,unipc,720x720_5s",
        "a fox,not.png,1,4,704x1280,unipc,720x720_5s",
        "a fox,wide.png,1,4,704x1280,unipc,720x720_5s",
        ",,1,4,704x1280,unipc,720x720_5s",
        "a fox,,one,4,704x1280,unipc,720x720_5s",
        "a fox,,1,0,704x1280,unipc,720x720_5s",
        "a fox,,1,4,0x1280,unipc,720x720_5s",
        "a fox,,1,4,704x1280,heun,720x720_5s",
        "a fox,,1,4,704x1280,unipc,1080p",
    ]
    code, message, _ = render(write(tmp_path / "p.csv", "\n".join(rows)), tiny_dir, tmp_path)
    assert code == 2
    lines = {int(line.split("row ")[1].split(" ")[0]): line for line in message.splitlines() if "row " in line}
    assert sorted(lines) == list(range(1, 10))
    expected = [
        "missing.png",
        "not.png",
        "wide.png",
        "text_prompt",
        "seed",
        "sample_steps",
        "height_width",
        "heun",
        "1080p",
    ]
    for number, word in enumerate(expected, start=1):
        assert word in lines[number]
        assert "expected" in lines[number]


def test_an_unknown_column_is_reported_with_the_closest_known_one(tiny_dir, tmp_path):
    code, message, _ = render(write(tmp_path / "p.csv", "text_prompt,sample_step\na fox,4\n"), tiny_dir, tmp_path)
    assert code == 2
    assert "sample_steps" in message


def test_a_wrong_encoding_is_reported_with_the_right_one(tiny_dir, tmp_path):
    code, message, _ = render(write(tmp_path / "p.csv", "text_prompt\ncafé\n", encoding="cp1252"), tiny_dir, tmp_path)
    assert code == 2
    assert "UTF-8" in message


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("text_prompt;seed\na fox;7\n", (), "semicolons"),
        ("sep=|\ntext_prompt|seed\na fox|7\n", (), "sep=|"),
        ("text_prompt,seed,,\na fox,7,,\n,,,\n", (), "1 blank row"),
        ("text_prompt~seed~\na fox~7~\n", ("--delimiter", "~"), "column 3"),
    ],
)
def test_what_was_read_otherwise_than_written_is_told_before_the_job_starts(
    tiny_dir, tmp_path, content, options, words
):
    code, message, _ = render(write(tmp_path / "p.csv", content), tiny_dir, tmp_path, *options)
    assert code != 2  # it was started, which `nothing_starts` ends
    assert words in message.partition("note: ")[2]


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sample-steps", "0"),
        ("--seed", "1.5"),
        ("--solver-name", "heun"),
        ("--model-name", "1080p"),
        ("--video-frame-height-width", "0x64"),
        ("--shift", "nan"),
        ("--dtype", "int4"),
    ],
)
def test_an_option_out_of_range_is_named_with_what_is_expected(tiny_dir, tmp_path, option, value):
    code, message, _ = render(write(tmp_path / "p.txt", "a fox\n"), tiny_dir, tmp_path, option, value)
    assert code == 2
    assert option in message
    assert "expected" in message


def test_an_output_folder_that_cannot_be_written_is_reported(tiny_dir, tmp_path):
    write(tmp_path / "out", "a file in the way")
    code, message, _ = render(write(tmp_path / "p.txt", "a fox\n"), tiny_dir, tmp_path)
    assert code == 2
    assert "--out" in message


def test_bad_weights_and_bad_rows_are_reported_together(tiny_dir, tmp_path):
    ckpts = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    tensors = load_file(ckpts / "Ovi" / "model.safetensors")
    del tensors["audio_model.head.head.bias"]
    save_file(tensors, ckpts / "Ovi" / "model.safetensors")
    os.truncate(ckpts / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth", 1000)
    prompts = write(tmp_path / "p.csv", "text_prompt,seed\na fox,x\n,1\n")
    code, message, _ = render(prompts, ckpts, tmp_path)
    assert code == 2
    for words in (
        "1 tensors missing: audio_model.head.head.bias",
        "Wan2.2_VAE.pth",
        "truncated",
        "row 1",
        "row 2",
        "4 problems",
    ):
        assert words in message


def test_a_model_that_a_row_asks_for_must_be_there_too(tiny_dir, tmp_path):
    prompts = write(tmp_path / "p.csv", "text_prompt,model_name\na fox,960x960_10s\n")
    code, message, _ = render(prompts, tiny_dir, tmp_path)
    assert code == 2
    assert "ovi-ray weights download --model-name 960x960_10s" in message


def test_a_job_file_is_checked_like_options_and_names_its_lines(tiny_dir, tmp_path):
    job = write(
        tmp_path / "job.yaml", f"ckpt_dir: {tiny_dir}\noutput_dir: out\ntext_prompt: a fox\nsample_step: 4\nshift: -1\n"
    )
    code, message, _ = call("render", job)
    assert code == 2
    assert "line 4" in message
    assert "sample_steps" in message
    assert "line 5" in message


def test_a_bad_cluster_profile_is_reported_with_the_rows(tiny_dir, tmp_path):
    profile = write(tmp_path / "cluster.yaml", "name: mine\ndevices:\n  gpu: {count: -1}\n")
    code, message, _ = render(
        write(tmp_path / "p.csv", "text_prompt,seed\na fox,x\n"), tiny_dir, tmp_path, "--cluster", profile
    )
    assert code == 2
    assert "devices.gpu.count" in message
    assert "row 1" in message


# -- weights ----------------------------------------------------------------------------------------------------------


def test_check_lists_missing_files_and_usable_models(tiny_dir):
    code, _, table = call("weights", "check", tiny_dir)
    assert code == 0
    assert "models that can run: 720x720_5s, 960x960_5s" in table
    assert "no such file" in table


def test_check_prints_json(tiny_dir):
    _, _, text = call("weights", "check", tiny_dir, "--json")
    findings = json.loads(text)
    assert findings["models"] == ["720x720_5s", "960x960_5s"]
    assert findings["files"]["Ovi/model.safetensors"] is None
    assert "no such file" in findings["files"]["Ovi/model_960x960_10s.safetensors"]


def test_check_of_a_folder_without_a_usable_model_is_bad_input(tmp_path):
    code, _, table = call("weights", "check", tmp_path)
    assert code == 2
    assert "models that can run: none" in table
    assert "which is not there" in refused("weights", "check", tmp_path / "nowhere")


def test_check_of_one_model_tells_of_no_other(tiny_dir):
    code, _, text = call("weights", "check", tiny_dir, "--model-name", "720x720_5s", "--json")
    assert (code, json.loads(text)["models"]) == (0, ["720x720_5s"])
    assert "Ovi/model_960x960.safetensors" not in json.loads(text)["files"]
    assert call("weights", "check", tiny_dir, "--model-name", "960x960_10s")[0] == 2
    assert "did you mean '720x720_5s'?" in refused("weights", "check", tiny_dir, "--model-name", "720x720")


@pytest.mark.parametrize(("options", "is_usable"), [((), False), (("--quick",), True)])
def test_check_reads_files_to_their_end(tiny_dir, tmp_path, options, is_usable):
    folder, file = shutil.copytree(tiny_dir, tmp_path / "ckpts"), "Ovi/model.safetensors"
    weights = load_file(folder / file)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / file)
    code, _, text = call("weights", "check", folder, "--model-name", "720x720_5s", "--json", *options)
    assert code == (0 if is_usable else 2)
    found = json.loads(text)["files"][file]
    assert found is None if is_usable else f"NaN or infinity in {name}" in found


def test_tiny_writes_a_folder_that_passes_the_check(tmp_path):
    assert call("weights", "tiny", tmp_path / "ckpts")[0] == 0
    code, _, table = call("weights", "check", tmp_path / "ckpts")
    assert code == 0
    assert "models that can run: 720x720_5s, 960x960_5s, 960x960_10s" in table


def test_download_without_a_connection_is_reported_with_the_reason(tmp_path, monkeypatch):
    def fetch(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(hub.download_model, "__kwdefaults__", hub.download_model.__kwdefaults__ | {"fetch": fetch})
    message = refused("weights", "download", tmp_path)
    assert "cannot be fetched" in message
    assert "no route to host" in message


def test_download_of_an_unknown_model_is_refused(tmp_path):
    assert "expected one of 720x720_5s" in refused("weights", "download", "--model-name", "480p", tmp_path)


def test_a_weight_that_is_not_a_finite_number_fails_the_clips_of_its_model_before_anything_starts(tiny_dir, tmp_path):
    ckpts = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    path = ckpts / "Ovi" / "model.safetensors"
    path.chmod(0o644)
    weights = load_file(path)
    weights["video_model.head.head.weight"].view(-1)[5] = float("nan")
    save_file(weights, path)
    code, message, _ = render("a red fox", ckpts, tmp_path)
    assert code == 1
    assert "not be finite numbers" in message
    assert f"{path}: NaN or infinity in video_model.head.head.weight (1 number)" in message
    (row,) = result_rows(tmp_path / "out")
    assert (row["status"], row["attempts"], row["video_path"]) == ("failed", 0, None)
    assert str(path) in row["error"]
