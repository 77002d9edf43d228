"""Whole weight files are read once: their hash, and whether their numbers are finite."""

import hashlib
import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi.weights.formats import WeightFormat
from ovi_ray.weights.digests import MAX_TENSORS_NAMED, damaged_files, file_content

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ovi-ray" / "weight-files.json"


@pytest.fixture
def ckpts(tiny_dir, tmp_path):
    copy = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    for path in copy.rglob("*"):
        path.chmod(0o755)
    return copy


def tensors(dtype=torch.float32):
    return {"a": torch.ones(3, 4).to(dtype), "b": torch.zeros(5).to(dtype), "count": torch.tensor([1, 2])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_a_file_is_hashed_and_its_tensors_that_are_not_finite_are_named_with_their_number(tmp_path, name, dtype):
    path, weights = tmp_path / name, tensors(dtype)
    weights["a"][1, 2] = weights["a"][2, 3] = weights["b"][0] = NAN
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    content = file_content(path)
    assert content.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content.non_finite == {"a": 2, "b": 1}
    assert content.damage == "NaN or infinity in a (2 numbers), b (1 number)"


def test_a_file_that_is_right_has_no_damage_and_a_file_without_weights_is_only_hashed(tmp_path):
    save_file(tensors(), tmp_path / "w.safetensors")
    assert file_content(tmp_path / "w.safetensors").damage == ""
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert file_content(tmp_path / "tokenizer.json").damage == ""


def test_of_many_damaged_tensors_the_first_are_named_and_the_others_counted(tmp_path):
    save_file({f"t{number}": torch.full((2,), INF) for number in range(5)}, tmp_path / "w.safetensors")
    damage = file_content(tmp_path / "w.safetensors").damage
    assert damage.count("(2 numbers)") == MAX_TENSORS_NAMED
    assert damage.endswith(" and 2 more")


def test_a_file_is_read_once_as_long_as_its_size_and_time_of_change_stay(tmp_path, cache):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.tensor([NAN])}, path)
    first, before = file_content(path), path.stat()
    save_file({"a": torch.tensor([1.0])}, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_content(path) == first
    os.utime(path)
    assert file_content(path).damage == ""
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"KEY": "a hash"}', '{"KEY": {"sha256": 1}}'])
def test_a_broken_cache_is_made_again(tmp_path, cache, content):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.tensor([NAN])}, path)
    first = file_content(path)
    key = next(iter(json.loads(cache.read_text(encoding="utf-8"))))
    cache.write_text(content.replace("KEY", key), encoding="utf-8")
    assert file_content(path) == first


def test_the_damaged_files_of_a_model_are_named_and_those_of_other_models_are_not(ckpts):
    assert damaged_files(ckpts, "720x720_5s", WeightFormat.DTYPE) == ""
    path = ckpts / "Ovi" / "model_960x960.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[3] = INF
    save_file(weights, path)
    assert damaged_files(ckpts, "960x960_5s", WeightFormat.DTYPE) == f"{path}: NaN or infinity in {name} (1 number)"
    assert damaged_files(ckpts, "720x720_5s", WeightFormat.DTYPE) == ""
