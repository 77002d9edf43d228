"""Sweeps: which values are accepted, and which clips they make."""

import pytest

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs import sweep as sweeps
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.inputs.sweep import SWEPT_FIELDS, DeclaredSweep
from tests.support.jobs import write_prompts
from tests.support.params import another_value


def clips(job):
    manifest = build_manifest(job, Architecture(), weights=lambda name: name, numerics=job.numerics)
    return manifest.table.to_pylist()


def problems_of(**options):
    with pytest.raises(InputError) as caught:
        clips(BatchSpec.from_options(**options))
    return caught.value.problems


def test_a_sweep_has_a_field_for_every_parameter_that_a_row_can_set():
    assert tuple(DeclaredSweep.model_fields) == SWEPT_FIELDS == (*PARAM_FIELDS, "model_name")


@pytest.mark.parametrize("name", PARAM_FIELDS)
def test_every_sampling_parameter_can_be_swept(name):
    job = BatchSpec.from_options(text_prompt="A fox", sweep={name: [another_value(name)]})
    (clip,) = clips(job)
    value = another_value(name)
    if name == "video_frame_height_width":
        assert (clip["video_frame_height"], clip["video_frame_width"]) == value
    else:
        assert clip[name] == value


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        ("seed", "0-3", (0, 1, 2, 3)),
        ("seed", "7", (7,)),
        ("seed", 7, (7,)),
        ("seed", ["1-2", 9], (1, 2, 9)),
        ("seed", "1-2,5", (1, 2, 5)),
        ("shift", "3,4.5", (3.0, 4.5)),
        ("solver_name", "euler, dpm++", ("euler", "dpm++")),
        ("video_frame_height_width", "704x1280,960x960", ((704, 1280), (960, 960))),
        ("video_frame_height_width", [[704, 1280], "960x960"], ((704, 1280), (960, 960))),
        ("video_negative_prompt", ["jitter, blur", ""], ("jitter, blur", "")),
    ],
)
def test_values_are_lists_or_texts(name, given, values):
    assert sweeps.parse_values(name, given) == values


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("seed", "5-3"),
        ("seed", []),
        ("seed", [1, "1"]),
        ("seed", "0-99999999"),
        ("seed", [True]),
        ("shift", "3-5"),
        ("shift", [3, 0]),
        ("shift", {"a": 1}),
        ("model_name", "960x960"),
        ("video_frame_height_width", [704, 1280]),
    ],
)
def test_values_that_cannot_be_swept_are_refused(name, given):
    (problem,) = problems_of(text_prompt="A fox", sweep={name: given})
    assert problem.field == f"--sweep {name}"


def test_a_grid_with_more_clips_than_a_job_may_have_is_refused():
    (problem,) = problems_of(text_prompt="A fox", sweep={"seed": "0-9999", "sample_steps": "1-1000"})
    assert problem.field == "--sweep"


def test_the_options_of_the_command_line_say_the_same_as_a_job_file(tmp_path):
    (tmp_path / "job.yaml").write_text("text_prompt: A fox runs\nsweep:\n  seed: 0-2\n  shift: [3, 5]\n")
    in_file = BatchSpec.from_yaml(tmp_path / "job.yaml")
    on_line = BatchSpec.from_options(text_prompt="A fox runs", sweep=["seed=0-2", "shift=3,5"])
    assert in_file.sweep == on_line.sweep
    assert in_file.sweep.size == 6


def test_a_repeated_option_adds_values():
    job = BatchSpec.from_options(text_prompt="A fox", sweep=["seed=1", "seed=5-6", "video-guidance-scale=3"])
    assert job.sweep.values == {"seed": (1, 5, 6), "video_guidance_scale": (3.0,)}


@pytest.mark.parametrize("text", ["seed", "=3", "sede=3"])
def test_an_option_that_names_no_parameter_is_refused(text):
    (problem,) = problems_of(text_prompt="A fox", sweep=[text])
    assert problem.field.startswith("--sweep")


def test_each_problem_of_the_options_names_its_own_parameter():
    problems = problems_of(text_prompt="A fox", sweep=["sede=1", "sample-steps=x,2", "shift=3", "seed=1", "seed=1"])
    assert sorted((problem.field, problem.value) for problem in problems) == [
        ("--sweep sample_steps", "'x,2'"),
        ("--sweep sede", "an unknown key"),
        ("--sweep seed", "['1', '1']"),
    ]


def test_every_row_is_rendered_with_every_combination_and_numbered_through(tmp_path):
    prompts = write_prompts(tmp_path / "p.csv", {"text_prompt": "A fox"}, {"text_prompt": "A dog"})
    found = clips(BatchSpec.from_options(prompts=prompts, sweep={"shift": [3, 5], "sample_steps": [10, 20]}))
    assert [(clip["row"], clip["repeat"], clip["shift"], clip["sample_steps"]) for clip in found] == [
        (row, 2 * i + j, shift, steps)
        for row in (1, 2)
        for i, steps in enumerate((10, 20))
        for j, shift in enumerate((3.0, 5.0))
    ]
    assert {clip["varies"] for clip in found} == {"sample_steps,shift"}
    assert (
        len({(clip["row"], clip["seed"]) for clip in found}) == 2
    )  # the combinations of a row start from the same noise


def test_a_swept_seed_is_that_of_the_clip_and_repeats_count_on(tmp_path):
    prompts = write_prompts(tmp_path / "p.csv", {"text_prompt": "A fox"}, {"text_prompt": "A dog"})
    found = clips(BatchSpec.from_options(prompts=prompts, sweep={"seed": [0, 10]}, each_example_n_times=2))
    assert [(clip["row"], clip["repeat"], clip["seed"]) for clip in found] == [
        (row, repeat, seed) for row in (1, 2) for repeat, seed in enumerate((0, 1, 10, 11))
    ]


def test_a_row_that_sets_a_swept_parameter_is_refused_by_row_and_value(tmp_path):
    prompts = write_prompts(
        tmp_path / "p.csv",
        {"text_prompt": "A fox", "seed": "", "shift": "2"},
        {"text_prompt": "A dog", "seed": "7", "shift": ""},
    )
    problems = problems_of(prompts=prompts, sweep={"seed": [1, 2], "shift": [3]})
    assert {(problem.row, problem.field, problem.value) for problem in problems} == {
        (1, "shift", "'2'"),
        (2, "seed", "'7'"),
    }


def test_a_problem_of_a_row_is_reported_once_however_often_it_is_rendered(tmp_path):
    prompts = write_prompts(tmp_path / "p.csv", {"text_prompt": "A fox", "shift": "wide"})
    (problem,) = problems_of(prompts=prompts, sweep={"seed": "0-9"})
    assert (problem.row, problem.field) == (1, "shift")


def test_a_swept_model_has_its_own_size_and_markup():
    job = BatchSpec.from_options(text_prompt="A fox. Audio: rain", sweep={"model_name": "720x720_5s,960x960_5s"})
    small, large = clips(job)
    assert (small["height"] * small["width"]) < (large["height"] * large["width"])
    assert ("<AUDCAP>" in small["prompt"], "<AUDCAP>" in large["prompt"]) == (True, False)


@pytest.mark.parametrize(
    "options", [{"each_example_n_times": 10**11}, {"each_example_n_times": 400_000, "sweep": {"seed": "0-2"}}]
)
def test_repeats_of_more_clips_than_a_job_may_have_are_refused_before_they_are_made(options):
    (problem,) = problems_of(text_prompt="A fox", **options)
    assert "1,000,000" in problem.expected
