"""The README's commands work as they are printed: all of them are read by the parser, and the cheap ones run."""

import contextlib
import re

import pytest
import yaml
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.cli.init import copy_examples
from ovi_ray.rendering import render
from tests.support.cli import ROOT
from tests.support.console import blocks, command_of, printed_lines, words_of
from tests.support.rendered_jobs import RenderingExecutor

README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_PROGRAMS = {"make", "pip", "uv", "ray", "python3.11", "."}
ELSEWHERE = {"serve", "submit", "jobs", "logs", "stop", "wait", "doctor", "weights download", "weights check", "plan"}
"""Commands that go on until they are stopped, need a cluster, a GPU or the hub, or take seconds and have tests of their own."""
NOT_RUN_WITH = ("--detach", "--metrics", "s3://")


LINES = [(words, shown) for line, shown in printed_lines(README) for words in words_of(line)]
COMMANDS = [words[1:] for words, _ in LINES if words[0] == "ovi-ray"]


def test_every_program_of_the_readme_is_known_and_its_make_targets_exist():
    assert len(COMMANDS) > 20
    assert {words[0] for words, _ in LINES} - OTHER_PROGRAMS == {"ovi-ray"}
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for words, _ in LINES if words[0] == "make" for word in words[1:]} <= targets


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_parser_reads_every_command(words):
    command, name, arguments = command_of(words)
    command.make_context(name, arguments)


def test_every_local_link_and_picture_of_the_readme_exists():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


@pytest.fixture
def films(tmp_path, monkeypatch, tiny_dir):
    """A folder with the files that the README shows or names, as a user has them."""
    copy_examples(tmp_path)
    (tmp_path / "ckpts").symlink_to(tiny_dir)
    (prompts,) = blocks(README, "csv")
    (tmp_path / "prompts.csv").write_text(prompts, encoding="utf-8")
    job = yaml.safe_load(blocks(README, "yaml")[0])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "ckpt_dir": "ckpts"}), encoding="utf-8")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "boat.png").write_bytes((tiny_dir.parent / "first_frame.png").read_bytes())
    executors = iter(RenderingExecutor, None)
    monkeypatch.setitem(
        render.__kwdefaults__, "open_executor", lambda job, config: contextlib.nullcontext(next(executors))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_the_cheap_commands_run_in_the_order_of_the_readme(films):
    """One job is rendered, as the README does; of further renders it is said what they would do."""
    assert invoke("render", "prompts.csv", "--ckpt-dir", "ckpts", "--out", "demo/out").exit_code == 0
    has_rendered = False
    for words in COMMANDS:
        _, name, _ = command_of(words)
        if name in ELSEWHERE or any(part in word for word in words for part in NOT_RUN_WITH) or "broken.csv" in words:
            continue
        if name == "render" and has_rendered:
            words = [*words, "--dry-run"]
        if "picks.csv" in words:
            clip = next((films / "out" / "videos").iterdir()).stem
            (films / "picks.csv").write_text(f"clip_id\n{clip}\n")
        result = invoke(*words)
        assert result.exit_code == 0, (words, result.stderr, result.exception)
        has_rendered = has_rendered or name == "render"
    shots = sorted(path.name for path in (films / "shots").glob("*.mp4"))
    assert [re.sub(r"_s\d+_", "_s_", name) for name in shots] == ["sh010_s_g4.mp4", "sh020_s_g4.mp4"]
    assert len(list((films / "edit").glob("*.mov"))) == 1


def test_the_refusal_in_the_readme_is_what_is_printed(films):
    (shown,) = (shown for words, shown in LINES if "broken.csv" in words)
    (films / "frames" / "boat.png").unlink()
    (films / "broken.csv").write_text(
        "text_prompt,image_path,seed,sample_steps\na,frames/boat.png,,\nb,,seven,\nc,,,0\n"
    )
    result = invoke("render", "broken.csv", "--ckpt-dir", "ckpts", "--out", "out")
    assert result.exit_code == 2
    printed = result.stderr.replace(str(films.resolve()), "/home/me").splitlines()
    assert [line for line in printed if line in shown] == shown
