"""Job files: their sections, the schema for editors, and the ready ones in jobs/."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from ovi_ray.errors import InputError
from ovi_ray.inputs.job_schema import job_keys, job_schema
from ovi_ray.inputs.job_spec import BatchSpec, PortableJob, Weights
from ovi_ray.inputs.job_summary import manifest_of, summarise
from ovi_ray.inputs.params import PARAM_FIELDS

JOBS = Path(__file__).parents[3] / "jobs"
READY = sorted(JOBS.glob("*/job.yaml"))


def write(folder, text):
    path = folder / "job.yaml"
    path.write_text(f"text_prompt: A fox runs\n{text}")
    return path


def problems_in(path):
    with pytest.raises(InputError) as caught:
        PortableJob.from_yaml(path)
    return {(problem.line, problem.field): problem for problem in caught.value.problems}


def test_sections_set_the_same_fields_as_the_top_level(tmp_path):
    grouped = PortableJob.from_yaml(
        write(tmp_path, "resources: {device: cpu, workers: 3}\npolicies: {retries: 4, checkpoint_s: 20}\n")
    )
    flat = PortableJob.from_yaml(write(tmp_path, "device: cpu\nworkers: 3\nretries: 4\ncheckpoint_s: 20\n"))
    assert grouped == flat
    assert (grouped.workers, grouped.retries, grouped.checkpoint_s) == (3, 4, 20)


def test_options_go_before_the_sections_of_a_file(tmp_path):
    path = write(tmp_path, "resources: {workers: many}\nsweep: {seed: 0-3}\n")
    job = PortableJob.from_yaml(path, {"workers": 2, "sweep": ["shift=3"]})
    assert (job.workers, job.sweep.values) == (2, {"shift": (3.0,)})


def test_every_problem_within_a_section_has_its_line_and_key(tmp_path):
    text = """\
workers: 2
resources:
  workers: 3
  wrokers: 2
  device: tpu
policies: 5
sweep:
  seeds: 1
  shift: [3, wide]
environment:
  A: 3
  "B C": "x"
  CUDA_VISIBLE_DEVICES: "0"
priority: 2000
prices: {a: 1}
"""
    problems = problems_in(write(tmp_path, text))
    assert set(problems) == {
        (4, "resources.workers"),
        (5, "resources.wrokers"),
        (6, "resources.device"),
        (7, "policies"),
        (9, "sweep.seeds"),
        (10, "sweep.shift"),
        (12, "environment.A"),
        (13, "environment.B C"),
        (14, "environment.CUDA_VISIBLE_DEVICES"),
        (15, "priority"),
        (16, "prices"),
    }
    assert "'workers'" in problems[5, "resources.wrokers"].expected
    assert "'seed'" in problems[9, "sweep.seeds"].expected


def test_a_key_that_stands_twice_in_a_section_is_refused(tmp_path):
    problems = problems_in(write(tmp_path, "policies:\n  retries: 1\n  retries: 2\n"))
    assert set(problems) == {(4, "policies.retries")}


def test_a_section_without_keys_counts_as_not_given(tmp_path):
    assert PortableJob.from_yaml(write(tmp_path, "resources:\nsweep:\n")).sweep is None


def test_folders_of_another_machine_are_not_looked_for(tmp_path):
    job = PortableJob.from_yaml(write(tmp_path, "ckpt_dir: /nowhere/ckpts\noutput_dir: out\n"))
    assert (str(job.ckpt_dir), str(job.output_dir)) == ("/nowhere/ckpts", str(tmp_path / "out"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.parent.name)
def test_every_ready_job_is_valid_and_fits_the_schema(path):
    job = PortableJob.from_yaml(path)
    assert len(manifest_of(job)) > 0
    jsonschema.validate(yaml.safe_load(path.read_text()), job_schema())


def test_the_ready_jobs_are_those_that_the_readme_lists():
    listed = re.findall(r"^\| `([a-z0-9-]+)/` \|", (JOBS / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.parent.name for path in READY]


def test_the_readme_explains_every_key_of_a_job_file():
    explained = re.findall(r"^\| `([a-z0-9_.]+)` \|", (JOBS / "README.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(job_keys())


def test_the_schema_in_the_folder_is_that_of_the_program():
    assert json.loads((JOBS / "job.schema.json").read_text()) == job_schema()


def test_the_schema_knows_every_key_and_refuses_others():
    schema = job_schema()
    known = schema["properties"].keys() | {
        f"{section}.{name}"
        for section in ("resources", "policies")
        for name in schema["properties"][section]["properties"]
    }
    assert set(job_keys()) <= known
    assert {"resources", "policies"} <= known
    assert set(PARAM_FIELDS) <= known
    for wrong in ({"sample_step": 3}, {"resources": {"wrokers": 1}}, {"sweep": {"sede": [1]}}, {"model_name": "1080p"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_summary_counts_clips_and_what_they_need(tmp_path):
    job = BatchSpec.from_options(
        text_prompt="A fox", sweep={"sample_steps": [10, 20], "seed": "0-4"}, model_name="960x960_10s", qint8=True
    )
    summary = summarise(job, manifest_of(job))
    assert (summary.rows, summary.combinations, summary.clips, len(summary.kinds)) == (1, 10, 10, 2)
    (needs,) = summary.models
    assert needs.name == "960x960_10s"
    assert 0 < needs.staged_gb < needs.resident_gb
    full = summarise(job.model_copy(update={"qint8": False}), manifest_of(job)).models[0]
    assert full.resident_gb > needs.resident_gb
    assert (full.pinned_gb, needs.pinned_gb) == (0, 0)
    streamed = summarise(job.model_copy(update={"qint8": False, "weights": Weights.STREAMED}), manifest_of(job)).models[
        0
    ]
    assert full.resident_gb - streamed.resident_gb == pytest.approx(23.32 - 2.88)
    assert streamed.pinned_gb > 23
