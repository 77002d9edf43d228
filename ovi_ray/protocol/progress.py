"""Snapshots of a running job, for display and for the report."""

from dataclasses import dataclass, field, replace

from ovi.stages import STAGES, Stage
from ovi_ray.protocol.messages import Activity, WorkerInfo
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.task import ClipStatus, Reason, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerTime:
    """How a worker spent its time in a run, in seconds."""

    worker: str
    node: str
    device: str
    held_s: float = 0.0
    """From its start until it was lost or the run ended."""
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0
    """Loading and unloading components."""

    @property
    def busy_s(self) -> float:
        """Seconds spent on tasks, component loads included."""
        return self.encode_s + self.denoise_s + self.decode_s + self.load_s

    def plus(self, stage: Stage, seconds: float, load_seconds: float) -> "WorkerTime":
        """With one more task added."""
        name = f"{STAGES[stage].time_group}_s"
        return replace(self, load_s=self.load_s + load_seconds, **{name: getattr(self, name) + seconds})


@dataclass(kw_only=True, slots=True, frozen=True)
class RunningTask:
    """The task that a worker is executing."""

    task: Task
    clip_id: str
    """Empty for tasks that do not belong to a single clip."""
    activity: Activity | None


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipEnded:
    """A clip that was finished or given up."""

    clip_id: str
    place: str
    """The clip's row of the prompt list, such as "row 3"."""
    status: ClipStatus
    error: str
    """Empty for a finished clip."""
    video_path: str | None
    """Relative to the output folder; None for a failed clip."""


@dataclass(kw_only=True, slots=True, frozen=True)
class JobSnapshot:
    """Progress of a job at one moment."""

    elapsed_s: float
    """Seconds since the driver started; the same clock as the scheduler's."""
    progress: Progress
    workers: dict[str, WorkerInfo]
    """Every worker that joined in this run, lost ones included."""
    running: dict[str, RunningTask]
    """Worker -> its task."""
    ended: tuple[ClipEnded, ...]
    """Clips that ended since the last snapshot."""
    idle: dict[str, Reason] = field(default_factory=dict)
    """Worker -> why the scheduler gives it no task now."""
