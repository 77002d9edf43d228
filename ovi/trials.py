"""Trials of GPU code in child processes, and the file that remembers their results.

A child answers with lines on its standard output. What libraries print meanwhile goes to standard error, whose last lines
are kept as the reason of a crash.
"""

import json
import os
import queue
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch.backends import cudnn

from ovi.files import atomic_writer

T = TypeVar("T")
_END_S = 10.0  # for a killed child to end; one that hangs in the driver may not
_LAST_LINES = 2
_LAST_CHARS = 300


class ChildFailed(Exception):
    """A child hung or died; the message says which, with its last words."""


class Child:
    """A child process with its answers, and the last lines of what else it says."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._hear, self._process.stdout), (self._overhear, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def answer(self, read: Callable[[str], T | None], timeout_s: float) -> T:
        """The next answer: what `read` makes of a line, None for one that is no answer. Raises ChildFailed."""
        while True:
            try:
                line = self._lines.get(timeout=timeout_s)
            except queue.Empty:
                raise ChildFailed(f"it hung: no result within {timeout_s:.0f} s{self._last_words()}") from None
            if line is None:
                raise ChildFailed(self._death())
            if (answer := read(line)) is not None:
                return answer

    def end(self) -> None:
        """Kill the child."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def _death(self) -> str:
        code = self._process.wait()
        for reader in self._readers:
            reader.join(_END_S)
        return f"its process died with exit code {code}{self._last_words()}"

    def _last_words(self) -> str:
        words = " / ".join(self._said)[-_LAST_CHARS:]
        return f"; its last words: {words}" if words else ""

    def _hear(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _overhear(self, stderr: IO[str]) -> None:
        self._said.extend(filter(None, (line.strip() for line in stderr)))


def ask_child(command: Sequence[str], request: object, read: Callable[[str], T | None], timeout_s: float) -> T:
    """The only answer of a child that is given a request as JSON; `read` is as in `Child.answer`. Raises ChildFailed."""
    child = Child([*command, json.dumps(request)])
    try:
        return child.answer(read, timeout_s)
    finally:
        child.end()


def private_output() -> IO[str]:
    """The standard output for this child's answers alone: what anything else prints goes to standard error.

    From then on the child ends with its parent, whose end of the standard input closes.
    """
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)  # in the middle of a kernel, if need be: nothing waits for the result


def build_of_torch() -> str:
    """The versions under torch that a trial's result depends on."""
    return f"torch {torch.__version__} cuda {torch.version.cuda} hip {torch.version.hip} cudnn {cudnn.version()}"


class TrialFile:
    """Results of trials in a JSON file, by key. An unreadable file counts as empty, and one that cannot be written is left."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> Any:
        """The result with a key; None if there is none."""
        return self._read().get(key)

    def put(self, results: Mapping[str, Any]) -> None:
        """Add results, replacing older ones with the same keys."""
        if not results:
            return
        with suppress(OSError):  # for example a read-only home directory
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.path) as unfinished:
                unfinished.write_text(json.dumps({**self._read(), **results}, indent=1), encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
