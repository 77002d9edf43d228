"""`ovi-ray export`: names, copies, masters, sound, stills and the table of a job's finished clips."""

import csv
import json
import shutil
import wave

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ovi.media.probe import probe
from ovi.media.reading import read_frames, read_sound, rgb_pixels
from ovi.media.video import frames_to_uint8
from ovi_ray.cli import app
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.tensor_files import save_tensors
from tests.support.fake_executor import Fails
from tests.support.rendered_jobs import RenderingExecutor, render_job, write_rows

NAME = "{meta_shot}_s{seed}_g{video_guidance_scale}"
NOTE = 'line 1\nline "2"'
FRAMES, EDITING_RATE = 9, 48_000


def fail_last(worker, task, tries):
    return Fails() if task.stage == "denoise" and 12 in task.items else None


@pytest.fixture(scope="module")
def job(tiny_dir, tmp_path_factory):
    """The output of a sweep of 4 seeds x 3 guidance scales, and of one more clip, which failed."""
    folder = tmp_path_factory.mktemp("job")
    rows = [
        *(
            {"text_prompt": "a fox", "meta_shot": "sh010", "meta_note": NOTE, "seed": s, "video_guidance_scale": g}
            for s in range(4)
            for g in (3, 4.5, 5)
        ),
        {"text_prompt": "a dog", "meta_shot": "sh020"},
    ]
    result = render_job(folder / "out", write_rows(folder, rows), executor=RenderingExecutor(script=fail_last))
    assert (result.done, result.failed) == (12, 1)
    return folder / "out"


@pytest.fixture
def own_job(job, tmp_path):
    """A copy of the job, to change."""
    return shutil.copytree(job, tmp_path / "out")


@pytest.fixture
def with_latents(own_job, golden):
    """The job with kept latents of its first clip, and the id of that."""
    clip_id = clip_ids(own_job)[0]
    keep_latents(own_job, clip_id, golden)
    return own_job, clip_id


def keep_latents(out, clip_id, golden):
    tensors = {"video": golden["e2e.0.video_latents"], "audio": golden["e2e.0.audio_latents"]}
    (out / "latents").mkdir(exist_ok=True)
    save_tensors(to_location(out / "latents" / f"{clip_id}.safetensors"), tensors, clip_id=clip_id, facts={})


def clip_ids(out):
    return Manifest.read(out / "manifest.parquet").table.column("clip_id").to_pylist()


def export(out, folder, *options, code=0):
    arguments = ["export", out, folder, *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def write_picks(path, *ids):
    path.write_text("\n".join(["starred,clip_id", *(f"1,{clip_id}" for clip_id in ids)]), encoding="utf-8")
    return path


def read_table(folder):
    with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_sweep_is_exported_under_names_from_its_columns_and_read_back_from_the_table(job, tmp_path):
    result = export(job, tmp_path / "shots", "--name", NAME, "--csv", "--json")
    rows = read_table(tmp_path / "shots")
    assert [row["file"] for row in rows] == [f"sh010_s{s}_g{g}.mp4" for s in range(4) for g in ("3", "4.5", "5")]
    assert names(tmp_path / "shots") == sorted(["clips.csv", *(row["file"] for row in rows)])
    for row in rows:
        assert (row["meta_shot"], row["meta_note"], row["source"]) == ("sh010", NOTE, "video")
        info = probe(tmp_path / "shots" / row["file"])
        assert (info.num_frames, info.parameters["clip_id"]) == (int(row["num_frames"]), row["clip_id"])
        assert info.parameters["seed"] == int(row["seed"])
        assert info.parameters["video_guidance_scale"] == float(row["video_guidance_scale"])
        video = job / "videos" / f"{row['clip_id']}.mp4"
        assert (tmp_path / "shots" / row["file"]).read_bytes() == video.read_bytes()
    assert "1 clip is not finished and left out: row 13" in result.stderr
    told = json.loads(result.stdout)
    assert [clip["clip_id"] for clip in told["exported"]] == [row["clip_id"] for row in rows]


def test_names_without_a_template_are_in_the_order_of_the_list(job, tmp_path):
    export(job, tmp_path / "all")
    assert names(tmp_path / "all") == [f"{n:04}_{clip_id}.mp4" for n, clip_id in enumerate(clip_ids(job)[:12], 1)]


def test_links_are_the_same_files(job, tmp_path):
    export(job, tmp_path / "linked", "--link", "--name", "{meta_shot}/{seed}_{video_guidance_scale}")
    (linked, *_) = sorted((tmp_path / "linked" / "sh010").iterdir())
    assert linked.samefile(job / "videos" / f"{clip_ids(job)[0]}.mp4")
    assert len(list((tmp_path / "linked" / "sh010").iterdir())) == 12


def test_picked_clips_alone_are_exported(job, tmp_path):
    first, _, third, *_ = clip_ids(job)
    picks = write_picks(tmp_path / "picks.csv", third, first[:8], third)
    export(job, tmp_path / "picked", "--pick", picks, "--name", NAME)
    assert names(tmp_path / "picked") == ["sh010_s0_g3.mp4", "sh010_s0_g5.mp4"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("seed;clip_id;text_prompt\r\n1;ID;erste; \r\n;;\r\n", "utf-8-sig"),
        ('clip_id\ttext_prompt\r\nID\t"a\r\nb"\r\n', "utf-16"),
        ("clip_id;text_prompt\r\nID;Füchse\r\n", "cp1252"),
    ],
)
def test_picks_that_a_spreadsheet_program_saved_are_read(job, tmp_path, text, encoding):
    picks = tmp_path / "picks.csv"
    picks.write_bytes(text.replace("ID", clip_ids(job)[0]).encode(encoding))
    export(job, tmp_path / "picked", "--pick", picks, "--name", NAME)
    assert names(tmp_path / "picked") == ["sh010_s0_g3.mp4"]


