"""The install lines of the Dockerfiles, run in an environment and a folder that hold nothing else."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.cli import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DOCKERFILE = ROOT / "cluster" / "containers" / "Dockerfile.cpu"


def index_of_pip() -> str:
    """The index of this machine's packages, torch among them: a build argument, as a mirror would be."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "https://pypi.org/simple"


def why_not() -> str:
    """Why nothing can be installed here; "" if it can."""
    for package in ("torch", "boto3"):
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "index", "versions", package, "--retries", "0", "--timeout", "20"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode != 0:
            return f"pip finds no {package}: {asked.stderr.strip().splitlines()[-1]}"
    return ""


def test_what_the_image_installs_is_enough_to_run_ovi_ray_and_a_head_with_a_dashboard(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    text = DOCKERFILE.read_text()
    for copied in re.findall(r"^COPY (.+) (?:\./|\S+)$", text, re.MULTILINE):
        for name in copied.split():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_", "VIRTUAL_ENV"))
    }
    built = {"TORCH_INDEX": index_of_pip(), "PIP_NO_COMPILE": "1"}  # what is run once need not be compiled
    environment = {**clean, **built, "PATH": f"{programs}:{os.environ['PATH']}"}
    lines = re.findall(r"^RUN (pip install .+)$", text, re.MULTILINE)
    assert len(lines) == 2
    assert "$TORCH_INDEX" in lines[0]
    for line in lines:
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True)
    shutil.rmtree(tmp_path / "ovi_ray")  # so that what runs is what was installed
    for command in (["ovi-ray", "--version"], ["python", "-c", "import aiohttp_cors, boto3, torch"]):
        subprocess.run([programs / command[0], *command[1:]], cwd=tmp_path, env=environment, check=True)
