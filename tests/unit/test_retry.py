"""Preparation of failed clips for another attempt."""

import json

import pyarrow as pa
import pytest

from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.output.job_files import FAILED_COLUMNS, write_failed, write_job
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.preparation import prepare
from ovi_ray.retry import prepare_retry
from tests.support.files import snapshot


@pytest.fixture
def output(tiny_dir, tmp_path):
    """The output folder of a job of three clips, of which the second failed. Its prompt list is gone."""
    rows = [
        {"text_prompt": text, "seed": 7, "video_negative_prompt": "", "meta_shot": text} for text in ("a", "b", "c")
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    prepared = prepare(
        JobSpec.from_options(prompts=prompts, ckpt_dir=tiny_dir, output_dir=out, sample_steps=4, dtype="float32")
    )
    write_job(out, prepared.job, prepared.manifest)
    failed = prepared.manifest.table.column("clip_id")[1].as_py()
    schema = pa.schema([RESULTS_SCHEMA.field(name) for name in FAILED_COLUMNS])
    write_failed(out, prepared.manifest, [pa.record_batch([[failed], ["failed"], ["it broke"]], schema=schema)])
    prompts.unlink()
    return out, prepared


def rows(manifest):
    names = ("clip_id", "row", "text_prompt", "seed", "sample_steps", "video_negative_prompt", "meta_shot")
    return manifest.table.select(names).sort_by("row").to_pylist()


def test_a_failed_clip_is_the_same_clip_again(output):
    out, prepared = output
    retry = prepare_retry(out, {})
    assert (retry.total, retry.finished, retry.clips, retry.missing) == (3, 0, 1, 2)
    assert rows(retry.prepared.manifest) == rows(prepared.manifest)
    assert retry.prepared.job == prepared.job


def test_a_change_applies_to_the_failed_clip_alone_and_makes_another_clip_of_it(output):
    out, prepared = output
    before, after = rows(prepared.manifest), rows(prepare_retry(out, {"sample_steps": "9"}).prepared.manifest)
    assert [row["sample_steps"] for row in after] == [4, 9, 4]
    assert [a["clip_id"] == b["clip_id"] for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert {**after[1], "clip_id": "", "sample_steps": 4} == {**before[1], "clip_id": ""}


def test_rows_choose_what_is_tried_again_and_a_seed_is_that_of_each_of_their_clips(output):
    out, prepared = output
    found = prepare_retry(out, {"seed": "8"}, rows=RowRanges.parse("2-3"))
    before, after = rows(prepared.manifest), rows(found.prepared.manifest)
    assert [row["seed"] for row in after] == [7, 8, 8]
    assert [row["row"] for row in after] == [row["row"] for row in before] == [1, 2, 3]
    assert found.prepared.job == prepared.job  # the list and its parameters are those of the job


def test_a_new_seed_is_another_one_every_time(output):
    out, prepared = output
    seeds = {rows(prepared.manifest)[1]["seed"]}
    for number in (2, 3):
        found = prepare_retry(out, {}, rows=RowRanges.parse("2"), new_seed=True).prepared
        seeds.add(rows(found.manifest)[1]["seed"])
        assert (len(seeds), found.keeps_seeds) == (number, True)
        write_job(out, found.job, found.manifest)


def test_other_weights_or_numbers_make_other_clips_of_all_that_are_not_finished(output):
    out, prepared = output
    retry = prepare_retry(out, {"dtype": "bfloat16"})
    assert (retry.clips, retry.missing) == (3, 0)
    before, after = rows(prepared.manifest), rows(retry.prepared.manifest)
    assert {row["clip_id"] for row in before}.isdisjoint(row["clip_id"] for row in after)


def test_a_seed_and_a_new_seed_are_refused(output):
    with pytest.raises(InputError) as caught:
        prepare_retry(output[0], {"seed": "8"}, new_seed=True)
    assert [problem.field for problem in caught.value.problems] == ["--seed"]


def test_repeats_keep_their_places_and_those_that_became_alike_are_one(tiny_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\na dog\n", encoding="utf-8")
    job = {"prompts": tmp_path / "prompts.txt", "ckpt_dir": tiny_dir, "output_dir": tmp_path, "dtype": "float32"}
    prepared = prepare(JobSpec.from_options(**job, sweep={"shift": "3,4"}, each_example_n_times=2))
    write_job(tmp_path, prepared.job, prepared.manifest)
    found = prepare_retry(tmp_path, {"shift": "5", "seed": "8"}, rows=RowRanges.parse("2")).prepared.manifest.table
    placed = found.select(["row", "repeat", "shift", "seed"]).to_pydict()
    assert placed["row"] == [1] * 4 + [2] * 4
    assert placed["repeat"] == [0, 1, 2, 3] * 2
    assert placed["seed"][4:] == [8, 9, 10, 11]
    alike = prepare_retry(tmp_path, {"shift": "5"}, rows=RowRanges.parse("2")).prepared.manifest.table
    assert alike.select(["row", "repeat"]).to_pydict() == {"row": [1] * 4 + [2] * 2, "repeat": [0, 1, 2, 3, 0, 1]}


def test_a_note_on_a_clip_is_told_with_its_row_of_the_list(output):
    out, _ = output
    (note,) = prepare_retry(out, {"slg_layer": "99"}).prepared.manifest.notes
    assert note.startswith("row 2: slg_layer 99")


def test_a_problem_of_a_clip_is_told_with_its_row_of_the_list(output):
    with pytest.raises(InputError) as caught:
        prepare_retry(output[0], {"mode": "i2v"}, rows=RowRanges.parse("3"))
    assert [(problem.row, problem.field) for problem in caught.value.problems] == [(3, "image_path")]


def test_preparing_a_retry_writes_nothing(output):
    before = snapshot(output[0].parent)
    prepare_retry(output[0], {"seed": "8"})
    assert snapshot(output[0].parent) == before


def test_a_bad_change_is_reported(output):
    with pytest.raises(InputError) as caught:
        prepare_retry(output[0], {"sample_steps": "0"})
    assert [(problem.field, problem.value) for problem in caught.value.problems] == [("--sample-steps", "'0'")]


@pytest.mark.parametrize("name", ["manifest.parquet", "job.json"])
def test_a_folder_without_one_of_its_files_is_refused_by_its_name(output, name):
    (output[0] / name).unlink()
    with pytest.raises(InputError) as caught:
        prepare_retry(output[0], {})
    assert [problem.file for problem in caught.value.problems] == [str(output[0] / name)]
