"""A job whose processes are killed and whose files are damaged, finished by the same command."""

import os
import signal

import pytest

from tests.chaos.harness import assert_all_is_there
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STAGES = ("EncodeTexts", "Denoise", "Decode")


def kill_worker_at(job, stage):
    pid = job.wait_for_held(stage)
    os.kill(pid, signal.SIGKILL)
    job.wait_until(lambda: pid not in job.worker_pids())
    job.release(stage)


def assert_second_driver_is_refused(job):
    first = job.driver
    code = job.start().wait(PATIENCE_S)
    assert (code, "OutputInUse" in job.said) == (2, True), job.said
    job.driver = first


def test_whatever_is_killed_or_damaged_the_same_command_finishes_the_job_once(make_job):
    job = make_job(clips=6)
    for stage in STAGES:
        job.hold(stage)

    # A worker dies in each stage.
    job.start()
    job.wait_for_held("EncodeTexts")
    assert_second_driver_is_refused(job)
    for stage in STAGES:
        kill_worker_at(job, stage)

    # The driver dies while the third clip is being decoded: its latents are on disk.
    job.hold("Decode")
    for videos in (1, 2):
        job.let_go(job.wait_for_held("Decode"))
        job.wait_until(lambda videos=videos: len(job.output.videos()) >= videos)
    job.wait_for_held("Decode")
    job.driver.kill()
    job.driver.wait()
    job.release("Decode")
    wait_until(lambda: not job.worker_pids())

    # Files are damaged.
    output = job.output
    assert output.latents()
    output.flip_a_byte(output.latents()[0])
    output.truncate(output.videos()[0])
    for rows in output.names("results")[:1]:
        output.truncate(rows, 100)

    # The next driver is asked to stop during a denoise.
    job.hold("Denoise")
    job.start()
    job.wait_for_held("Denoise")
    job.driver.send_signal(signal.SIGTERM)
    job.release("Denoise")
    assert job.finish() == 130, job.said

    # The last driver is left alone.
    job.start()
    assert job.finish() == 0, job.said
    # A step for each worker that died or was stopped in a denoise, and two clips whose files were damaged.
    assert_all_is_there(job, steps_repeated=5 + 2 * job.steps)
