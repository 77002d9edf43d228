"""Options that are generated from the fields of a job, and those that every command has."""

import json
import logging
import re
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from ovi.config import SamplingParams
from ovi_ray.cli import app
from ovi_ray.cli.render import JOB_PANELS
from ovi_ray.inputs.job_file import option_name
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.rendering import JobResult
from tests.support.params import another_value

RESULT = JobResult(clips=1, done=1, failed=0, finished_before=0, seconds=1.0)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def rendered(monkeypatch):
    """The jobs that `ovi-ray render` would have started, with what it passed on."""
    calls = []

    def run_job(prepared, console, *, explain, quiet, options, metrics, notify, part):
        watched = {"metrics": metrics, "notify": notify}
        calls.append({"job": prepared.job, "quiet": quiet, "explain": explain, "options": options, "watched": watched})
        return RESULT

    monkeypatch.setattr(import_module("ovi_ray.cli.render"), "run_job", run_job)
    return calls


@pytest.fixture
def levels(monkeypatch):
    """The log levels that were configured."""
    levels = []
    monkeypatch.setattr(import_module("ovi_ray.cli.common"), "configure_logging", lambda level, _: levels.append(level))
    return levels


def as_text(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("command", ["render", "retry", "plan"])
def test_every_sampling_parameter_is_an_option_of_every_command_that_takes_a_job(command):
    text = invoke(command, "--help").stdout
    assert [name for name in (*PARAM_FIELDS, "model_name") if f"{option_name(name)} " not in text] == []


def commands(command, *path):
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, *path, name)
    if path and not hasattr(command, "commands"):
        yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_tells_its_default_once_and_the_help_has_an_example(name):
    command = COMMANDS[name]
    assert "Example" in command.help
    for option in command.params:
        if option.param_type_name != "option" or option.required or option.name == "help":
            continue
        told = (option.help or "").count("[default: ")
        shown = option.default is not None and option.show_default and not option.is_flag
        assert told + shown == 1, option.opts


def test_render_has_an_option_for_every_field_of_a_job_but_the_argument_and_what_has_no_effect():
    offered = {name for names in JOB_PANELS.values() for name in names}
    assert JobSpec.model_fields.keys() - offered == {
        "prompts",
        "text_prompt",
        "sp_size",
        "allow_lossy",
        "prices",
        "priority",
        "environment",
    }


def test_the_help_shows_defaults_choices_and_panels():
    text = " ".join(invoke("render", "--help").stdout.replace("│", " ").split())
    for words in (
        "Denoising steps. [default: 50]",
        "[default: 704x1280]",
        "unipc|dpm++|euler",
        "One of 720x720_5s, 960x960_5s, 960x960_10s.",
        "What to render",
        "Sampling",
    ):
        assert words in text


