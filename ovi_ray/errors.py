"""Every failure that `ovi_ray` raises on purpose.

OviRayError
 ├── InputError              the job file, the command line or the prompt list is wrong; holds every problem
 ├── OutputError             the output folder cannot be used
 │    ├── OutputInUse        another driver is rendering into it
 │    ├── OutputOfOtherJob   it holds the clips of another job
 │    ├── SeedsDiffer        an earlier version made its clips with other seeds than they would have now
 │    ├── OutputGone         it, or a folder in it, was removed or replaced while a job rendered into it
 │    ├── ResultsDamaged     a file of results was read, and its content is wrong
 │    └── ResultsTooNew      a newer version of ovi-ray wrote its results
 ├── ClusterError            Ray cannot be started or joined, or lacks the resources that the job asks for
 │    ├── WorkersUnplaceable no node has a place for any worker of a stage that clips need
 │    └── HeadLost           Ray's head died or is out of reach; what ran was saved as far as possible
 ├── NodeUnfit               a node cannot do the job's work as the driver would: it is given none
 ├── WorkersLost             no worker is left and none can be started; finished clips are kept
 ├── StorageUnavailable      a store cannot be reached, or refuses; also an OSError
 │    ├── OutputUnavailable  the output folder cannot be written or read now: the job pauses
 │    └── InputAway          the storage of an input is away as a whole: what needs it waits
 ├── JobStopped              the job was asked to stop; finished clips are kept
 └── LatentsUnusable         a latents file or a denoise checkpoint is broken: the clip is denoised again
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time
from itertools import groupby
from typing import Any

from ovi_ray.printing import counted

COMMAND_LINE = "command line"
"""`Problem.file` of an option."""
MAX_SHOWN = 50  # problems in a message; `InputError.problems` holds all of them
MAX_VALUE_CHARS = 80
MAX_PATH_CHARS = 400
_SURROGATE_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")
_PASSWORD = re.compile(r"//[^/@:]*:[^/@]*@")


@dataclass(kw_only=True, slots=True, frozen=True)
class Problem:
    """One problem with the user's input. `str()` is one line that holds every field."""

    file: str
    """The file that it is in, or COMMAND_LINE."""
    row: int | None = None
    """Row of a prompt list, counted from 1 without the header and without blank lines."""
    line: int | None = None
    """Line of a text file, or row of a sheet, counted from 1, where the row or the key starts."""
    field: str | None = None
    """Column, key or option."""
    value: str
    """The value that was found, as text: `show(value)`, "empty", "missing"."""
    expected: str
    """The accepted values."""

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.place else ''}{self.place}: {self.what}"

    @property
    def place(self) -> str:
        """The place in the file: "row 3 (line 7)", "line 7", or an empty string for the whole file."""
        if self.row is None:
            return "" if self.line is None else f"line {self.line}"
        return f"row {self.row}" if self.line is None else f"row {self.row} (line {self.line})"

    @property
    def what(self) -> str:
        """The value found, and what was expected."""
        found = self.value if self.field is None else f"{self.field} is {self.value}"
        return f"{found}; expected {self.expected}"


class OviRayError(Exception):
    """Base of every error that `ovi_ray` raises on purpose."""


class InputError(OviRayError, ValueError):
    """The user's input cannot be rendered. `problems` holds every problem, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown = self.problems[:MAX_SHOWN]
        lines = [f"{counted(len(self.problems), 'problem')} with the input:"]
        for file, problems in groupby(shown, key=lambda problem: problem.file):
            lines.append(file)
            lines.extend(f"  {p.place}: {p.what}" if p.place else f"  {p.what}" for p in problems)
        if len(self.problems) > len(shown):
            lines.append(f"... and {len(self.problems) - len(shown)} more")
        return "\n".join(lines)


class ClusterError(OviRayError):
    """Ray cannot be started or joined, or the cluster lacks the resources that the job asks for."""


class WorkersUnplaceable(ClusterError):
    """No node has a place for any worker that could run a stage which clips need. Finished clips are kept."""


class HeadLost(ClusterError):
    """Ray's head died, or is out of reach for too long. Finished clips are kept, and what ran was saved as far as possible."""


class NodeUnfit(OviRayError):
    """A node cannot do the work of a job as its driver would: another torch, other weights, a GPU that does not compute."""


class WorkersLost(OviRayError):
    """No worker is left and none can be started. Finished clips are kept; running the job again continues from them."""


class OutputError(OviRayError):
    """The output folder cannot be used."""


class OutputInUse(OutputError):
    """Another driver is rendering into the output folder."""


class OutputOfOtherJob(OutputError):
    """The output folder holds clips of another job only."""


class SeedsDiffer(OutputError):
    """An earlier version of ovi-ray made clips of the output folder with other seeds than they would have now."""


class OutputGone(OutputError):
    """The output folder, or a folder in it, was removed or replaced by another while a job rendered into it."""


class ResultsDamaged(OutputError):
    """A file of results was read to its end, and its content is wrong. One that cannot be read is an OSError."""

    def __init__(self, path: object, name: str, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason})")
        self.name = name
        """Of the file in its folder."""


class ResultsTooNew(OutputError):
    """A newer version of ovi-ray wrote the results."""


class StorageUnavailable(OviRayError, OSError):
    """An object store or distributed file system cannot be reached, refuses, or did not take all of a file."""


class OutputUnavailable(StorageUnavailable):
    """The output folder cannot be written or read now."""


class InputAway(StorageUnavailable):
    """The storage of an input is away as a whole, rather than this one file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.path = path
        self._reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._reason)  # an actor's exception is pickled


class JobStopped(OviRayError):
    """The job was asked to stop. Finished clips are kept, and so are the denoise checkpoints of unfinished ones."""


class LatentsUnusable(OviRayError):
    """A latents file or a denoise checkpoint is truncated, corrupt or of another clip."""


def show(value: object) -> str:
    """A value as its file would have it, with the password of a URI hidden, cut to MAX_VALUE_CHARS."""
    text = hide_passwords(_repr(value))
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 3]}..."


def show_path(path: object) -> str:
    """`repr` of a path, with a password hidden; a very long one is cut in the middle, since the end identifies it."""
    text = hide_passwords(_repr(str(path)))
    return (
        text
        if len(text) <= MAX_PATH_CHARS
        else f"{text[:MAX_VALUE_CHARS]}...{text[MAX_VALUE_CHARS - MAX_PATH_CHARS :]}"
    )


def _repr(value: object) -> str:
    r"""`repr`, but `true`, dates as ISO text, and escapes such as \xe9 for the bytes of a name that is not UTF-8."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    return _SURROGATE_BYTE.sub(r"\\x\1", repr(value))


def hide_passwords(text: str) -> str:
    """The text with the user and password of each URI replaced by asterisks."""
    return _PASSWORD.sub("//***@", text)
