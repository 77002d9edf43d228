"""How far a job is, for display. Pure, frozen values."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi_ray.events import ClipStatus, Task
from ovi_ray.orders import Activity, WorkerInfo
from ovi_ray.scheduler import Progress


@dataclass(kw_only=True, slots=True, frozen=True)
class RunningTask:
    """What a worker is at, for display."""

    task: Task
    clip_id: str
    """Empty for tasks of no single clip."""
    activity: Activity | None


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipEnded:
    """A clip that ended just now, for display."""

    clip_id: str
    row: int
    status: ClipStatus
    error: str
    video_path: str | None


@dataclass(kw_only=True, slots=True, frozen=True)
class JobSnapshot:
    """How far a job is, for display."""

    elapsed_s: float
    progress: Progress
    workers: dict[str, WorkerInfo]
    running: dict[str, RunningTask]
    ended: tuple[ClipEnded, ...]
    """Clips that ended since the last snapshot."""


Observer = Callable[[JobSnapshot], None]
