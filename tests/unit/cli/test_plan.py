"""`ovi-ray plan`."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.output.result_row import RESULTS_SCHEMA

PROFILES = Path(__file__).parents[3] / "cluster" / "profiles"
START = datetime(2026, 3, 1, tzinfo=UTC)


def plan(*arguments, code=0):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\na dog\na cat\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_every_profile_in_the_repository_can_be_planned_on(prompts, name):
    planned = json.loads(
        plan(prompts, "--cluster", PROFILES / f"{name}.yaml", "--each-example-n-times", 4, "--json").stdout
    )
    assert (planned["clips"], planned["texts"]) == (12, 5)
    assert planned["eta_s"] >= planned["bound_s"] > 0
    assert planned["cost"] > 0
    assert planned["comparison"]["placement_saves"] == 1 - planned["eta_s"] / planned["comparison"]["whole_clips_s"]
    assert (planned["comparison"]["helpers"] == ["nvidia-12gb"]) is (name in "bd")
    if name in "bd":
        without_s, saves = planned["comparison"]["without_helpers_s"], planned["comparison"]["helpers_save"]
        assert saves == 1 - planned["eta_s"] / without_s
    assert sum(part["device_hours"] for part in planned["classes"]) > 0


def test_a_plan_counts_on_copies_only_where_the_job_lets_idle_devices_run_them(tmp_path):
    (tmp_path / "fox.txt").write_text("a fox\n", encoding="utf-8")
    times = {}
    for speculation in (True, False):
        (tmp_path / "job.yaml").write_text(
            f"text_prompt: fox.txt\noutput_dir: out\npolicies:\n  speculation: {str(speculation).lower()}\n",
            encoding="utf-8",
        )
        arguments = ("--cluster", PROFILES / "b.yaml", "--each-example-n-times", 5)
        times[speculation] = json.loads(plan(tmp_path / "job.yaml", *arguments, "--json").stdout)
    assert times[True]["eta_s"] < times[False]["eta_s"]
    assert times[True]["comparison"]["placed_s"] < times[False]["comparison"]["placed_s"]
    assert times[True]["comparison"]["whole_clips_s"] == times[False]["comparison"]["whole_clips_s"]


def test_the_plan_is_printed_as_text(prompts):
    text = plan(prompts, "--cluster", PROFILES / "c.yaml").stdout
    assert "3 clips, 5 distinct texts" in text
    assert "nvidia-24gb" in text
    assert "a queue of whole clips, each device pulling the next" in text
    assert "bottleneck: denoise on nvidia-24gb; twice as fast would end it" in text


LONG = "She walks slowly over the misty valley " * 8 + "<AUDCAP>birdsong<ENDAUDCAP>"


def test_prompts_longer_than_the_text_encoder_of_a_checkpoint_are_counted(tmp_path, tiny_dir):
    path = tmp_path / "p.txt"
    path.write_text(f"a fox\n{LONG}\n", encoding="utf-8")
    planned = plan(
        path, "--cluster", PROFILES / "a.yaml", "--ckpt-dir", tiny_dir, "--model-name", "720x720_5s", "--json"
    )
    notes = [note for note in json.loads(planned.stdout)["notes"] if "prompt of" in note]
    assert len(notes) == 1
    assert notes[0].startswith("row 2 has a prompt of")
    assert f"note: {notes[0]}" in planned.stderr


def test_the_checkpoint_of_a_job_file_counts_too_and_need_not_exist(tmp_path, tiny_dir):
    for folder, noted in ((tiny_dir, True), (tmp_path / "nowhere", False)):
        (tmp_path / "job.yaml").write_text(f"prompt: {LONG}\nckpt_dir: {folder}\noutput_dir: out\n", encoding="utf-8")
        planned = json.loads(plan(tmp_path / "job.yaml", "--cluster", PROFILES / "a.yaml", "--json").stdout)
        assert any(note.startswith("row 1 has a prompt of") for note in planned["notes"]) is noted


def test_a_prompt_can_be_planned_without_a_list():
    planned = json.loads(plan("--prompt", "fox", "--cluster", PROFILES / "a.yaml", "--json").stdout)
    assert (planned["clips"], planned["notes"]) == (1, [])


def test_a_timeline_is_written(prompts, tmp_path):
    plan(prompts, "--cluster", PROFILES / "a.yaml", "--timeline", tmp_path / "t.svg")
    assert "nvidia-80gb-0" in (tmp_path / "t.svg").read_text(encoding="utf-8")


def result_row(number, **changes):
    facts = {field.name: None for field in RESULTS_SCHEMA} | {
        "clip_id": str(number),
        "row": number,
        "repeat": 0,
        "text_prompt": "a fox",
        "prompt": "a fox",
        "seed": 1,
        "model_name": "720x720_5s",
        "sample_steps": 50,
        "solver_name": "unipc",
        "height": 704,
        "width": 704,
        "status": "done",
        "dtype": "bfloat16",
        "attempts": 1,
        "encode_s": 1.0,
        "denoise_s": 80.0,
        "decode_s": 9.0,
        "finished_at": START + timedelta(seconds=90 * (number + 1)),
    }
    return facts | changes


def test_a_lossy_job_takes_fewer_passes_and_as_many_as_were_measured_where_there_are_clips_of_its_quality(
    prompts, tmp_path
):
    rows = [result_row(0, quality="high", passes=40), result_row(1, quality="high", passes=44)]
    (tmp_path / "out" / "results").mkdir(parents=True)
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA), tmp_path / "out" / "results" / "part-0.parquet"
    )
    cluster = ("--cluster", PROFILES / "a.yaml", "--each-example-n-times", 30, "--json")
    exact = json.loads(plan(prompts, *cluster).stdout)
    high = json.loads(plan(prompts, *cluster, "--quality", "high").stdout)
    measured = json.loads(plan(prompts, *cluster, "--quality", "high", "--actual", tmp_path / "out").stdout)
    assert (exact["qualities"], high["qualities"]) == ({"exact": 90}, {"high": 90})
    assert exact["eta_s"] > high["eta_s"] > measured["eta_s"]


def test_the_plan_is_compared_with_what_the_job_took(prompts, tmp_path):
    rows = [result_row(0), result_row(1), result_row(2, status="failed", error="it broke", decode_s=None)]
    (tmp_path / "out" / "results").mkdir(parents=True)
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA), tmp_path / "out" / "results" / "part-0.parquet"
    )
    planned = json.loads(plan(prompts, "--cluster", PROFILES / "a.yaml", "--actual", tmp_path / "out", "--json").stdout)
    actual = planned["actual"]
    assert (actual["clips"], actual["failed"], actual["seconds"]) == (2, 1, 180.0)
    assert actual["stage_s"] == {"encode": 1.0, "denoise": 80.0, "decode": 9.0}
    assert actual["clips_per_hour"] == pytest.approx(40.0)


def test_a_folder_without_results_is_refused(prompts, tmp_path):
    message = plan(prompts, "--cluster", PROFILES / "a.yaml", "--actual", tmp_path, code=2).stderr
    assert "no results" in message


def test_every_problem_of_a_profile_is_reported(prompts, tmp_path):
    profile = tmp_path / "bad.yaml"
    profile.write_text(
        "name: bad\ndevices:\n  gpu:\n    count: 0\n    vendor: nvidia\n    memory: 24\n    memory_gb: 24\n"
        "    load_gb_per_s: -1\n    tflops: {encode_text: 1, encode_first_frame: 1, denoise: 1, decode: 1}\n",
        encoding="utf-8",
    )
    message = plan(prompts, "--cluster", profile, code=2).stderr
    for words in ("devices.gpu.count", "devices.gpu.memory", "devices.gpu.load_gb_per_s", "3 problems"):
        assert words in message


def test_a_model_that_fits_nowhere_says_which_stage_and_why_not_on_each_device(prompts, tmp_path):
    profile = tmp_path / "small.yaml"
    profile.write_text(
        "name: small\ndevices:\n  gpu:\n    count: 1\n    vendor: nvidia\n    memory_gb: 14\n    load_gb_per_s: 1\n"
        "    tflops: {encode_text: 1, encode_first_frame: 1, denoise: 1, decode: 1}\n",
        encoding="utf-8",
    )
    message = plan(prompts, "--cluster", profile, code=2).stderr
    assert "denoise of 720x720_5s" in message
    assert "gpu has 14.0 GB" in message


def test_bad_prompts_are_reported_as_for_rendering(tmp_path):
    (tmp_path / "p.csv").write_text("text_prompt,seed\na fox,x\n", encoding="utf-8")
    message = plan(tmp_path / "p.csv", "--cluster", PROFILES / "a.yaml", code=2).stderr
    assert "row 1" in message
    assert "seed" in message
