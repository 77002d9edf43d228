"""The commands that a document shows in its `console` blocks."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from ovi_ray.cli import app

PROMPT = re.compile(r"(?:[a-z]+)?\$ +(.*)")
PROGRAM = typer.main.get_command(app)


def blocks(text: str, language: str) -> list[str]:
    """The contents of the blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def printed_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command line of a document, with what is printed below it."""
    for block in blocks(text, "console"):
        lines = block.replace("\\\n", "").splitlines()
        starts = [number for number, line in enumerate(lines) if PROMPT.match(line)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            yield PROMPT.match(lines[start])[1], lines[start + 1 : end]


def words_of(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without its comment and what it redirects."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    lexer.commenters, lexer.whitespace_split = "#", True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word.strip(";&|>") == "":
            if words:
                yield words
            words = []
        else:
            words.append(word)


def command_of(words: Sequence[str]) -> tuple[Any, str, Sequence[str]]:
    """The command of ovi-ray's that the words call, its name, and its arguments."""
    command, names = PROGRAM, []
    while hasattr(command, "commands"):
        names.append(words[len(names)])
        command = command.commands[names[-1]]
    return command, " ".join(names), words[len(names) :]
