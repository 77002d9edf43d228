"""A job that is hurt in every way, by real signals and real damage, and then finished by the same command."""

import os
import signal
import time

import pytest

from tests.chaos.harness import assert_all_is_there, wait_until


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
    assert_all_is_there(job, steps_repeated=5 + 2 * job.steps)
