"""Backend trials in a child process, so that a backend that hangs or crashes cannot take the parent down.

The child prints one line of JSON per trial. When an answer takes too long, the parent kills the child and continues with
the next trial in a new one.

    python -m ovi.attention.subprocess_trial REQUEST    # JSON: {"device": "cuda", "dtype": "bfloat16", "jobs": [...]}
"""

import dataclasses
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

import torch

from ovi.attention.benchmark import Trial, measure
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape

Job = tuple[AttentionBackend, AttentionShape]
TIMEOUT_S = 120.0  # per trial; the first call of some kernels compiles for a minute
_COMMAND = (sys.executable, "-m", "ovi.attention.subprocess_trial")


def measure_in_subprocess(
    target: AttentionTarget,
    jobs: Sequence[Job],
    *,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = _COMMAND,
) -> list[Trial]:
    """The trial of each job, in order. A backend that hangs or crashes yields a trial with that reason."""
    trials: list[Trial] = []
    while len(trials) < len(jobs):
        trials += _in_one_process(target, jobs[len(trials) :], timeout_s, command)
    return trials


def _in_one_process(
    target: AttentionTarget, jobs: Sequence[Job], timeout_s: float, command: Sequence[str]
) -> Iterator[Trial]:
    """Yield trials up to and including the first that hangs or crashes."""
    process = subprocess.Popen([*command, _request(target, jobs)], stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        lines = _lines(process)
        for backend, _ in jobs:
            try:
                line = lines.get(timeout=timeout_s)
            except queue.Empty:
                yield Trial(backend=backend, reason=f"it hung: no result within {timeout_s:.0f} s")
                return
            if line is None:
                yield Trial(backend=backend, reason=f"its process died with exit code {process.wait()}")
                return
            answer = json.loads(line)
            yield Trial(**{**answer, "backend": AttentionBackend(answer["backend"])})
    finally:
        process.kill()
        process.wait()


def _lines(process: "subprocess.Popen[str]") -> "queue.Queue[str | None]":
    """A queue of the process's output lines, followed by None at the end of the output."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stdout: IO[str]) -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    return lines


def _request(target: AttentionTarget, jobs: Sequence[Job]) -> str:
    return json.dumps(
        {
            "device": target.device,
            "dtype": str(target.dtype).removeprefix("torch."),
            "jobs": [[backend, dataclasses.astuple(shape)] for backend, shape in jobs],
        }
    )


def _answer(request: dict[str, Any], out: IO[str]) -> None:
    target = AttentionTarget.of(torch.device(request["device"]), getattr(torch, request["dtype"]))
    fields = [field.name for field in dataclasses.fields(AttentionShape)]
    for backend, sizes in request["jobs"]:
        shape = AttentionShape(**dict(zip(fields, sizes, strict=True)))
        out.write(json.dumps(dataclasses.asdict(measure(AttentionBackend(backend), target, shape))) + "\n")
        out.flush()


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]), sys.stdout)
