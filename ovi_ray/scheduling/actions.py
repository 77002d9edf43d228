"""Actions: what the scheduler asks its caller to do. Frozen values."""

from dataclasses import dataclass

from ovi.config import Component
from ovi_ray.scheduling.task import BreakerChange, ClipStatus, DataKey, Reason, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class RunTask:
    """Give the worker a task, once. It answers with TaskDone, TaskFailed or WorkerLost."""

    worker: str
    task: Task
    components: frozenset[Component]
    """Resident during the task: unload what is not among them first, then load what is missing."""
    model_name: str
    """Model whose transformer is resident during the task; empty when none is."""
    reason: Reason
    leader: str = ""
    """The worker that runs the denoise, if the task assists; it goes on alone when this task ends first."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Cancel:
    """Stop the worker's task if that is cheap. The worker stays busy until it answers, and may have ended the task already."""

    worker: str
    task: Task
    reason: Reason


@dataclass(kw_only=True, slots=True, frozen=True)
class Drop:
    """Release a datum that is not needed any more from the object store."""

    key: DataKey


@dataclass(kw_only=True, slots=True, frozen=True)
class Finish:
    """The clip has ended. Sent once per clip."""

    clip: int
    status: ClipStatus
    error: str = ""
    """Empty unless `status` is FAILED."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WakeAt:
    """Send a Tick at this time. Several may be pending; each asks for a Tick of its own."""

    time: float
    """On the clock of the times given to `Scheduler.handle`."""


Action = RunTask | Cancel | Drop | Finish | WakeAt | BreakerChange
