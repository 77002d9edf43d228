"""`progress.json` in an output folder: how far the job is, for whoever watches it from elsewhere.

A run replaces it every few seconds, as a whole. A run that was killed leaves its last one: who reads it asks the lease
whether the driver lives.
"""

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Self

from pydantic import TypeAdapter, ValidationError

from ovi_ray.protocol.progress import RemainingTime, WorkDone
from ovi_ray.storage.paths import Location

PROGRESS = "progress.json"
MAX_PROBLEMS = 20
LOADING = "load"


class RunState(StrEnum):
    """Activity of a run."""

    STARTING = "starting"
    """Its workers are being started."""
    RENDERING = "rendering"
    PAUSED = "paused"
    """Storage is away."""
    ENDED = "ended"


class DeviceState(StrEnum):
    """Whether a device works."""

    BUSY = "busy"
    IDLE = "idle"
    LOST = "lost"


@dataclass(kw_only=True, slots=True, frozen=True)
class DeviceProgress:
    """A device and what it does."""

    worker: str
    node: str
    device: str
    state: DeviceState
    stage: str = ""
    """`LOADING` while components are loaded."""
    clip_id: str = ""
    """Empty for a task that belongs to no single clip."""
    done: int = 0
    """Denoising steps or video frames of the task."""
    total: int = 0
    unit: str = ""
    """Of `done` and `total`: step or frame."""
    idle_reason: str = ""
    memory_gb: float | None = None
    """That the worker holds, as last reported."""
    memory_total_gb: float = 0.0
    attention_backend: str = ""
    work: WorkDone = field(default_factory=WorkDone)
    """That it has finished in this run."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ProblemNote:
    """Something that went wrong."""

    at: str
    """ISO 8601, UTC."""
    text: str


@dataclass(kw_only=True, slots=True, frozen=True)
class JobProgress:
    """Progress of a job. Times of day are ISO 8601 in UTC."""

    state: RunState
    started_at: str
    """Of this run."""
    updated_at: str
    elapsed_s: float = 0.0
    """Since the first worker was asked for."""
    clips: int
    """Of the job, not only of this run."""
    done: int
    """Clips that are rendered, by earlier runs too."""
    failed: int
    running: int = 0
    """Clips that a device works on."""
    run_done: int = 0
    """Clips that this run rendered."""
    run_failed: int = 0
    clips_per_hour: float | None = None
    """The rate of the last clips; None until a few have ended."""
    remaining: RemainingTime | None = None
    """None while nothing is known, and once the run has ended."""
    devices: tuple[DeviceProgress, ...] = ()
    problems: tuple[ProblemNote, ...] = ()
    """The last ones, oldest first."""
    error: str = ""
    """Why the run ended before its last clip, or why it is paused."""

    @property
    def left(self) -> int:
        """Clips that have not ended."""
        return self.clips - self.done - self.failed

    def at_rest(self) -> Self:
        """The same where no driver works any more: one that was killed could not take back what it was doing."""
        return replace(self, running=0, remaining=None, devices=())


_ADAPTER = TypeAdapter(JobProgress)


def write_progress(output_dir: Location, progress: JobProgress) -> None:
    """Replace the file. Raises OSError."""
    (output_dir / PROGRESS).write_bytes(_ADAPTER.dump_json(progress, indent=1))


def read_progress(output_dir: Location, *, since: str = "") -> JobProgress | None:
    """The progress of the last run; None where there is none, or that of another version. Raises OSError.

    `since` is a time as in `updated_at`: what was written before it is that of an earlier run, and None.
    """
    try:
        found = _ADAPTER.validate_json((output_dir / PROGRESS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.updated_at >= since else None


def progress_json(progress: JobProgress | None) -> dict[str, object] | None:
    """The progress as plain data, for JSON."""
    return None if progress is None else asdict(progress)
