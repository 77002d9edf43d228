"""Whole jobs through the command line, on a real local Ray with the small golden checkpoint."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from ovi.media.probe import probe

OVI_RAY = [sys.executable, "-c", "from ovi_ray.cli import main; main()"]


def ovi_ray(*arguments, code=0):
    """Run the program; gives what it printed."""
    command = [*OVI_RAY, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert result.returncode == code, result.stderr
    return result


def rows_of(out):
    return (
        pyarrow.parquet.read_table(out / "results").sort_by([("row", "ascending"), ("repeat", "ascending")]).to_pylist()
    )


def write_prompts(path, *rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def finished_job(tiny_dir, first_frame_path, tmp_path_factory):
    """A job of all kinds of clips, with one that can only fail when it is rendered."""
    folder = tmp_path_factory.mktemp("job")
    out = folder / "out"
    first_frame = folder / "first.png"
    first_frame.write_bytes(first_frame_path.read_bytes())
    start = "A long prompt whose first fifty characters are all the same, "
    prompts = write_prompts(
        folder / "prompts.csv",
        {"text_prompt": start + "a fox. Audio: wind"},
        {"text_prompt": start + "a dog."},
        {"text_prompt": "From an image.", "image_path": "first.png"},
        {"text_prompt": "Another model, size and solver.", "model_name": "960x960_5s", "solver_name": "dpm++"},
        {"text_prompt": "With its own seed.", "seed": "77", "video_frame_height_width": "1280x704"},
    )
    result = ovi_ray(
        *("render", prompts, "--ckpt-dir", tiny_dir, "--out", out, "--sample-steps", 2, "--workers", 2),
        *("--each-example-n-times", 2, "--dtype", "float32", "--json", "--explain"),
    )
    return out, result


def test_every_clip_is_a_playable_video_with_sound(finished_job):
    out, _ = finished_job
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["done"] * 10
    assert {path.name for path in (out / "videos").iterdir()} == {f"{row['clip_id']}.mp4" for row in rows}
    for row in rows:
        info = probe(out / row["video_path"])
        assert (info.num_frames, info.fps, info.sample_rate) == (9, 24.0, 16_000)
        assert (info.width, info.height) == (row["width"], row["height"])
        assert info.parameters["clip_id"] == row["clip_id"]
        assert info.parameters["seed"] == row["seed"]


def test_prompts_with_the_same_beginning_do_not_collide_and_seeds_differ(finished_job):
    rows = rows_of(finished_job[0])
    assert len({row["clip_id"] for row in rows}) == 10
    assert [(row["row"], row["repeat"], row["seed"]) for row in rows][-4:] == [
        (3, 0, 3_000_100),
        (3, 1, 3_000_101),
        (4, 0, 77),
        (4, 1, 78),
    ]


def test_the_row_says_what_ran_where(finished_job):
    for row in rows_of(finished_job[0]):
        assert row["worker"] in ("w0", "w1")
        assert (row["device"], row["dtype"], row["attempts"]) == ("cpu", "float32", 1)
        assert row["attention_backend"].startswith("sdpa")
        assert min(row["encode_s"], row["denoise_s"], row["decode_s"]) > 0
        assert row["video_bytes"] == (finished_job[0] / row["video_path"]).stat().st_size


def test_the_outcome_is_printed_as_json_and_decisions_are_explained(finished_job):
    _, result = finished_job
    outcome = json.loads(result.stdout)
    assert (outcome["clips"], outcome["done"], outcome["failed"], outcome["finished_before"]) == (10, 10, 0, 0)
    assert "denoise" in result.stderr
    assert "because" in result.stderr
    assert "audio tag" in result.stderr  # the note that a prompt was rewritten


def test_the_report_shows_every_clip(finished_job):
    out, _ = finished_job
    page = (out / "report.html").read_text(encoding="utf-8")
    for row in rows_of(out):
        assert f'src="{row["video_path"]}"' in page
        assert (out / "posters" / f"{row['clip_id']}.jpg").stat().st_size > 0


def test_the_same_command_again_renders_only_what_is_missing(finished_job, tiny_dir):
    out, _ = finished_job
    before = {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    lost = rows_of(out)[0]
    (out / lost["video_path"]).unlink()
    result = ovi_ray(
        *("render", out.parent / "prompts.csv", "--ckpt-dir", tiny_dir, "--out", out, "--sample-steps", 2),
        *("--each-example-n-times", 2, "--dtype", "float32", "--json"),
    )
    outcome = json.loads(result.stdout)
    assert (outcome["done"], outcome["finished_before"]) == (1, 9)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [f"{lost['clip_id']}.mp4"]
    assert len(rows_of(out)) == 10


def test_a_manifest_and_a_job_file_render_the_same_clips(finished_job, tiny_dir, tmp_path):
    out, _ = finished_job
    job = tmp_path / "job.yaml"
    job.write_text(
        f"prompts: {out / 'manifest.parquet'}\nckpt_dir: {tiny_dir}\noutput_dir: {out}\ndtype: float32\n",
        encoding="utf-8",
    )
    outcome = json.loads(ovi_ray("render", job, "--json").stdout)
    assert (outcome["clips"], outcome["done"], outcome["finished_before"]) == (10, 0, 10)


def test_a_clip_that_fails_fails_alone(tiny_dir, tmp_path):
    """The image passes the check and is gone when its turn comes."""
    prompts = tmp_path / "prompts.csv"
    good = {"text_prompt": "a fox"}
    image = tmp_path / "first.png"
    image.write_bytes((Path(__file__).parent.parent / "data" / "tiny" / "first_frame.png").read_bytes())
    write_prompts(prompts, good, {"text_prompt": "a dog", "image_path": "first.png"})
    code = (
        "import ovi_ray.rendering as r, pathlib\n"
        "start = r.ray_session\n"
        f"r.ray_session = lambda job: (pathlib.Path({str(image)!r}).unlink(), start(job))[1]\n"
        "from ovi_ray.cli import main; main()"
    )
    arguments = ["render", prompts, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--sample-steps", "2"]
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 1, result.stderr
    done, failed = rows_of(tmp_path / "out")
    assert (done["status"], failed["status"]) == ("done", "failed")
    assert "first.png" in failed["error"]
    assert failed["video_path"] is None
    assert "1 failed" in result.stderr
    assert "first.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_declared_devices_get_the_work_that_they_are_declared_for(tiny_dir, tmp_path):
    """One worker does everything, a slow one may only encode and decode: it takes decodes off the other."""
    profile = Path(__file__).parent.parent.parent / "cluster" / "profiles" / "local.yaml"
    (tmp_path / "p.txt").write_text("".join(f"clip {number}\n" for number in range(12)), encoding="utf-8")
    out = tmp_path / "out"
    steps = 40  # long enough that the second worker is there before the first has done it all
    options = ("--ckpt-dir", tiny_dir, "--out", out, "--sample-steps", steps, "--cluster", profile)
    ovi_ray("render", tmp_path / "p.txt", *options)
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["done"] * 12
    assert {row["worker"] for row in rows} == {"w0"}
    assert "w1" in {row["decode_worker"] for row in rows}
