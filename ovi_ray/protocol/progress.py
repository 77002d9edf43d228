"""What workers did with their time. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi.stages import Stage
from ovi_ray.protocol.messages import Activity, WorkerInfo
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.task import ClipStatus, Task


@dataclass(kw_only=True, slots=True)
class WorkerTime:
    """What a worker did with its time in a run, in seconds."""

    worker: str
    node: str
    device: str
    held_s: float = 0.0
    """From when it was ready until it was lost or the run ended."""
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0
    """Moving components in and out."""

    @property
    def busy_s(self) -> float:
        """Seconds that it was given work for."""
        return self.encode_s + self.denoise_s + self.decode_s + self.load_s

    def add(self, stage: Stage, seconds: float, load_seconds: float) -> None:
        """Add a task."""
        self.load_s += load_seconds
        match stage:
            case Stage.ENCODE_TEXT | Stage.ENCODE_FIRST_FRAME:
                self.encode_s += seconds
            case Stage.DENOISE:
                self.denoise_s += seconds
            case Stage.DECODE:
                self.decode_s += seconds


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
