"""The quality of clips in lists, jobs and manifests."""

import pytest

from ovi.config import Architecture
from ovi.quality import Quality
from ovi.stages import STAGES, Stage
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.inputs.task_table import TaskTable, workload_of
from tests.support.lists import manifest_of, problems_of, write_table


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "prompts.csv"
        path.write_text(text)
        return path

    return write


def column(manifest, name):
    return manifest.table.column(name).to_pylist()


def test_each_quality_is_a_clip_of_its_own_from_the_same_noise():
    job = BatchSpec.from_options(text_prompt="A fox", sweep={"quality": list(Quality)})
    swept = build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n")
    assert column(swept, "quality") == ["exact", "high", "fast"]
    assert len(set(column(swept, "clip_id"))) == 3
    assert len(set(column(swept, "seed"))) == 1


def test_a_row_may_have_another_quality_than_the_job(write):
    manifest = manifest_of(write("text_prompt,quality\na,\nb,exact\nc,fast\n"), quality="high")
    assert column(manifest, "quality") == ["high", "exact", "fast"]


def test_a_row_keeps_its_seed_when_the_quality_of_the_job_changes(write):
    path = write("text_prompt\na\nb\n")
    assert column(manifest_of(path, quality="fast"), "seed") == column(manifest_of(path), "seed")


def test_a_job_that_forbids_lossy_clips_names_every_row_that_asks_for_them(write):
    path = write("text_prompt,quality\na,fast\nb,exact\nc,high\n")
    problems = problems_of(path, allow_lossy=False)
    assert [(problem.row, problem.field) for problem in problems] == [(1, "quality"), (3, "quality")]
    assert all("policies.allow_lossy" in problem.expected for problem in problems)


def test_a_job_that_forbids_lossy_clips_refuses_an_option_for_them(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("text_prompt: A fox\npolicies:\n  allow_lossy: false\n")
    assert BatchSpec.from_yaml(path).quality is Quality.EXACT
    with pytest.raises(InputError) as caught:
        BatchSpec.from_yaml(path, {"quality": "fast"})
    (problem,) = caught.value.problems
    assert (problem.field, problem.expected.split(":")[0]) == ("--quality", "exact")


def test_a_manifest_of_an_earlier_version_holds_exact_clips(write, tmp_path):
    manifest = manifest_of(write("text_prompt\na\n"))
    old = manifest.table.drop_columns(["quality"]).replace_schema_metadata({"ovi_ray.manifest_format": "3"})
    read = Manifest.read(write_table(tmp_path / "old.parquet", old))
    assert read.table == manifest.table


def test_clips_of_another_quality_are_another_kind_that_costs_fewer_passes(write):
    manifest = manifest_of(write("text_prompt,quality\na,exact\nb,high\nc,exact\n"))
    workload = workload_of(TaskTable.of(manifest))
    assert workload.clip_kind.tolist() == [0, 1, 0]
    exact, high = workload.kinds
    assert (exact.quality, high.quality) == (Quality.EXACT, Quality.HIGH)
    assert exact.passes == 100
    assert 75 <= high.passes < 80
    tflop = STAGES[Stage.DENOISE].tflop
    assert tflop(high) / tflop(exact) == pytest.approx(high.passes / 100)
    measured = workload_of(TaskTable.of(manifest), passes={("high", 50): 61.5, ("high", 30): 20.0}).kinds
    assert [kind.passes for kind in measured] == [100, 61.5]
    assert TaskTable.of(manifest).clip(1).params.quality is Quality.HIGH
