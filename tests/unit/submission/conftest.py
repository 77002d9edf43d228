"""Small jobs, and bundles of them."""

import shutil
from pathlib import Path

import pytest

from ovi_ray.inputs.job_spec import PortableJob
from ovi_ray.submission.bundle import bundle_of
from tests.support.jobs import write_prompts

VERSION = "1.2.3"


@pytest.fixture
def make_bundle(tmp_path):
    """Bundle a job of two prompts, changed by the given options; `folder` is where its list lies."""

    def make(folder: Path = tmp_path, name: str = "night", **options):
        folder.mkdir(exist_ok=True)
        prompts = write_prompts(folder / "p.csv", {"text_prompt": "A fox"}, {"text_prompt": "A dog"})
        given = {"prompts": prompts, "ckpt_dir": "/models/ovi", "output_dir": "/shared/out", "device": "cpu"}
        return bundle_of(PortableJob.from_options(**{**given, **options}), name=name, version=VERSION)

    return make


@pytest.fixture
def image(tmp_path, first_frame_path):
    """A first frame in a folder of its own."""
    path = tmp_path / "frames" / "a b.png"
    path.parent.mkdir()
    shutil.copy(first_frame_path, path)
    return path
