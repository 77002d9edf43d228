"""The course of a recorded run, with reasons: the tasks of a clip or of a worker, and a summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ovi.stages import Stage
from ovi_ray.output.event_log import RunIdentity
from ovi_ray.protocol.progress import WorkDone
from ovi_ray.scheduling.task import BreakerChange, ClipStatus, FailureKind, Reason


class TaskOutcome(StrEnum):
    """The outcome of a task."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker lost"
    UNFINISHED = "unfinished"
    """The record ends before the task."""
    NOT_STARTED = "not started"
    """The run was being stopped."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskSpan:
    """One task on one worker. Times are seconds since the start of the run."""

    worker: str
    node: str
    device: str
    stage: Stage
    items: tuple[int, ...]
    """Texts, a first frame or a clip, by number; empty for a preload."""
    clip_id: str
    """Of the clip that a denoise or decode belongs to; empty for other tasks."""
    attempt: int
    assists: bool
    """It computes half of each step of a denoise of another worker."""
    reason: Reason
    """Why the scheduler gave this task to this worker."""
    started_s: float
    ended_s: float | None = None
    seconds: float | None = None
    """Of the work itself, for a task that succeeded."""
    load_seconds: float | None = None
    outcome: TaskOutcome = TaskOutcome.UNFINISHED
    failure: FailureKind | None = None
    message: str = ""


@dataclass(kw_only=True, slots=True, frozen=True)
class IdleSpan:
    """A time in which a worker had no task."""

    started_s: float
    ended_s: float
    reasons: tuple[str, ...]
    """Why, where the scheduler was asked while it lasted."""


@dataclass(kw_only=True, slots=True, frozen=True)
class BreakerEntry:
    """A change of a device's circuit breaker."""

    at_s: float
    change: BreakerChange


@dataclass(kw_only=True, slots=True, frozen=True)
class ListedClip:
    """The place and the own columns of a clip in the prompt list."""

    row: int
    line: int | None
    repeat: int
    meta: Mapping[str, str]
    """The list's own columns, those with a value."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipHistory:
    """The life of a clip in a run."""

    clip_id: str
    run: int
    tasks: tuple[TaskSpan, ...]
    """By start: the encodes of its texts and first frame, which other clips may share, its denoises and its decodes."""
    status: ClipStatus | None
    """None if the clip had not ended when the record ends."""
    error: str
    ended_s: float | None
    notes: tuple[str, ...] = ()
    """Messages on the clip while it was rendered."""
    listed: ListedClip | None = None
    """Its place in the prompt list; None for a clip that the last run's list had not."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerHistory:
    """The life of a worker in a run."""

    worker: str
    run: int
    slot: str
    node: str
    device: str
    joined_s: float | None
    lost_s: float | None
    crashed: bool
    log: str = ""
    """The file with the last words of its process, if it died, and its node."""
    tasks: tuple[TaskSpan, ...] = ()
    idle: tuple[IdleSpan, ...] = ()
    breaker: tuple[BreakerEntry, ...] = ()


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerSummary:
    """A worker in the summary of a run."""

    worker: str
    slot: str
    node: str
    device: str
    joined_s: float | None
    lost_s: float | None
    tasks: int
    work: WorkDone
    """The items of those that succeeded."""
    busy_s: float


@dataclass(kw_only=True, slots=True, frozen=True)
class RunSummary:
    """A run at a glance."""

    run: int
    runs: int
    """Runs in the record."""
    identity: RunIdentity
    clips: int
    """Clips that were missing when the run started."""
    done: int
    failed: int
    ended_s: float
    """Of the last entry, for a run that was killed."""
    was_killed: bool
    """The record has no end."""
    error: str
    workers: tuple[WorkerSummary, ...]
    reasons: dict[Stage, dict[Reason, int]]
    """Stage -> reason -> tasks that were given for it; preloads left out."""
    failures: dict[str, int]
    """First line of a failure's message -> tasks that failed with it."""
    breaker: tuple[BreakerEntry, ...]
    messages: tuple[str, ...]
