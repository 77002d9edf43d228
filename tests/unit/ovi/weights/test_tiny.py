"""The generated tiny checkpoint."""

import hashlib

import numpy as np
import pytest
import torch

from ovi import OviPipeline
from ovi.config import MODEL_SPECS
from ovi.weights.loading import check_model
from ovi.weights.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_is_a_few_megabytes_and_the_same_every_time(built_in, tmp_path):
    assert digests(built_in) == digests(write_tiny_checkpoint(tmp_path / "again"))
    assert sum(path.stat().st_size for path in built_in.rglob("*") if path.is_file()) < 10e6


def test_writing_it_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    write_tiny_checkpoint(tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("model_name", list(MODEL_SPECS))
def test_every_model_passes_the_check(built_in, model_name):
    assert not [status for status in check_model(built_in, model_name) if status.error]


def test_a_clip_has_the_published_length_and_is_neither_grey_nor_silent(built_in):
    pipe = OviPipeline.from_pretrained(built_in, device="cpu", dtype=torch.float32)
    clip = pipe.generate("A fox. <AUDCAP>Wind<ENDAUDCAP>", sample_steps=2)
    assert clip.frames.shape == (121, 96, 160, 3)
    assert clip.audio.shape == (80_384,)
    assert clip.frames.std() > 20
    assert 0.02 < np.abs(clip.audio).mean() < 0.5
    assert not np.array_equal(clip.frames[0], clip.frames[60])
