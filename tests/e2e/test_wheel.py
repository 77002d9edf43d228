"""The wheel, installed into a fresh virtual environment in another folder, renders the quickstart.

The environment has its own `ovi` and `ovi_ray`, from the wheel; the packages that they need are those of the environment that
runs the tests, so that no network is needed.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import ovi_ray
from tests.support.cli import ovi_ray_here

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SOURCE = Path(__file__).parents[2]
PATIENCE_S = 1200  # for one command on a loaded machine


def run(*command, cwd):
    """Run a program outside of the source tree, and return its standard output."""
    # The hook of Ray is a function of this suite, which the environment with the wheel cannot import.
    left_out = ("PYTHONPATH", "PYTHONHOME", "RAY_RUNTIME_ENV_HOOK")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_below(folder):
    """All files, those behind links to folders too."""
    return (Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy of the sources: a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("ovi", "ovi_ray"):
        shutil.copytree(SOURCE / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of the programs of a fresh environment with the wheel."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Lines of a .pth file are added after the folder itself, and the .pth files in them (an editable install) are not read.
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / "bin"


def test_the_wheel_holds_every_module_and_data_file_and_the_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {
        str(path.relative_to(SOURCE))
        for package in ("ovi", "ovi_ray")
        for path in files_below(SOURCE / package)
        if path.is_file() and path.suffix != ".md" and "__pycache__" not in path.parts
    }
    assert shipped - names == set()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"ovi", "ovi_ray", f"ovi_ray-{ovi_ray.__version__}.dist-info"}


def test_the_packages_are_imported_from_the_wheel(environment):
    code = "import ovi, ovi_ray, ovi_ray.cli, json; print(json.dumps([ovi.__file__, ovi_ray.__file__]))"
    for file in json.loads(run(environment / "python", "-c", code, cwd=environment)):
        assert Path(file).is_relative_to(environment.parent)


def test_the_version_is_that_of_the_metadata(environment):
    code = (
        "from importlib.metadata import metadata as m; d = m('ovi-ray'); print(d['Version'], d['License-Expression'])"
    )
    assert run(environment / "python", "-c", code, cwd=environment).split() == [ovi_ray.__version__, "Apache-2.0"]
    assert ovi_ray.__version__ in run(environment / "ovi-ray", "--version", cwd=environment)


def test_the_package_runs_as_a_module(environment):
    assert "Usage: ovi-ray" in run(environment / "python", "-m", "ovi_ray", "--help", cwd=environment)


def test_a_small_checkpoint_can_be_written(environment, tmp_path):
    run(environment / "ovi-ray", "weights", "tiny", tmp_path / "ckpts", cwd=tmp_path)
    findings = json.loads(ovi_ray_here("weights", "check", tmp_path / "ckpts", "--json").stdout)
    assert findings["models"] == ["720x720_5s", "960x960_5s", "960x960_10s"]


def test_the_quickstart_renders(environment, tiny_dir, tmp_path):
    run(environment / "ovi-ray", "init", "films", cwd=tmp_path)
    assert (tmp_path / "films" / "cluster" / "profiles" / "b.yaml").is_file()
    options = ("--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--sample-steps", 1, "--workers", 1, "--json", "-q")
    outcome = json.loads(
        run(environment / "ovi-ray", "render", "films/jobs/quickstart/job.yaml", *options, cwd=tmp_path)
    )
    assert (outcome["clips"], outcome["done"], outcome["failed"]) == (6, 6, 0)
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 6
    assert (tmp_path / "out" / "report.html").is_file()
