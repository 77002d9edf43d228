"""Standard output, which has the answer of a command and nothing else, because a program reads it.

Libraries print, C code writes to file descriptor 1, child processes inherit it. So an answer goes to a stream of its own, and
what anyone else writes to standard output ends on standard error.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TextIO

_STDOUT, _STDERR = 1, 2
_stream: ContextVar[TextIO | None] = ContextVar("_stream", default=None)


def answers() -> TextIO:
    """The stream of answers: standard output, or where it led before it was kept for them."""
    return _stream.get() or sys.stdout


def answer(text: str, *, end: str = "\n") -> None:
    """Print the answer, or a part of it."""
    print(text, end=end, file=answers(), flush=True)


@contextmanager
def kept_for_answers() -> Iterator[None]:
    """For the time of the block, `sys.stdout` is standard error."""
    token = _stream.set(answers())
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stream.reset(token)


def keep_descriptor_for_answers() -> None:
    """From now on, `sys.stdout` and file descriptor 1 are standard error, in this process and for its children.

    A standard stream that is closed leads nowhere.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= _STDERR:  # takes the place of one that is closed
        pass
    lost = open(nowhere, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    before, sys.stderr = sys.stdout or lost, sys.stderr or lost
    own = os.dup(_STDOUT)
    _stream.set(open(own, "w", encoding=before.encoding, errors=before.errors))  # noqa: PTH123, SIM115
    os.dup2(_STDERR, _STDOUT)
    sys.stdout = sys.stderr