@pytest.mark.parametrize("in_file", [True, False])
def test_a_flag_turns_off_or_on_what_the_job_file_has(rendered, tiny_dir, tmp_path, in_file):
    names = ("speculation", "keep_latents", "cpu_offload")
    job = tmp_path / "job.yaml"
    job.write_text("\n".join(["prompt: a red fox", *(f"{name}: {str(in_file).lower()}" for name in names)]))
    flags = [option_name(name).replace("--", "--no-") if in_file else option_name(name) for name in names]
    result = invoke("render", job, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    assert [getattr(rendered[0]["job"], name) for name in names] == [not in_file] * len(names)


def test_the_shell_completes_the_values_of_an_option_with_few_of_them():
    completing = {
        "COMP_WORDS": "ovi-ray render --solver-name u",
        "COMP_CWORD": "3",
        "_OVI_RAY_COMPLETE": "complete_bash",
    }
    assert CliRunner().invoke(app, [], prog_name="ovi-ray", env=completing).stdout.split() == ["unipc"]


def test_every_sampling_parameter_reaches_the_job(rendered, tiny_dir, tmp_path):
    given = {name: another_value(name) for name in PARAM_FIELDS}
    options = [text for name, value in given.items() for text in (option_name(name), as_text(value))]
    result = invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert rendered[0]["job"].params == SamplingParams(**given)


def test_the_other_options_reach_the_job(rendered, tiny_dir, tmp_path):
    options = ("--mode", "t2v", "--workers", 3, "--device", "cpu", "--dtype", "float32", "--attention", "sdpa_math")
    flags = (
        "--allow-inexact",
        "--compile",
        "--cpu-offload",
        "--kernels",
        "eager",
        "--memory-gb",
        90,
        "--each-example-n-times",
        2,
    )
    result = invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", *options, *flags)
    assert result.exit_code == 0, result.output
    job = rendered[0]["job"]
    assert (job.mode, job.workers, job.device, job.dtype, job.attention) == ("t2v", 3, "cpu", "float32", "sdpa_math")
    assert (job.allow_inexact, job.cpu_offload, job.memory_gb, job.each_example_n_times) == (True, True, 90, 2)
    assert (job.compile, job.kernels, job.qint8, job.fp8) == (True, "eager", False, False)
    assert rendered[0]["watched"] == {"metrics": None, "notify": None}


def test_those_who_watch_are_named_by_options(rendered, tiny_dir, tmp_path):
    watch = ("--metrics", "9400", "--notify", "https://chat.example/hook")
    assert invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", *watch).exit_code == 0
    assert rendered[0]["watched"] == {"metrics": "9400", "notify": "https://chat.example/hook"}


@pytest.mark.parametrize("command", [("render", "a red fox"), ("retry", "nowhere")])
def test_addresses_for_those_who_watch_are_checked_before_anything_else(command):
    result = invoke(*command, "--metrics", "web", "--notify", "chat", "--json")
    fields = [problem["field"] for problem in json.loads(result.stdout)["error"]["problems"]]
    assert (result.exit_code, fields) == (2, ["--metrics", "--notify"])


def test_a_text_with_spaces_that_is_not_a_file_is_a_prompt(rendered, tiny_dir, tmp_path):
    assert invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out").exit_code == 0
    assert rendered[0]["job"].text_prompt == "a red fox"


@pytest.mark.parametrize("text", ["prompts.csv", "fox", "lists/", "s3://bucket/list"])
def test_the_option_prompt_is_never_taken_for_a_file(rendered, tiny_dir, tmp_path, text):
    result = invoke("render", "--prompt", text, "--ckpt-dir", tiny_dir, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    job = rendered[0]["job"]
    assert (job.text_prompt, job.prompts) == (text, None)


def test_the_option_prompt_replaces_the_list_of_a_job_file(rendered, tiny_dir, tmp_path):
    (tmp_path / "job.yaml").write_text(f"text_prompt: none.csv\nckpt_dir: {tiny_dir}\noutput_dir: out\n")
    assert invoke("render", tmp_path / "job.yaml", "--prompt", "a red fox").exit_code == 0
    assert rendered[0]["job"].text_prompt == "a red fox"


@pytest.mark.parametrize(
    ("options", "quiet"), [((), False), (("-q",), True), (("--quiet",), True), (("-v", "--log-level", "debug"), False)]
)
def test_render_is_quiet_only_when_asked_to_be(rendered, tiny_dir, tmp_path, options, quiet):
    assert invoke("render", "a red fox", "--ckpt-dir", tiny_dir, "--out", tmp_path / "o", *options).exit_code == 0
    assert rendered[0]["quiet"] == quiet


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ((), logging.WARNING),
        (("-v",), logging.INFO),
        (("-vv",), logging.DEBUG),
        (("--quiet",), logging.ERROR),
        (("-q", "--log-level", "info"), logging.INFO),
        (("--log-level", "error", "-v"), logging.ERROR),
    ],
)
@pytest.mark.parametrize(
    "command", [["weights", "check", "none"], ["retry", "none"], ["plan", "none.csv", "--cluster", "none.yaml"]]
)
def test_every_command_sets_the_log_level(levels, command, options, level):
    invoke(*command, *options)
    assert levels == [level]


def test_the_help_of_render_tells_the_default_of_every_option():
    text = CliRunner().invoke(app, ["render", "--help"], env={"COLUMNS": "400"}).stdout
    lines = [
        line for line in text.splitlines() if re.match(r"│ \*?\s+--(?!help)", line) or re.match(r"│ --(?!help)", line)
    ]
    assert len(lines) > 40
    undecided = [line.split()[1] for line in lines if "[default: " not in line]
    assert undecided == []
