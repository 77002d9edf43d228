"""The end of the program when an error escapes that nothing raises on purpose, and when nobody reads its output."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ovi_ray import rendering
from ovi_ray.cli import app, faults
from ovi_ray.cli.common import ExitCode
from ovi_ray.report_address import report_address
from tests.support.cli import OVI_RAY
from tests.support.waiting import PATIENCE_S

PROFILE = (
    "name: x\ndevices:\n  gpu:\n    count: 1\n    vendor: nvidia\n    memory_gb: 80\n    load_gb_per_s: 2\n"
    "    tflops: {encode_text: 1, encode_first_frame: 1, denoise: 1, decode: 1}\n"
)
KEYS = {"COLUMNS": "200", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The user's folder for state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ovi-ray"


@pytest.fixture
def planned_job(tmp_path):
    """A folder with a prompt list and a cluster profile, p.csv and c.yaml."""
    (tmp_path / "p.csv").write_text("text_prompt\na fox\n")
    (tmp_path / "c.yaml").write_text(PROFILE)
    return tmp_path


@pytest.fixture
def failing_plan(monkeypatch, state, planned_job):
    """Run `ovi-ray plan` with an error in reading the cluster profile."""
    import ovi_ray.inputs.cluster_profile as profiles

    def run(error, *options):
        def fail(path):
            raise error

        monkeypatch.setattr(profiles, "read_profile", fail)
        monkeypatch.chdir(planned_job)
        return CliRunner().invoke(app, ["plan", "p.csv", "--cluster", "c.yaml", *options], env={"COLUMNS": "200"})

    return run


@pytest.mark.parametrize("command", ["status", "stop", "logs", "wait", "retry", "prune", "explain", "export", "serve"])
def test_a_folder_that_the_system_refuses_is_no_fault(tmp_path, state, command):
    (tmp_path / "file").write_text("x")
    below = str(tmp_path / "file" / "out")
    folders = [below, str(tmp_path / "exported")] if command == "export" else [below]
    result = CliRunner().invoke(app, [command, *folders], env={"COLUMNS": "200"})
    assert (result.exit_code, result.stdout) == (ExitCode.BAD_INPUT, "")
    assert below in result.stderr
    assert not (state / faults.FAULT_LOG).exists()


@pytest.mark.parametrize("command", ["status", "prune"])
def test_a_store_that_does_not_answer_is_told_in_plain_words(state, command):
    result = CliRunner().invoke(app, [command, "s3://b/out?endpoint_override=http://127.0.0.1:1"], env=KEYS)
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "the store does not answer" in result.stderr
    assert "Generic S3 error" not in result.stderr


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), KeyError("x"), OSError(5, "I/O"), EOFError("x"), MemoryError()]
)
def test_any_error_that_escapes_ends_with_one_code_and_names_its_log(failing_plan, state, error):
    result = failing_plan(error)
    assert result.exit_code == ExitCode.FAULT
    assert str(state / faults.FAULT_LOG) in result.stderr
    assert "Traceback" not in result.stderr
    log = (state / faults.FAULT_LOG).read_text()
    assert "ovi-ray plan p.csv --cluster c.yaml" in log
    assert type(error).__name__ in log
    assert "Traceback" in log


def test_minus_v_shows_the_traceback(failing_plan):
    for option in ("-v", "-vv", "--verbose"):
        assert "Traceback" in failing_plan(ZeroDivisionError("x"), option).stderr


def test_with_json_a_command_that_is_interrupted_or_terminated_prints_json(failing_plan):
    for stopped, code, kind in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (faults.StoppedBySignal(signal.SIGTERM), 143, "terminated"),
        (faults.StoppedBySignal(signal.SIGHUP), 129, "hung_up"),
    ):
        result = failing_plan(stopped, "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["kind"]) == (code, kind)
        assert failing_plan(stopped).stdout == ""


def test_with_json_a_fault_is_json_too(failing_plan, state):
    result = failing_plan(ZeroDivisionError("by zero"), "--json")
    assert json.loads(result.stdout)["error"] == {
        "kind": "fault",
        "type": "ZeroDivisionError",
        "message": "by zero",
        "log": str(state / faults.FAULT_LOG),
        "report_to": report_address(),
    }
    assert result.exit_code == ExitCode.FAULT


def test_the_fault_of_a_job_is_in_the_jobs_log(state, monkeypatch, tiny_dir, tmp_path):
    def fail(prepared, **given):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(rendering, "render", fail)
    out = tmp_path / "[bold]out"
    out.mkdir()
    command = ["render", "a red fox", "--ckpt-dir", str(tiny_dir), "--out", str(out), "-q"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == ExitCode.FAULT
    assert str(out / "run.log") in result.stderr
    assert "ZeroDivisionError: by zero" in (out / "run.log").read_text()
    assert not state.exists()


def test_passwords_are_neither_printed_nor_logged(failing_plan, state):
    result = failing_plan(ValueError("no s3://user:secret@bucket/a"), "--actual", "s3://user:secret@bucket/x")
    assert "secret" not in result.output + (state / faults.FAULT_LOG).read_text()


def test_a_fault_that_cannot_be_logged_is_shown_whole(failing_plan, state):
    state.parent.write_text("a file in place of the folder")
    result = failing_plan(ZeroDivisionError("x"))
    assert result.exit_code == ExitCode.FAULT
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("module", ["-m", "-c"])
def test_the_module_and_the_program_end_alike(module, planned_job, tmp_path):
    start = "import ovi_ray.inputs.cluster_profile as p; p.read_profile = lambda path: 1 / 0; "
    run = {
        "-m": "import runpy, sys; sys.argv[0] = 'ovi_ray'; runpy.run_module('ovi_ray', run_name='__main__')",
        "-c": "from ovi_ray.cli import main; main()",
    }[module]
    result = subprocess.run(
        [sys.executable, "-c", start + run, "plan", "p.csv", "--cluster", "c.yaml"],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        cwd=planned_job,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == ExitCode.FAULT
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plan", "p.csv", "--cluster", "c.yaml"], ["plan", "p.csv", "--cluster", "c.yaml", "--json"]],
)
def test_a_reader_that_leaves_ends_the_program_quietly(arguments, planned_job):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*OVI_RAY, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=planned_job,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (ExitCode.BROKEN_PIPE, "")


def test_messages_that_nobody_can_read_change_nothing(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*OVI_RAY, "retry", str(tmp_path / "none")],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stdout) == (ExitCode.BAD_INPUT, "")


def test_a_broken_pipe_of_something_else_is_a_fault(failing_plan):
    assert failing_plan(BrokenPipeError(32, "Broken pipe")).exit_code == ExitCode.FAULT


def test_a_command_whose_terminal_is_closed_ends_with_the_code_of_that_and_nohup_keeps_it_running(planned_job):
    program = (
        "import os, signal, sys, ovi_ray.inputs.cluster_profile as profiles\n"
        "def read(path):\n    os.kill(os.getpid(), signal.SIGHUP)\n    raise profiles.InputError([])\n"
        "profiles.read_profile = read\n"
        "sys.argv = ['ovi-ray', 'plan', 'p.csv', '--cluster', 'c.yaml']\n"
        "from ovi_ray.cli import main; main()"
    )
    for is_ignored, code in ((False, ExitCode.HUNG_UP), (True, ExitCode.BAD_INPUT)):
        action = "SIG_IGN" if is_ignored else "SIG_DFL"
        given = f"import signal; signal.signal(signal.SIGHUP, signal.{action})\n{program}"
        ended = subprocess.run([sys.executable, "-c", given], cwd=planned_job, capture_output=True, check=False)
        assert ended.returncode == code


def test_the_codes_are_those_of_shells_and_sysexits():
    assert ExitCode.FAULT == os.EX_SOFTWARE
    assert ExitCode.HUNG_UP == 128 + signal.SIGHUP
    assert ExitCode.BROKEN_PIPE == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (("render", "nowhere.csv", "--out", "out", "--ckpt-dir", "none"), "PROMPTS"),
        (("plan", "p.csv", "--cluster", "nowhere.yaml"), "--cluster"),
        (("explain", "nowhere"), None),
        (("export", "nowhere", "files"), None),
        (("status", "nobody"), "ID"),
        (("stop", "nobody"), "ID"),
        (("wait", "nobody"), "ID"),
        (("doctor", "--ckpt-dir", "foo://x"), "--ckpt-dir"),
        (("job", "show", "nowhere.yaml"), None),
    ],
)
def test_with_json_wrong_input_is_json_with_every_problem(planned_job, monkeypatch, command, field):
    monkeypatch.chdir(planned_job)
    result = CliRunner().invoke(app, [*command, "--json"], env={"COLUMNS": "200"})
    assert result.exit_code == ExitCode.BAD_INPUT
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["type"]) == ("bad_input", "InputError")
    assert error["message"] in result.stderr
    assert {"file", "row", "line", "field", "value", "expected"} == set(error["problems"][0])
    assert field in {problem["field"] for problem in error["problems"]}


def test_with_json_options_that_cannot_be_read_are_json_too():
    result = CliRunner().invoke(app, ["plan", "--no-such-option", "--json"])
    assert result.exit_code == ExitCode.BAD_INPUT
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["type"]) == ("bad_input", "UsageError")
    assert "--no-such-option" in error["message"]
