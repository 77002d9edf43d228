"""Jobs on a cluster whose machines and storage fail."""

import os
import signal

import pytest

from tests.chaos.harness import assert_all_is_there
from tests.chaos.nodes import workers_on
from tests.support.waiting import under_load

pytestmark = [pytest.mark.ray, pytest.mark.slow]

POISON = 1  # seed of the clip that kills its workers


def run_until(job, *, ends, drivers=8):
    """Run the same command until it ends with this exit code; each time, other writes fail."""
    for _ in range(drivers):
        job.hooks["failing_writes"] = job.runs
        job.start()
        code = job.finish()
        if code == ends:
            return
        assert code == 2, job.said  # its very first writes failed, which it reports
    pytest.fail(f"none of {drivers} drivers has ended with {ends}; the last one said: {job.said}")


def test_where_a_write_in_five_fails_and_a_clip_kills_its_workers_the_others_are_finished(nodes, make_job):
    job = make_job(clips=3, address=nodes.address)
    job.hooks["poison"] = POISON
    run_until(job, ends=1)
    failed = [row for row in job.output.results().to_pylist() if row["status"] == "failed"]
    assert [row["seed"] for row in failed] == [POISON]
    assert "poison: 3 workers died one after the other, each while it ran the denoise" in failed[0]["error"]
    assert len(job.output.videos()) == job.clips - 1
    assert job.output.table("failed.parquet").column("meta_error").to_pylist() == [failed[0]["error"]]

    # Without the poison the clip is rendered, and nothing is denoised twice.
    del job.hooks["poison"]
    run_until(job, ends=0)
    assert job.writes_failed()
    del job.hooks["failing_writes"]
    job.start()  # the failed clip may still have two rows, if the write that leaves one failed
    assert job.finish() == 0, job.said
    assert_all_is_there(job, steps_repeated=0)


def test_a_node_that_dies_and_a_worker_that_freezes_cost_a_step_each_and_a_new_node_takes_part(nodes, make_job):
    job = make_job(clips=6, workers=2, address=nodes.address, silence_s=under_load(10.0), step_s=0.1)
    for stage in ("EncodeTexts", "Denoise"):
        job.hold(stage)
    job.start()

    # The node of the worker that has encoded the texts dies while that worker denoises.
    encoder = job.wait_for_held("EncodeTexts")
    job.let_go(encoder)
    job.wait_until(lambda: encoder in job.held_at("Denoise"))
    (other,) = job.wait_until(lambda: job.ready_pids() - {encoder})
    (node,) = [node for node in nodes.all() if encoder in workers_on(node, job)]
    nodes.kill(node, job)
    job.release("Denoise")  # the other worker may be at a clip whose texts it had fetched in time

    # The other worker encodes the lost texts again and denoises; then it freezes.
    job.wait_until(lambda: other in job.held_at("EncodeTexts"))
    job.hold("Denoise")
    job.hold("Decode")
    job.release("EncodeTexts")
    job.wait_until(lambda: other in job.held_at("Denoise"))
    os.kill(other, signal.SIGSTOP)
    job.release("Denoise")

    new = nodes.add()
    job.wait_until(lambda: workers_on(new, job) & job.held_at("Decode"))
    job.release("Decode")
    assert job.finish() == 0, job.said
    assert other not in job.worker_pids()
    assert_all_is_there(job, steps_repeated=2)
