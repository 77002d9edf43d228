"""Exit codes: the same in every command, for every way to end."""

import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ovi_ray import rendering
from ovi_ray.cli import app
from ovi_ray.cli.common import EXIT_CODE_HELP, ExitCode
from ovi_ray.errors import ClusterError, JobStopped, OutputInUse, StorageUnavailable, WorkersLost
from ovi_ray.rendering import JobResult
from tests.support.cli import ROOT

PROFILE = ROOT / "cluster" / "profiles" / "a.yaml"

STOPS = [
    (signal.SIGINT, ExitCode.INTERRUPTED),
    (signal.SIGTERM, ExitCode.TERMINATED),
    (signal.SIGHUP, ExitCode.HUNG_UP),
]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def render_ending(monkeypatch, tiny_dir, tmp_path):
    """Run `ovi-ray render` on a job that ends as `end` does."""

    def run(end):
        monkeypatch.setattr(rendering, "render", lambda prepared, **given: end())
        return invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "-q")

    return run


def raising(error):
    def end():
        raise error

    return end


def stopping(number):
    def end():
        os.kill(os.getpid(), number)
        raise JobStopped("the job was asked to stop")

    return end


@pytest.mark.parametrize(("failed", "code"), [(0, ExitCode.OK), (2, ExitCode.FAILED)])
def test_a_job_that_ends_tells_whether_clips_failed(render_ending, failed, code):
    result = JobResult(clips=3, done=3 - failed, failed=failed, finished_before=0, seconds=1.0)
    assert render_ending(lambda: result).exit_code == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutputInUse("in use"), ExitCode.BAD_INPUT),
        (ClusterError("no cluster"), ExitCode.UNAVAILABLE),
        (WorkersLost("no worker"), ExitCode.UNAVAILABLE),
        (StorageUnavailable("no store"), ExitCode.UNAVAILABLE),
    ],
)
def test_a_job_that_cannot_go_on_ends_with_the_code_of_its_error_and_its_message(render_ending, error, code):
    result = render_ending(raising(error))
    assert result.exit_code == code
    assert str(error) in result.stderr


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_job_that_is_stopped_ends_with_the_code_of_the_signal(render_ending, number, code):
    assert render_ending(stopping(number)).exit_code == code


@pytest.mark.parametrize(
    "command",
    [
        ["render", "none.csv", "--ckpt-dir", "none", "--out", "out"],
        ["retry", "none"],
        ["plan", "none.csv", "--cluster", "none.yaml"],
        ["doctor", "--ckpt-dir", "s3://key:secret@b/ckpts"],
        ["weights", "check", "none"],
        ["weights", "download", "--model-name", "480p", "none"],
    ],
)
def test_bad_input_has_the_same_code_in_every_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(*command).exit_code == ExitCode.BAD_INPUT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["render", "doctor"])
def test_a_cluster_that_does_not_answer_has_its_code_and_one_line(command, tiny_dir, tmp_path):
    given = {"render": ["render", "a red fox", "--out", tmp_path / "out"], "doctor": ["doctor"]}[command]
    result = invoke(*given, "--ckpt-dir", tiny_dir, "--address", "no-such-host.invalid:6379")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "the name no-such-host.invalid does not resolve" in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1  # told before anything is checked, which takes long for large weights
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_the_doctor_cannot_reach_has_the_code_of_a_cluster():
    assert invoke("doctor", "--address", "no-such-host.invalid:1").exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_command_that_is_stopped_before_its_job_runs_ends_with_the_code_of_the_signal(number, code):
    program = (
        "import os, signal, sys, ovi_ray.inputs.cluster_profile as profiles\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        f"profiles.read_profile = lambda path: os.kill(os.getpid(), {int(number)})\n"
        f"sys.argv = ['ovi-ray', 'plan', 'a red fox', '--cluster', {str(PROFILE)!r}]\n"
        "from ovi_ray.cli import main; main()"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == code


def test_the_help_lists_every_code():
    numbers = "".join(character if character.isdigit() else " " for character in EXIT_CODE_HELP).split()
    assert [int(number) for number in numbers] == list(ExitCode)
    for command in ([], ["render"], ["retry"], ["plan"], ["doctor"], ["weights"]):
        assert EXIT_CODE_HELP in " ".join(invoke(*command, "--help").stdout.split())


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("stop",),
        ("logs",),
        ("wait",),
        ("explain",),
        ("prune",),
        ("retry",),
        ("init",),
        ("weights", "tiny"),
    ],
    ids=" ".join,
)
def test_a_file_in_place_of_a_folder_is_refused_by_every_command(tmp_path, command):
    (tmp_path / "p.csv").touch()
    result = invoke(*command, tmp_path / "p.csv")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "p.csv" in result.stderr
