import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
from typer.testing import CliRunner

from ovi.stages import Stage
from ovi_ray.cli import app
from ovi_ray.errors import WorkersLost
from ovi_ray.output.progress_file import RunState, read_progress, write_progress
from ovi_ray.protocol.messages import Activity
from ovi_ray.rendering import RenderOptions
from ovi_ray.runtime.background_writer import WriteInterval
from ovi_ray.runtime.clock import SystemClock
from ovi_ray.runtime.progress_writer import JobCounts, ProgressWriter
from ovi_ray.storage.paths import to_location
from ovi_ray.submission.folder import FolderJob
from ovi_ray.submission.states import JobState
from tests.support.fake_executor import DIES, HANGS, Fails
from tests.support.rendered_jobs import ALWAYS, RenderingExecutor, render_job, write_rows
from tests.support.waiting import PATIENCE_S, wait_until


def status(folder, *options, code=0):
    result = CliRunner().invoke(app, ["status", str(folder), *options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout


def status_json(folder):
    return json.loads(status(folder, "--json"))


@pytest.fixture(params=["disk", pytest.param("store", marks=pytest.mark.s3)])
def out(request, tmp_path):
    return to_location(tmp_path if request.param == "disk" else request.getfixturevalue("s3_bucket")) / "out"


class ReportingExecutor(RenderingExecutor):
    """Its workers report steps, memory and backend."""

    def activities(self):
        return dict.fromkeys(self.running, Activity(done=3, total=50, memory_gb=41.5, attention_backend="fa3"))


@contextmanager
def held_at_the_third_clip(out, folder, workers=("w0",)):
    """A job in a thread whose third clip is denoised until the block ends, and fails then."""

    def script(worker, task, tries):
        if task.stage is not Stage.DENOISE or task.items != (2,):
            return None
        return HANGS if tries == 1 else Fails(message="it broke\nin detail")

    executor = ReportingExecutor(workers, script=script, clock=SystemClock())
    prompts = ["a fox", "a dog", "a cat"]
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(
            render_job, out, write_rows(folder, prompts), executor=executor, retries=0, speculation=False
        )
        try:
            wait_until(
                lambda: (found := read_progress(out)) is not None and found.done == 2 and found.running,
                give_up=lambda: "the job has ended" if job.done() else "",
            )
            yield
        finally:
            (held,) = executor.running.items()
            executor.stop(held[0], held[1].task)
            job.result(PATIENCE_S)


def test_a_job_tells_how_far_it_is_while_it_runs_and_when_it_has_ended(out, tmp_path):
    with held_at_the_third_clip(out, tmp_path, ("w0", "w1")):
        during, text = status_json(out), status(out)
    progress = during["progress"]
    assert during["state"] == "running"
    assert (progress["clips"], progress["done"], progress["running"], progress["state"]) == (3, 2, 1, "rendering")
    assert "2 of 3 done" in text
    lines = {device["state"]: device for device in progress["devices"]}
    busy, idle = lines["busy"], lines["idle"]
    assert (busy["node"], busy["device"], busy["memory_total_gb"]) == ("host", "cpu", 100.0)
    assert (busy["stage"], busy["unit"], busy["done"], busy["total"]) == ("denoise", "step", 3, 50)
    assert (busy["memory_gb"], busy["attention_backend"]) == (41.5, "fa3")
    assert busy["clip_id"] in text
    assert idle["idle_reason"]
    done = [device["work"]["items"] for device in progress["devices"]]
    assert {stage: sum(items.get(stage, 0) for items in done) for stage in Stage} == {
        Stage.ENCODE_TEXT: 5,
        Stage.ENCODE_FIRST_FRAME: 0,
        Stage.DENOISE: 2,
        Stage.DECODE: 2,
    }
    assert "denoise 2" in text
    after = status_json(out)
    assert (after["state"], after["progress"]["state"]) == ("failed", "ended")
    assert (after["progress"]["done"], after["progress"]["failed"], after["progress"]["run_done"]) == (2, 1, 2)
    assert after["progress"]["problems"][-1]["text"].endswith("failed: it broke")
    render_job(out, write_rows(tmp_path, ["a fox", "a dog", "a cat"]))  # the clip that failed is rendered now
    progress = read_progress(out)
    assert (progress.clips, progress.done, progress.failed, progress.run_done) == (3, 3, 0, 1)
    assert status_json(out)["state"] == "succeeded"


def test_a_run_that_never_had_a_worker_says_why_it_ended(tmp_path):
    out = to_location(tmp_path / "out")
    executor = RenderingExecutor(script=lambda worker, task, tries: DIES)
    with pytest.raises(WorkersLost):
        render_job(out, write_rows(tmp_path, ["a fox"]), executor=executor)
    found = status_json(out)
    assert (found["state"], found["progress"]["state"]) == ("failed", "ended")
    assert "no worker is left" in found["message"]


def test_a_run_that_was_ended_by_force_was_stopped(tmp_path):
    out = to_location(tmp_path / "out")
    out.mkdir()
    write = partial(write_progress, out)
    with (
        pytest.raises(KeyboardInterrupt),
        ProgressWriter(write, JobCounts(clips=1, done=0, failed=0), WriteInterval(seconds=3.0), print),
    ):
        raise KeyboardInterrupt
    assert FolderJob(out).status().state is JobState.STOPPED


def test_a_driver_in_another_process_is_watched_and_its_death_is_told(tmp_path):
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-m", "tests.support.rendered_jobs", folder]) as driver:
        try:
            wait_until(
                lambda: (found := read_progress(to_location(folder))) is not None and found.done == 1,
                give_up=lambda: "the driver has ended" if driver.poll() is not None else "",
            )
            found = status_json(folder)
        finally:
            driver.kill()
    assert found["state"] == "running"
    assert found["progress"]["running"] == 1
    found = status_json(folder)
    assert found["state"] == "failed"
    assert "killed" in found["message"]
    progress = found["progress"]
    assert (progress["done"], progress["running"], progress["remaining"], progress["devices"]) == (1, 0, None, [])
    text = status(folder, "--watch")  # a job that is over is shown once
    assert "died" in status(folder)
    assert "1 of 2 done" in text
    assert "left" not in text


def test_a_progress_that_is_late_is_written_with_the_end(tmp_path):
    out = to_location(tmp_path / "out")
    rare = RenderOptions(progress=WriteInterval(seconds=3600.0))
    render_job(out, write_rows(tmp_path, ["a fox", "a dog"]), options=rare)
    assert (read_progress(out).state, read_progress(out).done) == (RunState.ENDED, 2)


def test_nothing_is_written_into_a_folder_that_became_another_jobs(tmp_path):
    out = to_location(tmp_path / "out")

    def script(worker, task, tries):
        (out / "job.json").write_bytes(b'{"folder": "another"}')

    render_job(out, write_rows(tmp_path, ["a fox"]), executor=RenderingExecutor(script=script))
    assert read_progress(out) is None or read_progress(out).state is RunState.STARTING


def test_progress_of_another_version_counts_as_none(tmp_path):
    folder = to_location(tmp_path)
    assert read_progress(folder) is None
    (folder / "progress.json").write_bytes(b'{"state": "dancing"}')
    assert read_progress(folder) is None


def test_the_state_of_a_job_is_told_though_its_progress_is_of_another_version(tmp_path):
    out = to_location(tmp_path / "out")
    render_job(out, write_rows(tmp_path, ["a fox"]))
    (out / "progress.json").write_bytes(b'{"state": "dancing"}')
    result = CliRunner().invoke(app, ["status", str(out), "--json"])
    assert json.loads(result.stdout)["state"] == "succeeded"
    assert "not of this version" in result.stderr


def test_a_progress_that_is_read_is_the_one_that_was_written(tmp_path):
    render_job(to_location(tmp_path / "out"), write_rows(tmp_path, ["a fox"]), options=RenderOptions(progress=ALWAYS))
    progress = read_progress(to_location(tmp_path / "out"))
    write_progress(to_location(tmp_path), progress)
    assert read_progress(to_location(tmp_path), since=progress.updated_at) == progress
    assert read_progress(to_location(tmp_path), since=progress.updated_at + "~") is None


@pytest.mark.parametrize(("seconds", "share"), [(-1.0, 0.1), (1.0, 0.0), (1.0, 1.5), (float("nan"), 0.1)])
def test_intervals_out_of_range_are_refused(seconds, share):
    with pytest.raises(ValueError, match="expected"):
        WriteInterval(seconds=seconds, share=share)
