"""`ovi-ray job validate | show | schema`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.inputs.job_schema import job_schema

JOBS = Path(__file__).parents[3] / "jobs"
SWEEP = JOBS / "seed-and-guidance-sweep" / "job.yaml"


def invoke(*arguments):
    return CliRunner().invoke(app, ["job", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.yaml"
    (tmp_path / "p.csv").write_text("text_prompt,seed\nA fox,seven\n")
    path.write_text("text_prompt: p.csv\nmodel_name: 720x720_5s\n")
    return path


def test_valid_jobs_end_with_0_and_their_number_of_clips():
    result = invoke("validate", SWEEP, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"valid": True, "jobs": [str(SWEEP)], "problems": []}


def test_problems_of_the_file_and_of_its_rows_are_told_for_all_files(broken, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("text_prompt: A fox runs\nseed: -1\n")
    result = invoke("validate", broken, other, SWEEP, "--json")
    assert result.exit_code == 2
    content = json.loads(result.stdout)
    assert content["jobs"] == [str(SWEEP)]
    assert [(Path(p["file"]).name, p["row"], p["line"], p["field"], p["value"]) for p in content["problems"]] == [
        ("p.csv", 1, 2, "seed", "'seven'"),
        ("other.yaml", None, 2, "seed", "-1"),
    ]


def test_a_job_is_shown_resolved_with_what_it_does_and_needs():
    content = json.loads(invoke("show", SWEEP, "--json").stdout)
    assert (content["rows"], content["combinations"], content["clips"]) == (2, 60, 120)
    assert content["job"]["sweep"]["seed"] == list(range(20))
    assert content["models"][0]["name"] == "720x720_5s"
    assert content["forecast"] is None


def test_a_job_with_a_cluster_profile_is_shown_with_its_cost_at_its_own_prices(tmp_path):
    path = JOBS / "mixed-vendor-night" / "job.yaml"
    cheap = tmp_path / "cheap.yaml"
    profile = JOBS.parent / "cluster" / "profiles" / "b.yaml"
    free = dict.fromkeys(("nvidia-80gb", "amd-192gb", "nvidia-24gb", "amd-unified", "nvidia-12gb"), 0)
    cheap.write_text(f"text_prompt: A fox runs\nresources: {json.dumps({'cluster': str(profile), 'prices': free})}\n")
    assert json.loads(invoke("show", path, "--json").stdout)["forecast"]["cost"] > 0
    assert json.loads(invoke("show", cheap, "--json").stdout)["forecast"]["cost"] == 0


def test_a_price_for_a_class_that_the_profile_does_not_have_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    profile = JOBS.parent / "cluster" / "profiles" / "a.yaml"
    path.write_text(f"text_prompt: A fox runs\ncluster: {profile}\nprices: {{nvidia-80g: 1}}\n")
    result = invoke("validate", path, "--json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert (result.exit_code, problem["field"]) == (2, "prices.nvidia-80g")
    assert "'nvidia-80gb'" in problem["expected"]


def test_the_text_form_names_where_each_value_comes_from():
    text = invoke("show", SWEEP).stdout
    assert "sample_steps              30  (line 6)" in text
    assert "(default)" in text


def test_the_schema_is_printed():
    assert json.loads(invoke("schema").stdout) == job_schema()
