"""Every failure that `ovi_ray` raises on purpose.

OviRayError
 ├── InputError     the job file, the command line or the prompt list is wrong; carries every problem at once
 ├── OutputError            the output folder cannot be used as it is
 │    ├── OutputInUse       another driver renders into it now
 │    ├── OutputOfOtherJob  it holds the clips of another job
 │    └── ResultsTooNew      a newer version of this program wrote its results
 ├── ClusterError   Ray cannot be started or joined, or has not what the job asks for
 ├── WorkersLost    no worker is left and none comes back; what is finished is kept
 ├── StorageUnavailable  a store cannot be reached, or refuses; also an OSError
 ├── JobStopped     the user or the machine asked the job to stop; what is finished is kept
 └── LatentsUnusable  a file of latents or a checkpoint is broken: the clip is denoised again
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

MAX_SHOWN = 50  # problems in a message; `InputError.problems` has them all
MAX_VALUE_CHARS = 80
MAX_PATH_CHARS = 400
_PASSWORD = re.compile(r"//[^/@:]*:[^/@]*@")


@dataclass(kw_only=True, slots=True, frozen=True)
class Problem:
    """One thing that is wrong with what the user gave. `str()` is a plain line that says all of it."""

    file: str
    """Where it was given: a path, or "command line"."""
    row: int | None = None
    """Row of a prompt list, counted from 1 without the header and without blank lines."""
    line: int | None = None
    """Line of a text file, counted from 1, where the row or the key starts."""
    field: str | None = None
    """Column, key or option."""
    value: str
    """What was found there, ready to be read: `show(value)`, "empty", "missing"."""
    expected: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.place else ''}{self.place}: {self.what}"

    @property
    def place(self) -> str:
        """Where in the file: "row 3 (line 7)", "line 7", or nothing for the file as a whole."""
        if self.row is None:
            return "" if self.line is None else f"line {self.line}"
        return f"row {self.row}" if self.line is None else f"row {self.row} (line {self.line})"

    @property
    def what(self) -> str:
        """What was found, and what would be right."""
        found = self.value if self.field is None else f"{self.field} is {self.value}"
        return f"{found}; expected {self.expected}"


class OviRayError(Exception):
    """Base of every error that `ovi_ray` raises on purpose."""


class InputError(OviRayError, ValueError):
    """What the user gave cannot be rendered. `problems` holds everything that is wrong with it, not the first only."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown = self.problems[:MAX_SHOWN]
        lines = [f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} with the input:"]
        for file, problems in groupby(shown, key=lambda problem: problem.file):
            lines.append(file)
            lines.extend(f"  {p.place}: {p.what}" if p.place else f"  {p.what}" for p in problems)
        if len(self.problems) > len(shown):
            lines.append(f"... and {len(self.problems) - len(shown)} more")
        return "\n".join(lines)


class ClusterError(OviRayError):
    """Ray cannot be started or joined, or the cluster has not what the job asks for."""


class WorkersLost(OviRayError):
    """No worker is left and none comes back. What is finished is kept: the same command goes on from there."""


class OutputError(OviRayError):
    """The output folder cannot be used as it is."""


class OutputInUse(OutputError):
    """Another driver renders into the output folder now."""


class OutputOfOtherJob(OutputError):
    """The output folder holds clips, and none of them is of this job."""


class ResultsTooNew(OutputError):
    """A newer version of this program wrote the results."""


class StorageUnavailable(OviRayError, OSError):
    """An object store or a distributed file system cannot be reached, refuses, or has not taken all of a file."""


class JobStopped(OviRayError):
    """The job was asked to stop. What is finished is kept, and so is what half-denoised clips had reached."""


class LatentsUnusable(OviRayError):
    """A file of latents, or a checkpoint of a denoise, is truncated, corrupt or of another clip."""


def show(value: object) -> str:
    """`value` as Python writes it, a password in a URI hidden, cut to a length that fits on a line."""
    text = _PASSWORD.sub("//***@", repr(value))
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 3]}..."


def show_path(path: object) -> str:
    """`path` as Python writes it, a password in it hidden; of a very long one the end, which tells it from others, is left."""
    text = _PASSWORD.sub("//***@", repr(str(path)))
    return (
        text
        if len(text) <= MAX_PATH_CHARS
        else f"{text[:MAX_VALUE_CHARS]}...{text[MAX_VALUE_CHARS - MAX_PATH_CHARS :]}"
    )
