"""Text for terminals: consoles that print it as it is, and commands that can be pasted into a shell."""

import re
import shlex
from typing import IO, Any

import rich.console
from rich.text import Text

from ovi_ray.answers import answers

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # what os.fsdecode makes of the bytes of a name that is not UTF-8


class Console(rich.console.Console):
    """A console without markup, emoji codes and highlighting. Text is printed as it is, or escaped where it cannot be.

    Without `stderr` and `file` it prints answers. The linter forbids rich's own class elsewhere: a path with brackets would
    lose them, or end the program.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> None:
        stream = file if stderr else file or answers()
        super().__init__(stderr=stderr, file=stream, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich: every text that is printed, alone or in a table, passes through here."""
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    r"""The text with control characters, and bytes of names that are not UTF-8, as escapes such as \x1b."""
    return _UNPRINTABLE.sub(_escaped, text)


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded: names of files and arguments that are not UTF-8 hold lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shell_command(*words: object) -> str:
    """A command line with each word quoted for a shell where it needs to be; a word `>` redirects."""
    return " ".join(">" if word == ">" else _quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    """A word for a shell; what a terminal would not print as it is, such as a tab, stands as an escape of bash and zsh."""
    if not (_UNPRINTABLE.search(word) or "\t" in word):
        return shlex.quote(word)
    spelled = re.sub(r"['\\]", r"\\\g<0>", word).replace("\t", r"\t").replace("\n", r"\n")
    return f"$'{printable(spelled)}'"


def counted(number: int, thing: str) -> str:
    """A number of things in words: "1 clip", "2,000 clips"."""
    return f"{number:,} {noun(number, thing)}"


def noun(number: int, thing: str) -> str:
    """The name of so many things: "clip", "clips"."""
    return thing if number == 1 else f"{thing}s"
