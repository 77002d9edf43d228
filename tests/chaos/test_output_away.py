"""A job whose output fails for a while and then is full, and one of whose images cannot be read."""

import contextlib
import json
import subprocess

import pytest
from PIL import Image

from tests.support.files import UNREADABLE

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def is_small_disk(tmp_path):
    """Whether the output folder is on a disk of 4 MB, which needs root."""
    (tmp_path / "out").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "out")]
    mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    yield mounted
    if mounted:
        subprocess.run(["umount", "--lazy", str(tmp_path / "out")], check=True)


@contextlib.contextmanager
def full_disk(job, tmp_path, *, really):
    """No byte can be written to the output: truly, or for the programs of the job."""
    if really:
        filler = tmp_path / "out" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()
    else:
        job.let_output_fail("ENOSPC")
        yield
        job.let_output_work()


def let_all_go(job, stage):
    for worker in job.held_at(stage):
        job.let_go(worker)


def times_said(job, word):
    return sum(line.startswith(word) for line in job.said.splitlines())


def test_an_output_that_fails_or_is_full_costs_nothing_and_an_image_that_cannot_be_read_fails_its_clip_alone(
    is_small_disk, make_job, tmp_path
):
    job, image = make_job(clips=3), tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    rows = [json.loads(line) for line in job.prompts.read_text(encoding="utf-8").splitlines()]
    rows.append({**rows[0], "image_path": str(image), "seed": 99})
    job.prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for stage in ("EncodeTexts", "Decode"):
        job.hold(stage)

    job.start()
    job.wait_for_held("EncodeTexts")
    image.unlink()
    image.symlink_to(UNREADABLE)
    job.release("EncodeTexts")

    decoder = job.wait_for_held("Decode")
    job.let_output_fail("EACCES")
    job.let_go(decoder)
    job.wait_until(lambda: times_said(job, "paused") == 1)
    job.let_output_work()
    job.wait_until(lambda: job.output.videos() or let_all_go(job, "Decode"))  # the decode may be made again

    job.wait_for_held("Decode")
    with full_disk(job, tmp_path, really=is_small_disk):
        job.release("Decode")
        job.wait_until(lambda: times_said(job, "paused") >= 2)
    assert job.finish() == 1, job.said

    ends = {row["seed"]: row for row in job.output.results().to_pylist()}
    assert {seed: row["status"] for seed, row in ends.items()} == {0: "done", 1: "done", 2: "done", 99: "failed"}
    assert str(image) in ends[99]["error"]
    assert times_said(job, "resumed") == times_said(job, "paused")  # files that are given up make room, for a moment
    paused = [line for line in job.said.splitlines() if line.startswith("paused")]
    assert all(job.out in line and str(image) not in line for line in paused)
    assert job.steps_done() == 3 * job.steps
    assert len(job.output.videos()) == 3
    assert not job.output.names("broken")
