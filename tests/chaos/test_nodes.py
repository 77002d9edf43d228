"""Jobs on a cluster whose machines and storage fail."""

import contextlib
import os
import signal
import subprocess

import pytest

from tests.chaos.harness import assert_all_is_there, wait_until
from tests.chaos.nodes import workers_on

POISON = 1  # seed of the clip that kills


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
