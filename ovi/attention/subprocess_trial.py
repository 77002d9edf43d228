"""Backend trials in a child process, so that a backend that hangs or crashes cannot take the parent down.

The child answers with one line of JSON per trial. What libraries print meanwhile goes to standard error, whose last lines
are kept as the reason of a crash. When an answer takes too long, the parent kills the child and continues with the next
trial in a new one; so it does after an error that leaves the child unable to use the GPU.

    python -m ovi.attention.subprocess_trial REQUEST    # JSON: {"device": "cuda", "dtype": "bfloat16", "jobs": [...]}
"""

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

import torch

from ovi.attention.benchmark import Trial, measure
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape
from ovi.device_errors import may_pass

Job = tuple[AttentionBackend, AttentionShape]
TIMEOUT_S = 120.0  # per trial; the first call of some kernels compiles for a minute
_END_S = 10.0  # for a killed child to end; one that hangs in the driver may not
_LAST_LINES = 2
_LAST_CHARS = 300
_COMMAND = (sys.executable, "-m", "ovi.attention.subprocess_trial")


def measure_in_subprocess(
    target: AttentionTarget,
    jobs: Sequence[Job],
    *,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = _COMMAND,
) -> list[Trial]:
    """The trial of each job, in order. A backend that hangs or crashes yields a trial with that reason.

    It is not tried at its other shapes, each of which would cost as long.
    """
    trials: dict[Job, Trial] = {}
    broken: dict[AttentionBackend, str] = {}
    while rest := [job for job in jobs if job not in trials]:
        for job, trial in _in_one_process(target, rest, timeout_s, command):
            trials[job] = trial
            if trial.spoilt:
                broken[job[0]] = f"at {job[1]} {trial.reason}"
        for job in rest:
            if job not in trials and (reason := broken.get(job[0])):
                trials[job] = Trial(backend=job[0], reason=reason, transient=True)
    return [trials[job] for job in jobs]


def _in_one_process(
    target: AttentionTarget, jobs: Sequence[Job], timeout_s: float, command: Sequence[str]
) -> Iterator[tuple[Job, Trial]]:
    """Yield trials up to and including the first that hangs, crashes or spoils the process."""
    child = _Child(command, _request(target, jobs))
    try:
        for job in jobs:
            trial = child.answer(job[0], timeout_s)
            yield job, trial
            if trial.spoilt:
                return
    finally:
        child.end()


class _Child:
    """A child process with its answers, and the last lines of what else it says."""

    def __init__(self, command: Sequence[str], request: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [*command, request], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._hear, self._process.stdout), (self._overhear, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def answer(self, backend: AttentionBackend, timeout_s: float) -> Trial:
        """The child's next answer, which is about `backend`, or why there is none."""
        while True:
            try:
                line = self._lines.get(timeout=timeout_s)
            except queue.Empty:
                return _failed(backend, f"it hung: no result within {timeout_s:.0f} s{self._last_words()}")
            if line is None:
                return _failed(backend, self._death())
            if (trial := _trial(line, backend)) is not None:
                return trial

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


def _failed(backend: AttentionBackend, reason: str) -> Trial:
    return Trial(backend=backend, reason=reason, transient=True, spoilt=True)


def _trial(line: str, backend: AttentionBackend) -> Trial | None:
    """The trial that a line holds; None for any other line, which a library printed."""
    try:
        answer = json.loads(line)
        return Trial(**{**answer, "backend": backend}) if answer["backend"] == backend else None
    except (ValueError, TypeError, LookupError):
        return None


def _request(target: AttentionTarget, jobs: Sequence[Job]) -> str:
    return json.dumps(
        {
            "device": target.device,
            "dtype": str(target.dtype).removeprefix("torch."),
            "jobs": [[backend, dataclasses.astuple(shape)] for backend, shape in jobs],
        }
    )


def _private_output() -> IO[str]:
    """The standard output for this process's answers alone: what anything else prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _answer(request: dict[str, Any], out: IO[str]) -> None:
    fields = [field.name for field in dataclasses.fields(AttentionShape)]
    for name, sizes in request["jobs"]:
        backend, shape = AttentionBackend(name), AttentionShape(**dict(zip(fields, sizes, strict=True)))
        trial = _measure(backend, shape, request)
        out.write(json.dumps(dataclasses.asdict(trial)) + "\n")
        out.flush()


def _measure(backend: AttentionBackend, shape: AttentionShape, request: dict[str, Any]) -> Trial:
    try:
        target = AttentionTarget.of(torch.device(request["device"]), getattr(torch, request["dtype"]))
    except RuntimeError as failure:  # of a driver, or of a GPU that another process has for itself
        return Trial(backend=backend, reason=str(failure), transient=may_pass(failure))
    return measure(backend, target, shape)


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]), _private_output())
