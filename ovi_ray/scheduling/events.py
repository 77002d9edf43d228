"""Events: what happened on the cluster, as the scheduler receives it. Frozen values."""

from dataclasses import dataclass, field

from ovi.config import Component
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.task import DataKey, FailureKind, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerJoined:
    """A worker is ready for tasks, with nothing loaded unless `resident` says otherwise."""

    worker: str
    """Name of the worker, unique among those present."""
    device: DeviceProfile
    slot: str = ""
    """The device that the worker occupies; its replacement occupies the same one. By default the worker's name."""
    resident: frozenset[Component] = frozenset()
    model_name: str = ""
    """Model whose transformer is resident; empty when none is."""
    node: str = ""
    """The machine, on which workers of the same device class can share a denoise; empty where this one cannot."""

    def __post_init__(self) -> None:
        if not self.slot:
            object.__setattr__(self, "slot", self.worker)


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerExpected:
    """A worker is being started in a slot: work that only it may be able to do waits for it."""

    slot: str


@dataclass(kw_only=True, slots=True, frozen=True)
class SlotClosed:
    """No worker will come any more in a slot."""

    slot: str


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerLost:
    """A worker is gone. Its tasks are requeued. Another one may come in its slot, until SlotClosed."""

    worker: str
    crashed: bool = True
    """False for a planned departure (preempted, drained), which never counts against a clip."""
    log: str = field(default="", compare=False)
    """The file with the last words of its process, and its node, for messages; empty where it is not known."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DeviceFree:
    """A worker's device is done with a decode whose file is still being written: it can run another task meanwhile.

    TaskDone or TaskFailed follows, for the same task.
    """

    worker: str
    task: Task
    seconds: float
    """Time of the work without loads, as in the TaskDone."""
    load_seconds: float = 0.0


@dataclass(kw_only=True, slots=True, frozen=True)
class StepsTimed:
    """The first steps of a running denoise were timed: what it takes is known long before it ends."""

    worker: str
    task: Task
    seconds: float
    """That all steps take at this pace, without loads."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskDone:
    """A task succeeded: its embeddings or latents are in the object store, or its video is committed."""

    worker: str
    task: Task
    seconds: float
    """Time of the work without loads, and without what was written while the device ran other tasks."""
    load_seconds: float = 0.0
    """Time spent on unloading and loading components before it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskFailed:
    """A task failed."""

    worker: str
    task: Task
    kind: FailureKind
    message: str = ""
    items: tuple[int, ...] = ()
    """The items of a batch that are at fault; empty when that is not known, or when all are."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DataLost:
    """A datum disappeared from the object store. It is produced again if it is still needed."""

    key: DataKey


@dataclass(kw_only=True, slots=True, frozen=True)
class Tick:
    """Time has passed: the answer to WakeAt."""


Event = (
    WorkerJoined
    | WorkerExpected
    | SlotClosed
    | WorkerLost
    | DeviceFree
    | StepsTimed
    | TaskDone
    | TaskFailed
    | DataLost
    | Tick
)
