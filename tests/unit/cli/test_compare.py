"""A quality beside exact clips: which clips are rendered, and what is told of them."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from ovi.attention import AttentionBackend
from ovi.media.difference import IDEAL
from ovi.media.video import VideoWriter
from ovi.quality import Quality
from ovi_ray.cli import app
from ovi_ray.cli.compare import comparison_json, print_comparison
from ovi_ray.comparison import ComparisonJobs, compare, comparison_jobs
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.output.parquet_log import FORMAT, FORMAT_KEY
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.printing import Console
from tests.support.rendered_jobs import CKPTS, prepared_job, write_rows

NUM_FRAMES = 4


@pytest.fixture
def job(tmp_path):
    """A job of six rows, of which one asks for a quality itself."""

    def make(**options):
        path = tmp_path / "prompts.csv"
        path.write_text("text_prompt,quality\na,\nb,\nc,exact\nd,\ne,\nf,\n")
        given = {
            "prompts": path,
            "ckpt_dir": CKPTS,
            "output_dir": tmp_path / "out",
            "dtype": "float32",
            "device": "cpu",
        }
        return JobSpec.from_options(**given | {"quality": "fast"} | options)

    return make


def column(prepared, name):
    return prepared.manifest.table.column(name).to_pylist()


def test_evenly_spaced_rows_are_rendered_with_both_qualities_and_exactly_with_another_backend(job, tmp_path):
    jobs = comparison_jobs(job(each_example_n_times=3), tmp_path / "out", clips=3)
    assert column(jobs.pairs, "row") == [1, 1, 3, 3, 5, 5]
    assert column(jobs.pairs, "quality") == ["exact", "fast"] * 3
    assert (column(jobs.floor, "row"), column(jobs.floor, "quality")) == ([1, 3, 5], ["exact"] * 3)
    assert column(jobs.pairs, "seed")[::2] == column(jobs.pairs, "seed")[1::2] == column(jobs.floor, "seed")
    assert (jobs.pairs.job.attention, jobs.floor.job.attention) == (AttentionBackend.AUTO, AttentionBackend.SDPA_MATH)
    assert jobs.pairs.job.output_dir != jobs.floor.job.output_dir


@pytest.mark.parametrize(
    ("options", "floor", "field"),
    [({"quality": "exact"}, None, "--quality"), ({"attention": "sdpa_flash"}, AttentionBackend.SDPA_FLASH, "--floor")],
)
def test_a_comparison_with_itself_is_refused(job, tmp_path, options, floor, field):
    with pytest.raises(InputError) as caught:
        comparison_jobs(job(**options), tmp_path / "out", clips=1, floor_attention=floor)
    assert [problem.field for problem in caught.value.problems] == [field]


@pytest.fixture
def rendered(tmp_path):
    """Two jobs of rows with their finished clips, whose pictures differ by noise: 0 and 8 levels for pairs, 2 for the floor."""

    def make(rows, *, failed=(), floor_attention="sdpa_math"):
        prompts = write_rows(tmp_path, [f"a fox {row}" for row in range(rows)])
        pairs = prepared_job(tmp_path / "pairs", prompts, sweep={"quality": ["exact", "fast"]})
        floor = prepared_job(tmp_path / "floor", prompts)
        write_results(pairs, {"exact": 0, "fast": 8}, attention="sdpa_flash", failed=failed)
        write_results(floor, {"exact": 2}, attention=floor_attention, failed=())
        return ComparisonJobs(pairs=pairs, floor=floor)

    return make


def write_results(prepared, noise, *, attention, failed):
    out = prepared.job.output_dir
    (out / "videos").mkdir()
    rows = []
    for number, clip in enumerate(prepared.manifest.table.to_pylist()):
        quality = clip["quality"]
        is_failed = (clip["row"], quality) in failed
        path = f"videos/{clip['clip_id']}.mp4"
        if not is_failed:
            write_clip(str(out / path), noise[quality], level=0.3 if quality == "exact" else 0.15)
        lossy = {"video_loss": 0.02, "audio_loss": 0.01, "exact_from_step": None} if quality == "fast" else {}
        known = {name: clip[name] for name in ("clip_id", "row", "repeat", "text_prompt", "prompt", "seed", "quality")}
        rows.append(
            dict.fromkeys(RESULTS_SCHEMA.names)
            | known
            | {name: clip[name] for name in ("model_name", "sample_steps", "solver_name", "height", "width")}
            | {"status": "failed" if is_failed else "done", "video_path": path, "dtype": "float32", "attempts": 1}
            | {"attention_backend": attention, "denoise_s": 10.0 if quality == "exact" else 4.0}
            | {"finished_at": datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=number)}
            | lossy
        )
    (out / "results").mkdir()
    table = pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA.with_metadata({FORMAT_KEY: str(FORMAT)}))
    pyarrow.parquet.write_table(table, str(out / "results" / "part-0.parquet"))


def write_clip(path, noise, level):
    x = np.linspace(0, 6, 96)
    smooth = 127 + 60 * np.sin(x)[None, :, None] + 60 * np.cos(2 * x)[:, None, None] + np.zeros(3)
    frames = smooth + np.random.default_rng(noise).normal(0, noise, (NUM_FRAMES, 96, 96, 3))
    sound = (level * np.sin(np.arange(4000) / 5)).astype(np.float32)
    with VideoWriter(path, audio=sound, num_frames=NUM_FRAMES) as writer:
        writer.write(frames.clip(0, 255).astype(np.uint8))


def test_the_figures_of_a_quality_stand_beside_those_of_two_exact_clips(rendered):
    found = compare(rendered(2), Quality.FAST)
    assert [clip.row for clip in found.clips] == [1, 2]
    assert found.figures["psnr_db"].worst < found.figures["psnr_db"].floor_worst
    assert found.figures["ms_ssim"].mean < found.figures["ms_ssim"].floor_mean < 1
    assert found.figures["level_db"].mean == pytest.approx(6, abs=0.2)  # of its amount: the sound is quieter
    assert found.figures["level_db"].floor_mean == pytest.approx(0, abs=0.01)
    assert found.speedup == 2.5
    assert (found.floor_is_real, found.missing) == (True, ())
    assert (found.clips[0].video_loss, found.clips[0].audio_loss) == (0.02, 0.01)


def test_a_comparison_is_printed_as_a_table_and_as_json(rendered, capsys):
    found = compare(rendered(2, failed={(2, "fast")}), Quality.FAST)
    written = json.loads(json.dumps(comparison_json(found)))
    assert written["quality"] == "fast"
    assert written["figures"]["psnr_db"]["mean"] == found.figures["psnr_db"].mean
    assert written["clips"][0]["difference"]["level_db"] == found.clips[0].difference.level_db
    assert written["missing"] == [2]
    print_comparison(found, Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in IDEAL}
    assert rows.keys() == IDEAL.keys()
    assert rows["ms_ssim"][-1] == f"{found.figures['ms_ssim'].worst:.4g}"
    assert any("2.50 times as fast" in line for line in lines)
    assert any("failed: row 2" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--quality", "exact", "--out", "out"), "--quality"),
        (("--quality", "high", "--out", "s3://bucket/out"), "--out"),
    ],
)
def test_what_cannot_be_compared_ends_the_command_before_anything_starts(options, field, tmp_path):
    arguments = ["compare", "--prompt", "a fox", "--ckpt-dir", str(CKPTS), "--device", "cpu", *options]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert field in result.stderr


def test_a_clip_of_which_a_rendering_failed_is_left_out_and_told(rendered):
    found = compare(rendered(2, failed={(1, "fast")}), Quality.FAST)
    assert ([clip.row for clip in found.clips], found.missing) == ([2], (1,))


def test_a_floor_from_the_same_backend_is_none(rendered):
    assert not compare(rendered(1, floor_attention="sdpa_flash"), Quality.FAST).floor_is_real


def test_without_a_clip_that_was_rendered_all_three_times_there_is_nothing_to_compare(rendered):
    with pytest.raises(InputError):
        compare(rendered(1, failed={(1, "exact")}), Quality.FAST)
