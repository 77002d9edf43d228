"""Sampling parameters that the model can do nothing with, or rarely anything good."""

import json
from dataclasses import replace

import pytest

from ovi.config import Architecture
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import build_manifest

SMALL = replace(
    Architecture(),
    video=replace(Architecture().video, num_layers=3),
    audio=replace(Architecture().audio, num_layers=3),
)


@pytest.fixture
def notes(tmp_path):
    """The notes on rows with these parameters."""

    def read(*rows, arch=SMALL, **options):
        path = tmp_path / "prompts.jsonl"
        lines = (json.dumps({"text_prompt": f"clip {number}", **row}) for number, row in enumerate(rows))
        path.write_text("\n".join(lines), encoding="utf-8")
        job = BatchSpec.from_options(prompts=path, **options)
        return build_manifest(job, arch, weights=lambda name: name, numerics="float32").notes

    return read


@pytest.mark.parametrize(("arch", "last"), [(SMALL, 2), (Architecture(), 29)])
def test_a_block_beyond_the_depth_of_the_model_is_noted_with_its_row_and_what_would_be_right(notes, arch, last):
    rows = [{"slg_layer": number} for number in (0, last, last + 1, 99)]
    (note,) = notes(*rows, arch=arch)
    assert note == (
        f"row 3: slg_layer {last + 1} (and in 1 more row) skips nothing; expected a block from 1 to {last}, or 0 for none:"
        f" the model has {last + 1} blocks, counted from 0"
    )


def test_a_block_that_the_job_sets_for_all_rows_is_noted_once(notes):
    (note,) = notes({}, {"slg_layer": 1}, {}, slg_layer=99)
    assert note.startswith("row 1: slg_layer 99 (and in 1 more row) skips nothing")


def test_the_default_block_is_not_noted_for_a_smaller_model_also_where_a_manifest_names_it(notes):
    assert notes({}, {"slg_layer": 11}) == ()


@pytest.mark.parametrize(
    ("name", "values", "usual"),
    [
        ("shift", (20.5, 1e9), "0 to 20"),
        ("video_guidance_scale", (11, -3.0), "0 to 10"),
        ("audio_guidance_scale", (1e38, 12), "0 to 10"),
    ],
)
def test_guidance_and_shift_out_of_the_usual_range_are_noted_once_with_row_and_value(notes, name, values, usual):
    (note,) = notes({name: values[0]}, {}, {name: values[1]}, {name: 10})
    assert note.startswith(f"row 1: {name} {values[0]:g} (and in 1 more row) is unusual; expected {usual}")


def test_the_ends_of_the_usual_range_are_not_noted(notes):
    assert notes({"shift": 20, "video_guidance_scale": 0, "audio_guidance_scale": 10}) == ()
