"""A job that is hurt in every way, by real signals and real damage, and then finished by the same command."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.chaos.harness import ChaosJob, wait_until
from tests.chaos.nodes import Nodes, workers_on

STEPS = 6
POISON = 1  # seed of the clip that kills


@pytest.fixture(scope="module")
def nodes():
    with contextlib.closing(Nodes(2)) as nodes:
        yield nodes


@pytest.fixture
def make_job(tmp_path):
    """Makes jobs of a folder; what is left of their processes ends with the test."""
    with contextlib.ExitStack() as ends:

        def make(**options):
            job = ChaosJob(folder=tmp_path, steps=STEPS, **options)
            ends.callback(job.close)
            return job

        yield make


def kill_worker_at(job, stage):
    pid = wait_until(lambda: job.worker_at(stage))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in job.worker_pids())


def second_driver_is_refused(job):
    first, name = job.driver, job.output_path
    code = job.start().wait(60)
    refusal = job.said
    job.driver = first
    assert code == 2
    assert "OutputInUse" in refusal
    assert name != job.output_path


def assert_all_is_there(job, *, steps_repeated):
    figures = job.figures()
    assert figures.are_right, figures
    assert figures.denoise_steps_repeated <= steps_repeated
    assert not job.output.latents()
    assert not job.output.names("checkpoints")


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for a dozen processes to start, on however busy a machine
def test_whatever_is_killed_or_damaged_the_same_command_finishes_the_job_once(make_job):
    # A worker dies in each stage, then the driver while a clip is being decoded: its latents are there.
    job = make_job(clips=6)
    job.start()
    for stage in ("EncodeTexts", "Denoise", "Decode"):
        kill_worker_at(job, stage)
    second_driver_is_refused(job)
    wait_until(lambda: len(job.output.videos()) >= 2)
    wait_until(lambda: job.worker_at("Decode"))
    job.driver.kill()
    wait_until(lambda: not job.worker_pids(), timeout_s=30)

    # What is on disk is damaged.
    output = job.output
    assert output.latents()
    output.flip_a_byte(output.latents()[0])
    output.truncate(output.videos()[0])
    for rows in output.names("results")[:1]:
        output.truncate(rows, 100)

    # The next driver is asked to stop while it denoises.
    job.start()
    wait_until(lambda: job.worker_at("Denoise"))
    time.sleep(2 * job.step_s)
    job.driver.send_signal(signal.SIGTERM)
    assert job.finish() == 130, job.said
    assert "stopped" in job.said

    # And then the job is let be.
    job.start()
    assert job.finish() == 0, job.said
    # A step for each worker that died or was stopped at a denoise, and the two clips whose files were damaged.
    assert_all_is_there(job, steps_repeated=5 + 2 * STEPS)


@pytest.fixture
def small_disk(tmp_path):
    """An output folder on a disk of 4 MB."""
    (tmp_path / "out").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "out")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes rights that this process has not")
    yield tmp_path / "out"
    subprocess.run(["umount", "--lazy", str(tmp_path / "out")], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_pauses_the_job_and_costs_nothing(small_disk, nodes, make_job):
    job = make_job(clips=3, address=nodes.address)
    job.start()
    wait_until(job.output.videos)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    wait_until(lambda: "paused" in job.said)
    (small_disk / "filler").unlink()
    assert job.finish() == 0, job.said
    assert "goes on" in job.said
    assert_all_is_there(job, steps_repeated=0)


def run_until(job, *, ends, drivers=8):
    """The same command again, until it ends so; each time, other writes fail."""
    for _ in range(drivers):
        job.hurts["CHAOS_FAILING_WRITES"] = str(job.runs)
        job.start()
        code = job.finish()
        if code == ends:
            return
        assert code == 2, job.said  # its very first writes failed, which it says
    pytest.fail(f"{drivers} drivers have not ended well; the last one said: {job.said}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_a_write_in_five_fails_and_a_clip_kills_its_workers_the_others_are_finished(nodes, make_job):
    job = make_job(clips=3, address=nodes.address)
    job.hurts["CHAOS_POISON"] = str(POISON)
    run_until(job, ends=1)
    failed = [row for row in job.output.results().to_pylist() if row["status"] == "failed"]
    assert [row["seed"] for row in failed] == [POISON]
    assert "poison: 3 workers died, one after the other, while each was at its denoise" in failed[0]["error"]
    assert len(job.output.videos()) == job.clips - 1
    assert job.output.table("failed.parquet").column("meta_error").to_pylist() == [failed[0]["error"]]

    # What killed is mended: the clip is rendered, and nothing was denoised twice.
    del job.hurts["CHAOS_POISON"]
    run_until(job, ends=0)
    assert job.writes_failed()
    del job.hurts["CHAOS_FAILING_WRITES"]
    job.start()  # the clip that failed has two rows still, if the write that leaves one was made to fail
    assert job.finish() == 0, job.said
    assert_all_is_there(job, steps_repeated=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_dies_and_a_worker_that_freezes_cost_a_step_each_and_a_new_node_takes_part(nodes, make_job):
    job = make_job(clips=6, workers=2, address=nodes.address, silence_s=10.0, step_s=0.2)
    job.start()
    encoder = wait_until(lambda: job.worker_at("EncodeTexts"))
    wait_until(lambda: job.stage_of(encoder) == "Denoise")
    (other,) = wait_until(lambda: job.worker_pids() - {encoder})
    (node,) = [node for node in nodes.all() if encoder in workers_on(node, job)]
    nodes.kill(node, job)

    # The other worker makes again what was encoded there, and goes on; then it is frozen.
    wait_until(lambda: job.stage_of(other) == "EncodeTexts")
    wait_until(lambda: job.stage_of(other) == "Denoise")
    os.kill(other, signal.SIGSTOP)

    new = nodes.add()
    wait_until(lambda: any(job.stage_of(pid) == "Decode" for pid in workers_on(new, job)))
    assert job.finish() == 0, job.said
    assert other not in job.worker_pids()
    assert_all_is_there(job, steps_repeated=2)
