"""What goes into the scheduler and what comes out. Pure, frozen values.

In:  WorkerJoined, WorkerLost, TaskDone, TaskFailed, DataLost, Tick.
Out: RunTask, Cancel, Drop, Finish, WakeAt, BreakerChange.
"""

from dataclasses import dataclass

from ovi.config import Component
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.task import DataKey, FailureKind, Task

# --- events


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerJoined:
    """A worker is ready for tasks, with nothing loaded unless `resident` says otherwise."""

    worker: str
    device: DeviceProfile
    resident: frozenset[Component] = frozenset()
    model_name: str = ""
    """The model whose transformer is resident."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerLost:
    """A worker is gone; its task is done again elsewhere."""

    worker: str
    crashed: bool = True
    """False for a planned departure (preempted, drained), which never counts against a clip."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskDone:
    """A task ended well: its embeddings or latents are in the object store, or its video is committed."""

    worker: str
    task: Task
    seconds: float
    """Time of the work, loads not included."""
    load_seconds: float = 0.0
    """Time spent on unloading and loading components before it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskFailed:
    """A task ended badly. For a batch of texts, `items` may name the ones at fault."""

    worker: str
    task: Task
    kind: FailureKind
    message: str = ""
    items: tuple[int, ...] = ()
    """The items at fault; empty for all of the task's."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DataLost:
    """Something in the object store is gone: whatever still needs it makes it again."""

    key: DataKey


@dataclass(kw_only=True, slots=True, frozen=True)
class Tick:
    """Time has passed; the answer to WakeAt."""


Event = WorkerJoined | WorkerLost | TaskDone | TaskFailed | DataLost | Tick
