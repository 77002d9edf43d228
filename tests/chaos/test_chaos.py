"""A job that is hurt in every way, by real signals and real damage, and then finished by the same command."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.chaos.harness import ChaosJob, wait_until

STEPS = 6


@pytest.fixture
def job(tmp_path):
    job = ChaosJob(folder=tmp_path, clips=6, steps=STEPS)
    yield job
    job.close()


def kill_worker_at(job, stage):
    pid = wait_until(lambda: job.worker_at(stage))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in job.worker_pids())


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def second_driver_is_refused(job):
    first, name = job.driver, job.output_path
    code = job.start().wait(60)
    refusal = job.output
    job.driver = first
    assert code == 2
    assert "OutputInUse" in refusal
    assert name != job.output_path


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for a dozen processes to start, on however busy a machine
def test_whatever_is_killed_or_damaged_the_same_command_finishes_the_job_once(job):
    # A worker dies in each stage, then the driver, while a clip is being decoded: its latents are there.
    job.start()
    for stage in ("EncodeTexts", "Denoise", "Decode"):
        kill_worker_at(job, stage)
    second_driver_is_refused(job)
    wait_until(lambda: len(job.videos()) >= 2)
    wait_until(lambda: job.worker_at("Decode"))
    job.driver.kill()
    wait_until(lambda: not job.worker_pids(), timeout_s=30)

    # What is on disk is damaged.
    latents = list((job.out / "latents").glob("*.safetensors"))
    assert latents
    flip_a_byte(latents[0])
    os.truncate(job.videos()[0], 1000)
    broken_rows = sorted((job.out / "results").glob("part-*"))
    if broken_rows:
        os.truncate(broken_rows[0], 100)

    # The next driver is asked to stop while it denoises.
    job.start()
    wait_until(lambda: job.worker_at("Denoise"))
    time.sleep(2 * job.step_s)
    job.driver.send_signal(signal.SIGTERM)
    assert job.finish() == 130, job.output
    assert "stopped" in job.output

    # And then the job is let be.
    job.start()
    assert job.finish() == 0, job.output
    figures = job.figures()
    assert (figures.clips, figures.rows, figures.files) == (6, 6, 6)
    assert (figures.duplicates, figures.lost, figures.undecodable) == (0, 0, 0)
    # A step for each worker that died or was stopped at a denoise, and the two clips whose files were damaged.
    assert figures.denoise_steps_repeated <= 5 + 2 * STEPS
    assert not list((job.out / "latents").iterdir())
    assert not list((job.out / "checkpoints").iterdir())


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
def test_a_full_disk_pauses_the_job_and_costs_nothing(small_disk, tmp_path):
    job = ChaosJob(folder=tmp_path, clips=3, steps=STEPS)
    try:
        job.start()
        wait_until(job.videos)
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        wait_until(lambda: "paused" in job.output)
        (small_disk / "filler").unlink()
        assert job.finish() == 0, job.output
        assert "goes on" in job.output
        figures = job.figures()
    finally:
        job.close()
    assert (figures.rows, figures.files, figures.undecodable, figures.denoise_steps_repeated) == (3, 3, 0, 0)
