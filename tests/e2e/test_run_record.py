"""The record of a real job on a local Ray: written by `ovi-ray render`, read and replayed by `ovi-ray explain`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 1500  # for a loaded machine


def ovi_ray(*arguments):
    code = "from ovi_ray.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
def test_the_decisions_of_a_real_job_are_explained_and_come_out_the_same_when_replayed(tiny_dir, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a fox\na dog\na cat\n", encoding="utf-8")
    size = ("--video-frame-height-width", "64x64", "--sample-steps", "2", "--slg-layer", "1")
    options = ("--ckpt-dir", tiny_dir, "--out", out, "--dtype", "float32", "--device", "cpu", "--workers", "2", *size)
    driver = json.loads(ovi_ray("render", prompts, *options, "--quiet", "--detach", "--json"))
    assert os.getsid(driver["pid"]) == driver["pid"] != os.getsid(0)  # no terminal can end it
    ovi_ray("wait", out)
    assert "3 rendered" in Path(driver["log"]).read_text(encoding="utf-8")
    replayed = json.loads(ovi_ray("explain", out, "--verify", "--json"))
    assert replayed["divergence"] is None
    assert replayed["actions"] > 9
    glance = json.loads(ovi_ray("explain", out, "--json"))
    assert (glance["done"], glance["failed"], glance["was_killed"]) == (3, 0, False)
    assert {worker["slot"] for worker in glance["workers"]} <= {"w0", "w1"}
    (clip_id, *_) = sorted(path.stem for path in (out / "videos").glob("*.mp4"))
    life = json.loads(ovi_ray("explain", out, "--clip", clip_id[:10], "--json"))
    assert [task["stage"] for task in life["tasks"]] == ["encode_text", "denoise", "decode"]
    assert {task["outcome"] for task in life["tasks"]} == {"done"}
    assert f"clip {clip_id} done" in (out / "run.log").read_text(encoding="utf-8")
