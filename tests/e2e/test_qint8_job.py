"""A job with 8-bit weights from the prompt to the video."""

import pytest

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.rendering import render
from tests.support.jobs import probe_clip, result_rows


@pytest.fixture
def job(tiny_dir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na dog\n")

    def make(**options):
        return JobSpec.from_options(
            prompts=prompts,
            ckpt_dir=tiny_dir,
            output_dir=tmp_path / "out",
            sample_steps=2,
            slg_layer=1,
            video_frame_height_width="64x64",
            device="cpu",
            **options,
        )

    return make


@pytest.mark.ray
@pytest.mark.slow
def test_a_lossy_qint8_job_renders_and_its_rows_and_videos_say_so(job, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = render(prepare(job(qint8=True, attention="sdpa_math", quality="fast")))
    assert (result.done, result.failed) == (2, 0)
    rows = result_rows(tmp_path / "out")
    assert {(row["dtype"], row["attention_backend"]) for row in rows} == {("bfloat16+qint8", "sdpa_math")}
    for row in rows:
        tags = probe_clip(tmp_path / "out" / row["video_path"]).parameters
        assert (row["quality"], tags["quality"]) == ("fast", "fast")
        assert row["audits"] >= 1
        assert row["video_loss"] == tags["rendered"]["video_loss"]
        assert "fp8_feed_forward: the weights are 8-bit integers already" in row["left_out"]
    (quantized,) = (tmp_path / "cache" / "ovi-ray" / "qint8").iterdir()
    assert quantized.name.startswith("model-")


def test_a_clip_in_8_bits_is_another_clip(job):
    ids = [prepare(job(**options)).manifest.table.column("clip_id")[0].as_py() for options in ({}, {"qint8": True})]
    assert ids[0] != ids[1]


def test_attention_and_offloading_that_change_no_pixels_leave_the_clip_the_same(job):
    options = ({}, {"attention": "sdpa_math", "cpu_offload": True})
    ids = {prepare(job(**changes)).manifest.table.column("clip_id")[0].as_py() for changes in options}
    assert len(ids) == 1
