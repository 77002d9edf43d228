"""The public names of `ovi_ray`, used as its documentation shows them."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ovi_ray
from ovi_ray import InputError, JobResult, JobSpec, PreparedJob, prepare, render
from tests.support.files import snapshot


@pytest.fixture
def job(tiny_dir, tmp_path):
    return JobSpec.from_options(
        text_prompt="A fox trots through snow. Audio: soft steps",
        ckpt_dir=tiny_dir,
        output_dir=tmp_path / "out",
        sample_steps=1,
        dtype="float32",
        workers=1,
    )


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_its_job_and_errors_loads_neither_torch_nor_ray():
    code = (
        "import sys, ovi_ray; from ovi_ray import JobSpec, InputError, Problem, StorageUnavailable;"
        "print([name for name in ('torch', 'ray') if name in sys.modules], 'JobSpec' in dir(ovi_ray))"
    )
    assert run_python(code) == "[] True"


@pytest.mark.parametrize("name", ovi_ray.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(ovi_ray, name) is not None


def test_public_functions_stay_functions_when_their_modules_are_imported_first():
    code = (
        "import ovi_ray.preparation, ovi_ray.rendering, ovi_ray.retry, ovi_ray.cli.render;"
        "from ovi_ray import prepare, prepare_retry, render; print(*map(callable, (prepare, prepare_retry, render)))"
    )
    assert run_python(code) == "True True True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="rendr"):
        _ = ovi_ray.rendr


def test_the_version_is_that_of_the_installed_package():
    assert ovi_ray.__version__ == version("ovi-ray")


def test_the_types_of_the_package_are_shipped():
    assert (Path(ovi_ray.__file__).parent / "py.typed").is_file()


def test_a_job_that_is_wrong_raises_every_problem(tmp_path):
    with pytest.raises(InputError) as caught:
        JobSpec.from_options(text_prompt="A fox", ckpt_dir=tmp_path / "none", output_dir=tmp_path, sample_steps=0)
    assert [problem.field for problem in caught.value.problems] == ["--sample-steps", "--ckpt-dir"]


def test_a_prepared_job_holds_its_clips_and_has_written_nothing(job, tmp_path):
    before = snapshot(tmp_path)
    prepared = prepare(job)
    assert isinstance(prepared, PreparedJob)
    assert (prepared.job, len(prepared.manifest)) == (job, 1)
    assert snapshot(tmp_path) == before


@pytest.mark.ray
def test_a_job_is_rendered_from_python(job):
    result = render(prepare(job))
    assert isinstance(result, JobResult)
    assert (result.clips, result.done, result.failed, result.finished_before) == (1, 1, 0, 0)
    assert len(list((job.output_dir / "videos").files())) == 1
