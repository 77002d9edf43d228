"""Sampling parameters that the model can do nothing with, or rarely anything good."""

import json
from dataclasses import replace

import pytest

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import build_manifest

SMALL = replace(
    Architecture(),
    video=replace(Architecture().video, num_layers=3),
    audio=replace(Architecture().audio, num_layers=3),
)


@pytest.fixture
def build(tmp_path):
    """The manifest of rows with these parameters."""

    def run(*rows, arch=SMALL, **options):
        path = tmp_path / "prompts.jsonl"
        lines = (json.dumps({"text_prompt": f"clip {number}", **row}) for number, row in enumerate(rows))
        path.write_text("\n".join(lines), encoding="utf-8")
        job = BatchSpec.from_options(prompts=path, **options)
        return build_manifest(job, arch, weights=lambda name: name, numerics="float32")

    return run


def problems(build, *rows, **options):
    with pytest.raises(InputError) as refused:
        build(*rows, **options)
    return [(problem.row, problem.field, problem.value) for problem in refused.value.problems]


def test_a_block_beyond_the_models_depth_is_refused_with_its_row_and_what_would_be_right(build):
    rows = [{"slg_layer": number} for number in (0, 2, 3, 99)]
    assert problems(build, *rows) == [(3, "slg_layer", "3"), (4, "slg_layer", "99")]
    with pytest.raises(InputError, match="expected a block from 1 to 2, or 0 for none: the model has 3 blocks"):
        build(*rows)
    assert problems(build, {"slg_layer": 30}, {"slg_layer": 29}, arch=Architecture()) == [(1, "slg_layer", "30")]


def test_a_block_of_the_whole_job_is_refused_once_beside_those_of_rows_and_other_problems(build):
    rows = [{}, {}, {"slg_layer": 50}, {"seed": -1}]
    assert problems(build, *rows, slg_layer=99) == [
        (None, "slg_layer", "99"),
        (3, "slg_layer", "50"),
        (4, "seed", "-1"),
    ]


def test_the_default_block_is_accepted_by_a_smaller_model_also_where_a_manifest_names_it(build):
    assert len(build({}, {"slg_layer": 11})) == 2


@pytest.mark.parametrize(
    ("name", "values", "usual"),
    [
        ("shift", (20.5, 1e9), "0 to 20"),
        ("video_guidance_scale", (11, -3.0), "0 to 10"),
        ("audio_guidance_scale", (1e38, 12), "0 to 10"),
    ],
)
def test_guidance_and_shift_out_of_the_usual_range_are_noted_once_with_rows_and_value(build, name, values, usual):
    rows = [{name: values[0]}, {}, {name: values[1]}, {name: 10}]
    (note,) = build(*rows).notes
    assert note.startswith(f"row 1 and 1 more row: {name} {values[0]:g} is out of the usual range, {usual}")


def test_the_ends_of_the_usual_range_are_not_noted(build):
    assert build({"shift": 20, "video_guidance_scale": 0, "audio_guidance_scale": 10}).notes == ()
