"""A model that was found right is not checked again until one of its files changes."""

import shutil

import pytest

from ovi.weights.formats import WeightFormat
from ovi_ray.weights.checked_models import check_model_once
from ovi_ray.weights.digests import file_content, unread_bytes

MODEL = "720x720_5s"
VAE = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"


@pytest.fixture
def ckpts(tiny_dir, tmp_path, monkeypatch):
    """A checkpoint folder that no cache knows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(tiny_dir, tmp_path / "ckpts")


def check(folder):
    return [path for path, _ in check_model_once(folder, MODEL, WeightFormat.DTYPE)]


def test_a_file_that_changes_after_a_check_is_checked_again(ckpts):
    assert check(ckpts) == []
    content = (ckpts / VAE).read_bytes()
    (ckpts / VAE).write_bytes(content[:-100])
    assert check(ckpts) == [VAE]
    assert check(ckpts) == [VAE]  # what is wrong is not remembered
    (ckpts / VAE).write_bytes(content)
    assert check(ckpts) == []


def test_a_file_that_is_removed_after_a_check_is_told(ckpts):
    assert check(ckpts) == []
    (ckpts / VAE).unlink()
    assert check(ckpts) == [VAE]


def test_other_sizes_of_the_networks_are_checked_again(ckpts):
    assert check(ckpts) == []
    text = (ckpts / "architecture.json").read_text(encoding="utf-8")
    (ckpts / "architecture.json").write_text(text.replace('"ffn_dim": 64', '"ffn_dim": 72'), encoding="utf-8")
    assert check(ckpts) != []


def test_a_broken_cache_costs_a_check(ckpts, tmp_path):
    assert check(ckpts) == []
    (cache,) = (tmp_path / "cache").rglob("checked-models.json")
    cache.write_text("{", encoding="utf-8")
    assert check(ckpts) == []


def test_only_what_was_not_read_before_is_still_to_hash(ckpts):
    total = unread_bytes(ckpts, MODEL, WeightFormat.DTYPE)
    file_content(ckpts / VAE)
    assert unread_bytes(ckpts, MODEL, WeightFormat.DTYPE) == total - (ckpts / VAE).stat().st_size
