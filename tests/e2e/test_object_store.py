"""A whole job in a real S3 store: list, image, checkpoint and output."""

import json
from collections import Counter

import pyarrow.dataset
import pytest
from pyarrow import fs

from ovi_ray.storage.paths import list_files, local_copy, to_location
from tests.support.cli import ovi_ray, ovi_ray_here
from tests.support.jobs import probe_clip
from tests.support.report_pages import clips_of

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


def test_a_job_in_a_store_is_rendered_once_and_finished_by_the_same_command(
    s3_server, s3_bucket, tiny_dir, first_frame_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the weights are copied to it
    bucket = to_location(s3_bucket)
    for path in filter(lambda path: path.is_file(), tiny_dir.rglob("*")):
        (bucket / "ckpts" / str(path.relative_to(tiny_dir))).upload(path)
    (bucket / "lists" / "first.png").upload(first_frame_path)
    rows = [{"text_prompt": "a fox", "image_path": "first.png"}, {"text_prompt": "a dog"}, {"text_prompt": "a cat"}]
    (bucket / "lists" / "prompts.jsonl").write_bytes("\n".join(map(json.dumps, rows)).encode())
    (bucket / "lists" / "job.yaml").write_bytes(
        b"prompts: prompts.jsonl\nckpt_dir: ../ckpts\noutput_dir: ../out\nsample_steps: 2\ndtype: float32\n"
    )
    out = bucket / "out"

    s3_server.forget_requests()
    outcome = json.loads(ovi_ray("render", bucket / "lists" / "job.yaml", "--json").stdout)
    assert (outcome["clips"], outcome["done"], outcome["output_dir"]) == (3, 3, str(out))
    uploads = Counter(path for path in s3_server.requests("PUT") if "/videos/" in path)
    assert sorted(uploads.values()) == [1, 1, 1]  # one request for each video, under its final key

    videos = list_files(out / "videos", ".mp4").column("name").to_pylist()
    for name in videos:
        with local_copy(out / "videos" / name) as video:
            probe_clip(video)
    assert not len(list_files(out / "latents", ""))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert {clip["video_path"] for clip in clips_of(page)} == {f"videos/{name}" for name in videos}

    outcome = json.loads(ovi_ray_here("render", bucket / "lists" / "job.yaml", "--json").stdout)
    assert (outcome["done"], outcome["finished_before"]) == (0, 3)
    store, path = fs.FileSystem.from_uri(str(out / "results"))
    table = pyarrow.dataset.dataset(path, filesystem=store, format="parquet").to_table()
    assert sorted(table.column("clip_id").to_pylist()) == sorted(name.removesuffix(".mp4") for name in videos)
