"""Intermediate files of clips that are not finished."""

import pyarrow as pa
import pytest
import torch

from ovi.files import UNFINISHED_PREFIX
from ovi_ray.errors import LatentsUnusable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.tensor_files import load_tensors, save_tensors


@pytest.fixture
def keep(tmp_path):
    keep = Intermediates(output_dir=to_location(tmp_path))
    keep.prepare()
    return keep


def put(keep, *clip_ids):
    for clip_id in clip_ids:
        keep.latents_path(clip_id).write_bytes(b"latents")
        keep.checkpoint_path(clip_id).write_bytes(b"state")


def left(keep):
    return sorted(path.name.partition(".")[0] for path in keep.output_dir.local_path.rglob("*.safetensors"))


def test_what_is_left_of_finished_clips_is_removed(keep):
    put(keep, "a", "b")
    keep.remove_all_committed(pa.array(["a", "z"]))
    assert left(keep) == ["b", "b"]


def test_latents_that_are_kept_for_good_outlive_their_video_but_checkpoints_do_not(tmp_path, keep):
    put(keep, "a")
    Intermediates(output_dir=to_location(tmp_path), keep_latents=True).remove_committed("a")
    assert left(keep) == ["a"]
    assert keep.with_latents().to_pylist() == ["a"]


def test_half_written_files_are_neither_seen_nor_kept(keep):
    half = keep.latents_path("a").with_name(f"{UNFINISHED_PREFIX}0badcafe.a.safetensors")
    half.write_bytes(b"half")
    assert keep.with_latents().to_pylist() == []
    keep.prepare()
    assert not half.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_come_back_bit_for_bit_with_their_facts(tmp_path, dtype):
    tensors = {"a": torch.arange(7).to(dtype), "b": torch.ones((), dtype=dtype)}
    save_tensors(to_location(tmp_path / "x"), tensors, clip_id="c", facts={"denoise_s": 1.5})
    read, facts = load_tensors(to_location(tmp_path / "x"), clip_id="c")
    assert facts == {"denoise_s": 1.5}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_every_flipped_byte_of_a_file_is_found(tmp_path):
    path = to_location(tmp_path / "x")
    save_tensors(path, {"a": torch.arange(9.0)}, clip_id="c", facts={"device": "cpu"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LatentsUnusable):
            load_tensors(path, clip_id="c")


@pytest.mark.parametrize("length", [0, 4, 100])
def test_a_truncated_file_is_refused(tmp_path, length):
    save_tensors(to_location(tmp_path / "x"), {"a": torch.arange(9.0)}, clip_id="c", facts={})
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:length])
    with pytest.raises(LatentsUnusable):
        load_tensors(to_location(tmp_path / "x"), clip_id="c")


def test_latents_of_another_clip_and_latents_that_are_gone_are_refused(tmp_path):
    save_tensors(to_location(tmp_path / "x"), {"a": torch.arange(9.0)}, clip_id="c", facts={})
    with pytest.raises(LatentsUnusable, match="clip c; expected d"):
        load_tensors(to_location(tmp_path / "x"), clip_id="d")
    with pytest.raises(LatentsUnusable):
        load_tensors(to_location(tmp_path / "nowhere"), clip_id="c")
