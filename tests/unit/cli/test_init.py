"""`ovi-ray init`: examples to begin with."""

from pathlib import Path

from typer.testing import CliRunner

from ovi_ray.cli import app
from tests.support.files import snapshot

ROOT = Path(__file__).parents[3]


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_examples_are_those_of_the_project_and_every_job_among_them_is_valid(tmp_path):
    told = call("init", tmp_path / "films").stderr
    assert f"ovi-ray render {tmp_path}/films/jobs/quickstart/job.yaml" in told
    for folder in ("jobs", "cluster/profiles"):
        assert contents(tmp_path / "films" / folder) == contents(ROOT / folder)
    jobs = sorted((tmp_path / "films" / "jobs").glob("*/job.yaml"))
    assert len(jobs) > 3
    call("job", "validate", *jobs)


def test_examples_that_are_there_already_stay_and_files_in_their_place_are_told(tmp_path):
    call("init", tmp_path)
    job = tmp_path / "jobs" / "quickstart" / "job.yaml"
    (tmp_path / "jobs" / "README.md").unlink()
    assert "1 file copied" in call("init", tmp_path).stderr
    job.write_text("mine", encoding="utf-8")
    before = snapshot(tmp_path)
    assert "jobs/quickstart/job.yaml is other than the examples" in call("init", tmp_path, code=2).stderr
    assert snapshot(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "DIR is" in call("init", tmp_path / "file" / "films", code=2).stderr
