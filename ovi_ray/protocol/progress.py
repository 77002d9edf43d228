"""Snapshots of a running job, for display and for the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ovi.stages import STAGES, TIME_GROUPS, Stage
from ovi_ray.protocol.messages import Activity, WorkerInfo
from ovi_ray.scheduling.declared import Declared, with_numbers
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.task import ClipStatus, Reason, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkDone:
    """Work that a worker finished in a run."""

    items: Mapping[Stage, int] = field(default_factory=dict)
    """Texts, first frames and clips, by stage; a stage in which it finished none is left out."""
    assists: int = 0
    """Denoises of other workers that it assisted, which are none of its items."""

    def plus(self, task: Task) -> "WorkDone":
        """With one more task that succeeded."""
        if task.assists:
            return replace(self, assists=self.assists + 1)
        if not task.items:
            return self
        return replace(self, items={**self.items, task.stage: self.items.get(task.stage, 0) + len(task.items)})


@with_numbers({f"{group}_s": 0.0 for group in TIME_GROUPS})
class WorkerTime(Declared):
    """Work and seconds of a worker in a run, with a field for each group of stages: `denoise_s` and so on."""

    worker: str
    node: str
    device: str
    held_s: float = 0.0
    """From its start until it was lost or the run ended."""
    load_s: float = 0.0
    """Loading and unloading components."""
    work: WorkDone = field(default_factory=WorkDone)

    def of(self, group: str) -> float:
        """Seconds spent on a group of stages."""
        return float(getattr(self, f"{group}_s"))

    @property
    def busy_s(self) -> float:
        """Seconds spent on tasks, component loads included."""
        return sum(map(self.of, TIME_GROUPS)) + self.load_s

    def plus(self, stage: Stage, seconds: float, load_seconds: float) -> "WorkerTime":
        """With one more task added."""
        group = STAGES[stage].time_group
        return replace(self, load_s=self.load_s + load_seconds, **{f"{group}_s": self.of(group) + seconds})


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
    """The clip's row of the prompt list, and what varies of it: "row 3", or "row 3, seed 7" in a sweep."""
    status: ClipStatus
    error: str
    """Empty for a finished clip."""
    video_path: str | None
    """Relative to the output folder; None for a failed clip."""


@dataclass(kw_only=True, slots=True, frozen=True)
class RemainingTime:
    """Seconds until the end of a job: expected, and the range that it falls into four times out of five."""

    expected_s: float
    low_s: float
    high_s: float


@dataclass(kw_only=True, slots=True, frozen=True)
class JobSnapshot:
    """Progress of a job at one moment."""

    elapsed_s: float
    """Seconds since the driver started; the same clock as the scheduler's."""
    progress: Progress
    workers: dict[str, WorkerInfo]
    """Every worker that joined in this run, lost ones included."""
    work: dict[str, WorkDone]
    """The work that each of them has finished."""
    running: dict[str, RunningTask]
    """Worker -> its task."""
    ended: tuple[ClipEnded, ...]
    """Clips that ended since the last snapshot."""
    idle: dict[str, Reason] = field(default_factory=dict)
    """Worker -> why the scheduler gives it no task now."""
    remaining: RemainingTime | None = None
    """None while nothing is known."""
    clips_per_hour: float | None = None
    """The rate of the last clips; None until a few have ended."""
