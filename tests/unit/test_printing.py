"""Text on a terminal is the text that was given."""

import io
import os
import shlex
import subprocess
from datetime import date, datetime, time

import pytest
from rich.table import Table

from ovi_ray.errors import show, show_path
from ovi_ray.printing import Console, counted, is_utf8, printable, shell_command


def printed(content, **options):
    console = Console(file=io.StringIO(), width=200)
    console.print(content, **options)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "takes [/final]",
        "out [v2]",
        "[bold red]x",
        "[link=http://x]y[/link]",
        "\\[x]",
        ":smile: :fox:",
        "[/]",
        "[@click=x]",
    ],
)
def test_brackets_and_colons_are_printed_as_they_are_alone_and_in_tables(text):
    table = Table(box=None, show_header=False)
    table.add_row(text)
    assert printed(text, style="red", soft_wrap=True) == f"{text}\n"
    assert printed(table).strip() == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (os.fsdecode(b"caf\xe9/out"), "caf\\xe9/out"),
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("a\rb\x07\x9bc", "a\\x0db\\x07\\x9bc"),
        ("\ud800", "\\ud800"),
        ("狐\n\tfox ’ é", "狐\n\tfox ’ é"),
    ],
)
def test_what_cannot_be_printed_is_an_escape(text, shown):
    assert printable(text) == shown
    assert printed(text.replace("\t", ""), soft_wrap=True) == shown.replace("\t", "") + "\n"


def test_a_path_that_is_not_utf8_is_shown_by_its_bytes():
    assert show_path(os.fsdecode(b"caf\xe9/[v2]")) == "'caf\\xe9/[v2]'"
    assert not is_utf8(os.fsdecode(b"caf\xe9"))
    assert is_utf8("café 狐")


@pytest.mark.parametrize("path", ["out", "my out [v2]", "it's", "$HOME/`x`", "a\nb", "-x", ""])
def test_a_command_is_read_by_a_shell_as_the_words_that_it_was_made_of(path):
    assert shlex.split(shell_command("ovi-ray", "retry", path, ">", path)) == ["ovi-ray", "retry", path, ">", path]


@pytest.mark.parametrize("path", ["a\tb", "it's \\ \x1b[1m", os.fsdecode(b"caf\xe9\n")])
def test_a_command_with_characters_that_no_terminal_prints_is_read_by_bash_as_it_was_made(path):
    command = shell_command("printf", "%s", path)
    assert command == printable(command)
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout == os.fsencode(path)


def test_a_value_is_shown_as_its_file_would_have_it():
    values = (True, date(2024, 1, 2), datetime(2024, 1, 2, 3, 4), time(3, 4), 5, "x")
    assert [show(value) for value in values] == ["true", "2024-01-02", "2024-01-02T03:04:00", "03:04:00", "5", "'x'"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (2000, "2,000 clips"), (1_000_000, "1,000,000 clips")],
)
def test_one_thing_is_named_in_the_singular(number, words):
    assert counted(number, "clip") == words