def test_picks_that_are_no_clips_of_the_job_are_told_with_their_lines_and_nothing_is_written(job, tmp_path):
    picks = write_picks(tmp_path / "picks.csv", "nobody", clip_ids(job)[0], "none")
    message = export(job, tmp_path / "picked", "--pick", picks, code=2).stderr
    assert "line 2: clip_id is 'nobody'" in message
    assert "line 4: clip_id is 'none'" in message
    assert not (tmp_path / "picked").exists()


def test_a_folder_that_cannot_be_made_is_told(job):
    assert "cannot be used: No such file or directory" in export(job, "/proc/shots", "--name", NAME, code=2).stderr


def test_collisions_are_told_before_anything_is_written(job, tmp_path):
    message = export(job, tmp_path / "shots", "--name", "{meta_shot}_s{seed}", code=2).stderr
    assert message.count("gives 3 clips the name") == 4
    assert "such as {meta_shot}_s{seed}_{video_guidance_scale}" in message
    assert not (tmp_path / "shots").exists()


def test_files_that_exist_are_replaced_only_on_request(job, tmp_path):
    picks = write_picks(tmp_path / "picks.csv", *clip_ids(job)[:2])
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "sh010_s0_g3.mp4").write_text("mine")
    options = (job, tmp_path / "shots", "--name", NAME, "--pick", picks)
    assert "where sh010_s0_g3.mp4 exists already" in export(*options, code=2).stderr
    assert names(tmp_path / "shots") == ["sh010_s0_g3.mp4"]
    export(*options, "--overwrite")
    assert probe(tmp_path / "shots" / "sh010_s0_g3.mp4").num_frames == FRAMES


@pytest.mark.parametrize("place", [".", "videos", "latents/mine"])
def test_the_folders_of_the_job_are_refused(own_job, place):
    before = names(own_job)
    assert "a folder of its own" in export(own_job, own_job / place, "--overwrite", code=2).stderr
    assert names(own_job) == before


