"""A job whose output fails for a while, and one of whose images cannot be read."""

import json

import pytest
from PIL import Image

from tests.support.files import UNREADABLE

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_an_output_that_fails_costs_nothing_and_an_image_that_cannot_be_read_fails_its_clip_alone(make_job, tmp_path):
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
    job.wait_for_held("Decode")
    job.let_output_fail("EACCES")
    job.release("Decode")
    job.wait_until(lambda: "paused" in job.said)
    job.let_output_work()
    assert job.finish() == 1, job.said

    ends = {row["seed"]: row for row in job.output.results().to_pylist()}
    assert {seed: row["status"] for seed, row in ends.items()} == {0: "done", 1: "done", 2: "done", 99: "failed"}
    assert str(image) in ends[99]["error"]
    assert "resumed" in job.said
    paused = [line for line in job.said.splitlines() if line.startswith("paused")]
    assert all(job.out in line and str(image) not in line for line in paused)
    assert job.steps_done() == 3 * job.steps
    assert len(job.output.videos()) == 3
    assert not job.output.names("broken")
