"""Sizes, models and parameters."""

import json

import pytest

from ovi.config import Architecture, SamplingParams, SolverName, model_spec
from ovi.errors import CheckpointMismatch, InvalidRequest


def write_architecture(folder, **parts):
    (folder / "architecture.json").write_text(json.dumps(parts), encoding="utf-8")
    return folder


def test_a_folder_without_architecture_has_the_published_sizes(tmp_path):
    assert Architecture.read(tmp_path) == Architecture()


@pytest.mark.parametrize("in_its_place", ["folder", "loop", "nesting"])
def test_an_architecture_that_cannot_be_read_is_never_taken_for_the_published_one(tmp_path, in_its_place):
    path = tmp_path / "architecture.json"
    match in_its_place:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "nesting":
            path.write_text("[" * 100_000)
    with pytest.raises(CheckpointMismatch) as raised:
        Architecture.read(tmp_path)
    assert raised.value.path == str(path)


def test_a_folder_may_change_sizes_and_keeps_the_rest(tmp_path):
    folder = write_architecture(
        tmp_path, video={"dim": 40, "qk_norm": True}, models={"960x960_5s": {"video_area": 4096}}
    )
    arch = Architecture.read(folder)
    assert (arch.video.dim, arch.video.num_layers) == (40, 30)
    assert (arch.spec("960x960_5s").video_area, arch.spec("720x720_5s").video_area) == (4096, 720 * 720)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"video": {"dimension": 40}}, "unknown field 'dimension'"),
        ({"video": {"qk_norm": False}}, "only True is supported"),
        ({"models": {"480p": {}}}, "'480p' is unknown; expected one of 720x720_5s"),
        ({"models": {"720x720_5s": {"frames": 3}}}, "frames"),
        ({"video": 3}, "int"),
        ({"video": {"num_layers": "x"}}, "num_layers is 'x'"),
        ({"video": {"num_layers": -3}}, "num_layers is -3"),
        ({"vocoder": {"num_mels": None}}, "num_mels is None"),
        ({"models": {"720x720_5s": {"video_area": 1.5}}}, "video_area is 1.5"),
    ],
)
def test_an_invalid_architecture_is_refused_with_its_file(tmp_path, parts, message):
    with pytest.raises(CheckpointMismatch) as raised:
        Architecture.read(write_architecture(tmp_path, **parts))
    assert raised.value.path == str(tmp_path / "architecture.json")
    assert message in raised.value.found


def test_an_architecture_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "architecture.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointMismatch) as raised:
        Architecture.read(tmp_path)
    assert raised.value.path == str(tmp_path / "architecture.json")


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(InvalidRequest, match="expected one of 720x720_5s, 960x960_5s, 960x960_10s"):
        model_spec("1080p")


def test_parameters_out_of_range_are_told_all_at_once():
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(
            seed=-1, sample_steps=0, solver_name="heun", shift=0.0, slg_layer=-2, video_frame_height_width=(0, 64)
        )
    for field in (
        "seed is -1",
        "sample_steps is 0",
        "solver_name is 'heun'",
        "shift is 0.0",
        "slg_layer is -2",
        "(0, 64)",
    ):
        assert field in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(InvalidRequest, match="video_guidance_scale"):
        SamplingParams(video_guidance_scale=value)


def test_a_solver_may_be_given_by_name():
    assert SamplingParams(solver_name="dpm++").solver_name is SolverName.DPMPP