def test_a_folder_without_a_job_is_told(tmp_path):
    assert "no manifest.parquet; expected an output folder" in export(tmp_path, tmp_path / "x", code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_clip_whose_video_is_lost_fails_alone(own_job, tmp_path):
    first, second, *_ = clip_ids(own_job)
    (own_job / "videos" / f"{first}.mp4").unlink()
    (own_job / "videos" / f"{second}.mp4").write_bytes(b"cut off")
    result = export(own_job, tmp_path / "shots", "--name", NAME, "--csv", "--json", code=1)
    assert [clip["clip_id"] for clip in json.loads(result.stdout)["failed"]] == [first, second]
    assert "has 7 bytes; expected" in result.stderr
    assert len(read_table(tmp_path / "shots")) == 10


# -- masters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "name", "pixel_format"),
    [("h264", "sh010.mp4", "yuv420p"), ("prores", "sh010.mov", "yuv422p10le"), ("ffv1", "sh010.mkv", "bgr0")],
)
def test_masters_come_from_kept_latents_with_sound_and_stills(
    with_latents, golden, tmp_path, codec, name, pixel_format
):
    out, clip_id = with_latents
    picks = write_picks(tmp_path / "picks.csv", clip_id)
    options = ("--pick", picks, "--name", "{meta_shot}", "--codec", codec, "--wav", "--png", "--csv", "--device", "cpu")
    result = export(out, tmp_path / "edit", *options)
    assert "frames and sound: 1 from kept latents" in result.stderr
    frames = frames_to_uint8(golden["e2e.0.video"])
    stills = [tmp_path / "edit" / "sh010_frames" / f"sh010.{n:04}.png" for n in range(1, FRAMES + 1)]
    pixels = np.stack([np.asarray(Image.open(still)) for still in stills])
    assert np.abs(pixels.astype(int) - frames).max() <= 1  # the golden frames are another program's
    info = probe(tmp_path / "edit" / name)
    assert (info.num_frames, info.width, info.height, info.sample_rate) == (FRAMES, 64, 64, EDITING_RATE)
    assert info.parameters["meta_note"] == NOTE
    read = np.stack([rgb_pixels(frame) for frame in read_frames(tmp_path / "edit" / name)]).astype(int)
    assert np.abs(read - pixels).mean() <= (0 if codec == "ffv1" else 40)  # the colours of noise are averaged
    with av.open(str(tmp_path / "edit" / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.color_primaries, context.color_trc) == (pixel_format, 1, 1)
    with wave.open(str(tmp_path / "edit" / "sh010.wav")) as sound:
        assert (sound.getframerate(), sound.getsampwidth(), sound.getnframes()) == (EDITING_RATE, 3, 3 * 6656)
    (row,) = read_table(tmp_path / "edit")
    assert (row["source"], row["file"], row["sound"], row["frames"]) == ("latents", name, "sh010.wav", "sh010_frames")


def test_masters_come_from_the_video_where_no_latents_were_kept_and_that_is_told(with_latents, tmp_path):
    out, clip_id = with_latents
    other = clip_ids(out)[1]
    picks = write_picks(tmp_path / "picks.csv", clip_id, other)
    options = ("--pick", picks, "--name", NAME, "--codec", "ffv1", "--csv", "--device", "cpu")
    result = export(out, tmp_path / "edit", *options)
    assert "1 from kept latents, 1 from the MP4" in result.stderr
    assert [row["source"] for row in read_table(tmp_path / "edit")] == ["latents", "video"]
    kept = [frame.to_ndarray() for frame in read_frames(tmp_path / "edit" / "sh010_s0_g4.5.mkv")]
    source = [frame.to_ndarray() for frame in read_frames(out / "videos" / f"{other}.mp4")]
    assert np.array_equal(np.stack(kept), np.stack(source))


@pytest.mark.parametrize("harm", ["truncated", "no weights"])
def test_latents_that_cannot_be_used_are_told_and_the_video_is_used(with_latents, tmp_path, harm):
    out, clip_id = with_latents
    options = ["--pick", write_picks(tmp_path / "picks.csv", clip_id), "--wav", "--csv", "--device", "cpu"]
    if harm == "truncated":
        path = out / "latents" / f"{clip_id}.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        options += ["--ckpt-dir", tmp_path / "nowhere"]
    result = export(out, tmp_path / "edit", *options)
    assert "from the MP4: " in result.stderr
    assert [row["source"] for row in read_table(tmp_path / "edit")] == ["video"]
    assert read_sound(tmp_path / "edit" / f"0001_{clip_id}.wav")[1] == EDITING_RATE


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--source", "latents", "--wav"), "--source"),
        (("--crf", 5, "--codec", "prores"), "--crf"),
        (("--link", "--codec", "h264"), "--link"),
        (("--link", "--crf", 5), "--link"),
        (("--pick", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(job, tmp_path, options, field):
    assert field in export(job, tmp_path / "x", *options, code=2).stderr
    assert not (tmp_path / "x").exists()


def test_a_job_in_a_store_is_exported(job, s3_bucket, tmp_path):
    store = to_location(s3_bucket) / "out"
    for name in names(job):
        (store / name).upload(job / name)
    picks = write_picks(tmp_path / "picks.csv", clip_ids(job)[0])
    export(store, tmp_path / "shots", "--pick", picks, "--name", NAME, "--crf", 30, "--audio-rate", 44_100)
    assert probe(tmp_path / "shots" / "sh010_s0_g3.mp4").sample_rate == 44_100
