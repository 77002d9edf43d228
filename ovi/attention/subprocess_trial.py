"""Backend trials in a child process, so that a backend that hangs or crashes cannot take the parent down.

The child answers with one line of JSON per trial. When an answer takes too long, the parent kills the child and continues with
the next trial in a new one; so it does after an error that leaves the child unable to use the GPU.

    python -m ovi.attention.subprocess_trial REQUEST    # JSON: {"device": "cuda", "dtype": "bfloat16", "jobs": [...]}
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import torch

from ovi.attention.benchmark import Trial, measure
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape
from ovi.device_errors import may_pass
from ovi.trials import Child, ChildFailed, private_output

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
    child = Child([*command, _request(target, jobs)])
    try:
        for job in jobs:
            trial = _next_trial(child, job[0], timeout_s)
            yield job, trial
            if trial.spoilt:
                return
    finally:
        child.end()


def _next_trial(child: Child, backend: AttentionBackend, timeout_s: float) -> Trial:
    try:
        return child.answer(lambda line: _trial(line, backend), timeout_s)
    except ChildFailed as failure:
        return Trial(backend=backend, reason=str(failure), transient=True, spoilt=True)


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
    _answer(json.loads(sys.argv[1]), private_output())
