"""Whole jobs through the command line, on a real local Ray with the small golden checkpoint."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovi import OviPipeline
from ovi.config import SamplingParams, SolverName
from ovi.types import PromptEmbeds
from tests.support.cli import ROOT, WITHOUT_POSIX, ovi_ray, ovi_ray_here
from tests.support.jobs import probe_clip, result_rows, write_prompts
from tests.support.report_pages import clips_of
from tests.support.worker_hooks import hooked_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished_job(tiny_dir, first_frame_path, tmp_path_factory):
    """A job with every kind of clip, by a driver that has nothing that Windows has not."""
    folder = tmp_path_factory.mktemp("job")
    out = folder / "takes [" / "final] [b]v2"  # what rich's markup would take for tags
    first_frame = folder / "first.png"
    first_frame.write_bytes(first_frame_path.read_bytes())
    start = "A long prompt whose first fifty characters are all the same, "
    prompts = write_prompts(
        folder / "prompts.csv",
        {"text_prompt": start + "a fox. Audio: wind"},
        {"text_prompt": start + "a dog."},
        {"text_prompt": "From an [/b] image.", "image_path": "first.png"},
        {"text_prompt": "Another model, size and solver.", "model_name": "960x960_5s", "solver_name": "dpm++"},
        {"text_prompt": "With its own seed.", "seed": "77", "video_frame_height_width": "1280x704"},
    )
    result = ovi_ray(
        *("render", prompts, "--ckpt-dir", tiny_dir, "--out", out, "--sample-steps", 2, "--workers", 2),
        *("--each-example-n-times", 2, "--dtype", "float32", "--json", "--explain", "--latency", "--keep-latents"),
        "--no-speculation",  # on a busy machine a copy would be a second attempt
        program=WITHOUT_POSIX,
        environment=hooked_environment(folder / "log", meet=1),
    )
    return out, result


def test_every_clip_is_a_playable_video_with_sound(finished_job):
    out, _ = finished_job
    rows = result_rows(out)
    assert [row["status"] for row in rows] == ["done"] * 10
    assert {path.name for path in (out / "videos").iterdir()} == {f"{row['clip_id']}.mp4" for row in rows}
    for row in rows:
        info = probe_clip(out / row["video_path"])
        assert (info.width, info.height) == (row["width"], row["height"])
        assert info.parameters["clip_id"] == row["clip_id"]
        assert info.parameters["seed"] == row["seed"]


def test_prompts_with_the_same_beginning_do_not_collide_and_seeds_differ(finished_job):
    rows = result_rows(finished_job[0])
    assert len({row["clip_id"] for row in rows}) == 10
    assert len({row["seed"] for row in rows}) == 10
    assert [(row["row"], row["repeat"], row["seed"]) for row in rows][-2:] == [(5, 0, 77), (5, 1, 78)]


def test_the_row_says_what_ran_where(finished_job):
    for row in result_rows(finished_job[0]):
        assert row["worker"] in ("w0", "w1")
        assert (row["device"], row["dtype"], row["attempts"]) == ("cpu", "float32", 1)
        assert row["attention_backend"].startswith("sdpa")
        assert min(row["encode_s"], row["denoise_s"], row["decode_s"]) > 0
        assert row["video_bytes"] == (finished_job[0] / row["video_path"]).stat().st_size


def test_clips_that_two_workers_shared_have_the_latents_of_one(finished_job, tiny_dir, assert_close_to_std):
    """But for rounding: the texts of the job were encoded in one batch. `unit/ovi/test_partner.py` compares the bits."""
    out, _ = finished_job
    shared = [row for row in result_rows(out) if row["paired_with"]]
    assert all({row["worker"], row["paired_with"]} == {"w0", "w1"} for row in shared)
    row, size = shared[0], (shared[0]["height"], shared[0]["width"])
    pipeline = OviPipeline.from_pretrained(tiny_dir, row["model_name"], device="cpu", dtype=torch.float32)
    params = SamplingParams(
        sample_steps=2, seed=row["seed"], solver_name=SolverName(row["solver_name"]), video_frame_height_width=size
    )
    texts = (row["prompt"], params.video_negative_prompt, params.audio_negative_prompt)
    positive, video_negative, audio_negative = pipeline.encode_text(texts)
    embeds = PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)
    first_frame = pipeline.encode_first_frame(row["image_path"], size) if row["image_path"] else None
    latents = pipeline.denoise(embeds, params, first_frame=first_frame)
    kept = load_file(out / "latents" / f"{row['clip_id']}.safetensors")
    assert_close_to_std(kept["video"], latents.video)
    assert_close_to_std(kept["audio"], latents.audio)


def test_the_outcome_is_printed_as_json_and_decisions_are_explained(finished_job):
    _, result = finished_job
    outcome = json.loads(result.stdout)
    assert (outcome["clips"], outcome["done"], outcome["failed"], outcome["finished_before"]) == (10, 10, 0, 0)
    assert "denoise" in result.stderr
    assert "because" in result.stderr
    assert "audio tag" in result.stderr  # the note that a prompt was rewritten


def test_paths_are_told_as_they_are(finished_job):
    out, result = finished_job
    assert f"videos {out / 'videos'}  report {out / 'report.html'}" in result.stderr
    assert json.loads(result.stdout)["output_dir"] == str(out)


def test_the_report_shows_every_clip(finished_job):
    out, _ = finished_job
    shown = {
        clip["clip_id"]: clip["video_path"] for clip in clips_of((out / "report.html").read_text(encoding="utf-8"))
    }
    for row in result_rows(out):
        assert shown[row["clip_id"]] == row["video_path"]
        assert (out / "posters" / f"{row['clip_id']}.jpg").stat().st_size > 0


def test_its_decisions_are_explained_and_come_out_the_same_when_replayed(finished_job):
    out, _ = finished_job
    replayed = json.loads(ovi_ray_here("explain", out, "--verify", "--json").stdout)
    assert replayed["divergence"] is None
    assert replayed["actions"] > 9
    events = (out / "events.jsonl").read_text(encoding="utf-8")
    assert events.count('"DeviceFree"') == 10  # each video is written while its device may go on
    glance = json.loads(ovi_ray_here("explain", out, "--json").stdout)
    assert (glance["done"], glance["failed"], glance["was_killed"]) == (10, 0, False)
    assert {worker["slot"] for worker in glance["workers"]} <= {"w0", "w1"}
    clip_id = result_rows(out)[0]["clip_id"]
    life = json.loads(ovi_ray_here("explain", out, "--clip", clip_id[:10], "--json").stdout)
    own = [task for task in life["tasks"] if not task["assists"]]
    assert [task["stage"] for task in own] == ["encode_text", "denoise", "decode"]
    assert {task["outcome"] for task in own} == {"done"}
    assert f"clip {clip_id} done" in (out / "run.log").read_text(encoding="utf-8")


def test_the_same_command_again_renders_only_what_is_missing(finished_job, tiny_dir):
    out, _ = finished_job
    before = {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    lost = result_rows(out)[0]
    (out / lost["video_path"]).unlink()
    result = ovi_ray(
        *("render", out.parents[1] / "prompts.csv", "--ckpt-dir", tiny_dir, "--out", out, "--sample-steps", 2),
        *("--each-example-n-times", 2, "--dtype", "float32", "--workers", 1, "--detach", "--json"),
        environment={"PYTHONPATH": str(ROOT)},  # the program is detached from the working folder; Ray's hook is in it
    )
    driver = json.loads(result.stdout)
    assert os.getsid(driver["pid"]) == driver["pid"] != os.getsid(0)  # no terminal can end it
    ovi_ray_here("wait", out)
    outcome = Path(driver["log"]).read_text(encoding="utf-8")
    assert re.search(r"\b1 rendered\b.*\b9 finished before\b", outcome), outcome
    after = {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [f"{lost['clip_id']}.mp4"]
    assert len(result_rows(out)) == 10


def test_a_manifest_and_a_job_file_render_the_same_clips(finished_job, tiny_dir, tmp_path):
    out, _ = finished_job
    job = tmp_path / "job.yaml"
    job.write_text(
        f"prompts: {out / 'manifest.parquet'}\nckpt_dir: {tiny_dir}\noutput_dir: {out}\ndtype: float32\n",
        encoding="utf-8",
    )
    outcome = json.loads(ovi_ray_here("render", job, "--json").stdout)
    assert (outcome["clips"], outcome["done"], outcome["finished_before"]) == (10, 0, 10)


def test_a_clip_that_fails_fails_alone(tiny_dir, first_frame_path, tmp_path):
    """An image is deleted after the check, a guidance overflows, and a GPU fails in the middle of the job."""
    image = tmp_path / "first.png"
    image.write_bytes(first_frame_path.read_bytes())
    prompts = write_prompts(
        tmp_path / "prompts.csv",
        {"text_prompt": "a fox"},
        {"text_prompt": "a dog", "image_path": "first.png"},
        {"text_prompt": "a cat", "video_guidance_scale": "1e300"},
        {"text_prompt": "an owl", "seed": "7"},
    )
    result = ovi_ray(
        *("render", prompts, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--sample-steps", 2),
        code=1,
        environment=hooked_environment(tmp_path / "log", remove=image, device_fails=7),
    )
    done, failed, overflown, owl = result_rows(tmp_path / "out")
    assert [row["status"] for row in (done, failed, overflown, owl)] == ["done", "failed", "failed", "done"]
    assert "the video latents are not finite numbers, first after step 1 of 2" in overflown["error"]
    assert (overflown["attempts"], overflown["video_path"]) == (3, None)  # another worker might have done better
    assert "row 3: video_guidance_scale 1e+300 is unusual" in result.stderr
    assert (owl["attempts"], owl["worker"]) == (2, "w0.1")
    assert "w0 was ended after denoise, because its device failed: w0.1 replaces it" in result.stderr
    assert "first.png" in failed["error"]
    assert failed["video_path"] is None
    assert "2 failed" in result.stderr
    assert "first.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_declared_devices_get_the_work_that_they_are_declared_for(tiny_dir, tmp_path):
    """One worker does everything; a slow one, which may only encode and decode, takes decodes off the other."""
    prompts = write_prompts(tmp_path / "prompts.csv", *({"text_prompt": f"clip {number}"} for number in range(8)))
    ovi_ray(
        *("render", prompts, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--sample-steps", 4),
        *("--cluster", ROOT / "cluster" / "profiles" / "local.yaml"),
        environment=hooked_environment(tmp_path / "log", wait_for=2, step_s=0.1),
    )
    rows = result_rows(tmp_path / "out")
    assert [row["status"] for row in rows] == ["done"] * 8
    assert {row["worker"] for row in rows} == {"w0"}
    assert "w1" in {row["decode_worker"] for row in rows}
