"""The program as a whole: version, `python -m`, colours, and what it leaves on disk."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from importlib import import_module

import pytest
from typer.testing import CliRunner

import ovi_ray
from ovi_ray.cli import app
from ovi_ray.cli.common import ExitCode
from ovi_ray.report_address import report_address
from tests.support.files import snapshot
from tests.support.rendered_jobs import render_job
from tests.support.waiting import PATIENCE_S, wait_until

PROFILE = (
    "name: x\ndevices:\n  gpu:\n    count: 1\n    vendor: nvidia\n    memory_gb: 80\n    load_gb_per_s: 2\n"
    "    tflops: {encode_text: 1, encode_first_frame: 1, denoise: 1, decode: 1}\n"
)


def run_module(*arguments, **environment):
    given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "ovi_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**given, **environment}, check=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a prompt list and a cluster profile, which also holds all temporary files."""
    (tmp_path / "p.csv").write_text("text_prompt,seed\na fox,1\n", encoding="utf-8")
    (tmp_path / "bad.csv").write_text("text_prompt,seed\na fox,x\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(PROFILE, encoding="utf-8")
    import_module("ovi_ray.preparation")  # torch, which makes a folder for its kernels among temporary files
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_the_version_is_printed_with_that_of_python():
    result = run_module("--version")
    assert result.stdout.split() == ["ovi-ray", ovi_ray.__version__, "(Python", f"{sys.version.split()[0]})"]
    assert result.returncode == 0


def test_the_module_runs_the_program_under_its_own_name():
    assert "Usage: ovi-ray [OPTIONS] COMMAND" in run_module("--help").stdout


def test_a_package_that_is_missing_when_the_program_starts_is_a_fault_with_its_own_code(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer here')\n")
    search = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    result = run_module("render", "p.csv", "--json", PYTHONPATH=search)
    assert result.returncode == ExitCode.FAULT
    assert json.loads(result.stdout)["error"]["message"] == "no typer here"
    assert "pip install" in result.stderr
    assert report_address() in result.stderr


NOISY = """
import atexit, os, runpy, subprocess, sys
import ovi_ray.inputs.cluster_profile as profiles

def read_noisily(path, read=profiles.read_profile):
    print("noise from Python")
    os.write(1, b"noise from C\\n")
    subprocess.run(["echo", "noise from a child"])
    return read(path)

profiles.read_profile = read_noisily
atexit.register(lambda: print("noise at the end"))
sys.argv[0] = "ovi-ray"
runpy.run_module("ovi_ray", run_name="__main__")
"""


@pytest.mark.parametrize(("cluster", "code", "key"), [("c.yaml", 0, "eta_s"), ("p.csv", ExitCode.BAD_INPUT, "error")])
def test_nothing_but_the_answer_is_written_to_standard_output(folder, cluster, code, key):
    command = [sys.executable, "-c", NOISY, "plan", "p.csv", "--cluster", cluster, "--json"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert key in json.loads(result.stdout)
    assert all(f"noise {kind}" in result.stderr for kind in ("from Python", "from C", "from a child", "at the end"))


def test_standard_streams_that_are_closed_change_no_exit_code(folder):
    program = f"{shlex.quote(sys.executable)} -m ovi_ray plan p.csv --cluster c.yaml --json"
    assert subprocess.run([f"{program} >&- 2>&-"], shell=True, cwd=folder, check=False).returncode == 0


def test_the_version_and_the_help_load_neither_torch_nor_ray():
    for option in ("--version", "--help"):
        code = (
            f"import sys; sys.argv = ['ovi-ray', {option!r}]\nfrom ovi_ray.cli import main\n"
            "try: main()\nexcept SystemExit: print([name for name in ('torch', 'ray') if name in sys.modules])"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.splitlines()[-1] == "[]"


def test_a_job_with_nothing_to_do_loads_neither_torch_nor_ray_and_says_what_it_does(tiny_dir, tmp_path):
    (tmp_path / "p.csv").write_text("text_prompt\na fox\na dog\n", encoding="utf-8")
    render_job(tmp_path / "out", tmp_path / "p.csv", sample_steps=50)
    command = ("render", tmp_path / "p.csv", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--dtype", "float32")
    assert invoke(*command).exit_code == 0  # the weights were checked before
    code = (
        f"import sys; sys.argv = ['ovi-ray', *{[*map(str, command)]!r}]\nfrom ovi_ray.cli import main\n"
        "try: main()\nexcept SystemExit as end:\n"
        "    print(end.code, [name for name in ('torch', 'ray') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert result.stderr.splitlines()[0] == "checking 2 rows"
    assert "2 clips: 0 rendered, 2 finished before" in result.stderr
    detached = invoke(*command, "--detach", "--json")
    assert detached.exit_code == 0
    assert detached.stderr.count("checking 2 rows") == 1
    log = tmp_path / "out" / "driver.log"
    assert json.loads(detached.stdout)["log"] == str(log)
    wait_until(lambda: "2 clips: 0 rendered, 2 finished before" in log.read_text(encoding="utf-8"))


def test_a_job_that_is_refused_is_not_detached(folder, tiny_dir):
    before = snapshot(folder)
    command = ("render", folder / "bad.csv", "--ckpt-dir", tiny_dir, "--out", folder / "out", "--detach")
    assert invoke(*command).exit_code == 2
    assert snapshot(folder) == before


def test_ctrl_c_while_the_program_is_imported_ends_it_quietly(tmp_path):
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(600)\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "ovi_ray", "--help"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "importing\n"  # standard output is for answers
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE_S) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize(("environment", "is_red"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_respected(environment, is_red, tmp_path):
    result = run_module("retry", tmp_path / "none", FORCE_COLOR="1", TERM="xterm-256color", **environment)
    assert result.returncode == 2
    assert ("\x1b[31m" in result.stderr) == is_red


def test_planning_a_job_writes_nothing_and_needs_no_folders(folder):
    before = snapshot(folder)
    result = invoke("plan", folder / "p.csv", "--cluster", folder / "c.yaml", "--json")
    assert result.exit_code == 0, result.output
    assert snapshot(folder) == before


def test_planning_a_job_file_ignores_folders_that_are_not_there_yet(folder):
    (folder / "job.yaml").write_text("prompts: p.csv\nckpt_dir: none\noutput_dir: c.yaml/out\n", encoding="utf-8")
    assert invoke("plan", folder / "job.yaml", "--cluster", folder / "c.yaml", "--json").exit_code == 0


def test_a_job_that_is_refused_writes_nothing(folder, tiny_dir):
    before = snapshot(folder)
    result = invoke("render", folder / "bad.csv", "--ckpt-dir", tiny_dir, "--out", folder / "new" / "out")
    assert result.exit_code == 2
    assert snapshot(folder) == before
