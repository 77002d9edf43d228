"""The machine-readable record of a folder's runs, `OUT/events.jsonl`: a header and all scheduler cycles of each run.

A JSON object per line. Runs are appended; each begins with a header that holds the scheduler's inputs:

    {"run": {"format": 1, "version": ..., "started_at": ..., "host": ..., "pid": ..., "command": ...,
             "config": {...}, "workload": {...}, "clip_ids": ...}}
    {"worker": {"worker": "w0", "slot": "w0", "node": ..., "pid": ..., "device": ..., "vendor": ...}}
    {"t": 1.5, "events": [{"type": "WorkerJoined", ...}], "actions": [{"type": "RunTask", ..., "reason": ...}]}
    {"t": 2.0, "idle": {"w1": "nothing that it can run is ready"}}
    {"t": 3.0, "message": "paused: ..."}
    {"t": 9.0, "end": {"done": 2, "failed": 0, "error": ""}}

`t` is seconds since the run's start. `idle` lists workers whose reason to be idle changed, with null for those that are not
idle any more. A killed run has no end, and its last line may be cut off.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.output.event_codec import (
    decode,
    decode_config,
    decode_ids,
    decode_workload,
    encode,
    encode_config,
    encode_ids,
    encode_workload,
)
from ovi_ray.protocol.observer import Cycle
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.workload import Workload

T = TypeVar("T")

EVENTS_FILE = "events.jsonl"
FORMAT = 1
_HEADER_START = b'{"run":'


@dataclass(kw_only=True, slots=True, frozen=True)
class RunIdentity:
    """The process of a run."""

    version: str
    """Of ovi-ray."""
    started_at: str
    """ISO 8601, UTC."""
    host: str
    pid: int
    command: str


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerEntry:
    """A worker that started; the cycle with its WorkerJoined follows."""

    worker: str
    slot: str
    node: str
    pid: int
    device: str
    vendor: str


@dataclass(kw_only=True, slots=True, frozen=True)
class IdleEntry:
    """Workers whose reason to be idle changed."""

    at_s: float
    reasons: dict[str, str | None]
    """None for a worker that is not idle any more."""


@dataclass(kw_only=True, slots=True, frozen=True)
class MessageEntry:
    """A message to the user."""

    at_s: float
    text: str


@dataclass(kw_only=True, slots=True, frozen=True)
class EndEntry:
    """The end of a run."""

    at_s: float
    done: int
    failed: int
    error: str
    """Why it ended before its last clip; empty when every clip ended."""


Entry = Cycle | WorkerEntry | IdleEntry | MessageEntry | EndEntry


def header_line(identity: RunIdentity, *, config: SchedulerConfig, workload: Workload, clip_ids: pa.Array) -> str:
    """The first line of a run."""
    inputs = {
        "config": encode_config(config),
        "workload": encode_workload(workload),
        "clip_ids": encode_ids(clip_ids),
    }
    return _line({"run": {"format": FORMAT, **asdict(identity), **inputs}})


def cycle_line(cycle: Cycle, clip_ids: Sequence[str]) -> str:
    """The line of a cycle; empty lists are left out."""
    content: dict[str, Any] = {"t": cycle.now}
    if cycle.events:
        content["events"] = [encode(event, clip_ids) for event in cycle.events]
    if cycle.actions:
        content["actions"] = [encode(action, clip_ids) for action in cycle.actions]
    if cycle.stopping:
        content["stopping"] = True
    return _line(content)


def entry_line(entry: WorkerEntry | IdleEntry | MessageEntry | EndEntry) -> str:
    """The line of any other entry."""
    match entry:
        case WorkerEntry():
            return _line({"worker": asdict(entry)})
        case IdleEntry(at_s=at_s, reasons=reasons):
            return _line({"t": at_s, "idle": reasons})
        case MessageEntry(at_s=at_s, text=text):
            return _line({"t": at_s, "message": text})
        case EndEntry(at_s=at_s, done=done, failed=failed, error=error):
            return _line({"t": at_s, "end": {"done": done, "failed": failed, "error": error}})


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run in a file of runs."""

    path: Path
    name: str
    """The file as the user knows it."""
    number: int
    """From 1, the oldest."""
    first_line: int
    """Line of the header, from 1."""
    start: int
    """Byte offset of the header."""
    end: int
    """Byte offset after the run's last line."""

    @cached_property
    def identity(self) -> RunIdentity:
        """The process of the run. Raises InputError."""
        names = RunIdentity.__dataclass_fields__
        return self._field(lambda header: TypeAdapter(RunIdentity).validate_python({n: header[n] for n in names}))

    @property
    def is_readable(self) -> bool:
        """Whether the header is complete; a run that was killed early may have written only a part of it."""
        try:
            return bool(self.identity)
        except InputError:
            return False

    @cached_property
    def config(self) -> SchedulerConfig:
        """The scheduler's configuration. Raises InputError."""
        return self._field(lambda header: decode_config(header["config"]))

    @cached_property
    def workload(self) -> Workload:
        """The scheduler's workload. Raises InputError."""
        return self._field(lambda header: decode_workload(header["workload"]))

    @cached_property
    def clip_ids(self) -> list[str]:
        """Id of each clip of the workload, by number. Raises InputError."""
        return self._field(lambda header: decode_ids(header["clip_ids"]))

    def entries(self) -> Iterator[Entry]:
        """Everything after the header, in order. Raises InputError for a line that cannot be read, unless it is the last."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            file.readline()
            number = self.first_line
            while file.tell() < self.end:
                line, number = file.readline(), number + 1
                try:
                    yield _entry(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    if file.tell() >= self.end:
                        return  # the run was killed while it wrote
                    raise InputError([self._problem(number, show(line.decode(errors="replace")), error)]) from None

    @cached_property
    def _header(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            line = file.readline()
        header = self._decoded(lambda: dict(json.loads(line)["run"]))
        if header.get("format") != FORMAT:
            expected = f"{FORMAT}; a newer ovi-ray wrote it, update this one"
            problem = Problem(
                file=self.name,
                line=self.first_line,
                field="format",
                value=show(header.get("format")),
                expected=expected,
            )
            raise InputError([problem])
        return header

    def _field(self, read: Callable[[dict[str, Any]], T]) -> T:
        header = self._header
        return self._decoded(lambda: read(header))

    def _decoded(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (ValueError, KeyError, TypeError) as error:
            raise InputError([self._problem(self.first_line, "a header that cannot be read", error)]) from None

    def _problem(self, line: int, value: str, error: Exception) -> Problem:
        reason = _first_line(error)
        return Problem(
            file=self.name, line=line, value=value, expected=f"a line written by `ovi-ray render` ({reason})"
        )


def recorded_runs(path: Path, *, name: str = "") -> list[RecordedRun]:
    """The runs of a local file, oldest first; `name` is the file in messages. Raises InputError if it has none."""
    name = name or str(path)
    starts: list[tuple[int, int]] = []
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.startswith(_HEADER_START):
                starts.append((number, offset))
            offset += len(line)
    if not starts:
        raise InputError([Problem(file=name, value="no run", expected="the record of at least one run")])
    ends = [start for _, start in starts[1:]] + [offset]
    return [
        RecordedRun(path=path, name=name, number=index, first_line=line, start=start, end=end)
        for index, ((line, start), end) in enumerate(zip(starts, ends, strict=True), 1)
    ]


def _entry(content: dict[str, Any]) -> Entry:
    if "worker" in content:
        return WorkerEntry(**content["worker"])
    at_s = float(content["t"])
    if "idle" in content:
        return IdleEntry(at_s=at_s, reasons=content["idle"])
    if "message" in content:
        return MessageEntry(at_s=at_s, text=content["message"])
    if "end" in content:
        return EndEntry(at_s=at_s, **content["end"])
    return Cycle(
        now=at_s,
        events=tuple(map(decode, content.get("events", ()))),
        actions=tuple(map(decode, content.get("actions", ()))),
        stopping=content.get("stopping", False),
    )


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error) or type(error).__name__).partition("\n")[0]
