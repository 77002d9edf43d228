"""Actions: what the scheduler asks its caller to do. Frozen values."""

from dataclasses import dataclass

from ovi.config import Component
from ovi_ray.scheduling.task import BreakerChange, ClipStatus, DataKey, Reason, Task

# --- actions


@dataclass(kw_only=True, slots=True, frozen=True)
class RunTask:
    """Give the worker a task, once: it answers with TaskDone, TaskFailed or WorkerLost."""

    worker: str
    task: Task
    components: frozenset[Component]
    """Resident during the task: first unload what is not among them, then load what is missing."""
    model_name: str
    """The model whose transformer is resident during the task; empty when none is."""
    reason: Reason


@dataclass(kw_only=True, slots=True, frozen=True)
class Cancel:
    """Stop the worker's task if that is cheap. The worker stays busy until it answers."""

    worker: str
    task: Task
    reason: Reason


@dataclass(kw_only=True, slots=True, frozen=True)
class Drop:
    """Nothing needs this datum any more: release it."""

    key: DataKey


@dataclass(kw_only=True, slots=True, frozen=True)
class Finish:
    """The clip has ended; sent once for each clip."""

    clip: int
    status: ClipStatus
    error: str = ""


@dataclass(kw_only=True, slots=True, frozen=True)
class WakeAt:
    """Send a Tick at this time if nothing happens before."""

    time: float


Action = RunTask | Cancel | Drop | Finish | WakeAt | BreakerChange
