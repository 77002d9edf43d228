"""The executor protocol: what the driver needs of whatever runs its tasks, and the events that come back.

A *slot* is a seat for a worker, in effect a device. Its worker may die and be replaced under a new name; the slot stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.protocol.messages import Activity, TaskReport, Work, WorkerInfo
from ovi_ray.scheduling.events import DataLost, DeviceFree, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, Task


@dataclass(kw_only=True, slots=True, frozen=True)
class Submission:
    """A task for a worker, with the data it takes and leaves behind."""

    worker: str
    task: Task
    work: Work
    model_name: str
    """Empty when the task does not depend on the model."""
    components: frozenset[Component]
    """Resident during the task."""
    inputs: tuple[DataKey, ...] = ()
    """Data to pass to the worker, in order; `Executor.holds` is true for each."""
    outputs: tuple[DataKey, ...] = ()
    """Keys under which the task's output is held once it succeeded, in order."""
    leader: str = ""
    """Worker whose denoise the task assists; it is told, and goes on alone if it has ended or this task does."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerStarting:
    """The first worker of a slot is being started, which takes as long as Ray needs to find a place for it."""

    worker: str
    slot: str


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerStarted:
    """A worker is ready for tasks."""

    worker: str
    slot: str
    info: WorkerInfo


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerReplaced:
    """A worker died or could not be started, and its slot got a new one or was given up."""

    worker: str
    slot: str
    reason: str
    """Continues a sentence that starts with the worker's name: "died during denoise"."""
    successor: str
    """The next worker of the slot; empty when the slot is given up."""
    is_told: bool = False
    """Another event has told the user already."""
    waits: bool = False
    """The successor is started when there is room for it again."""
    log: str = ""
    """The file with the last words of a worker that died, and its node; empty where it is not known."""

    def __str__(self) -> str:
        outcome = f"{self.successor} replaces it" if self.successor else "its slot is given up"
        if self.waits:
            outcome = f"{self.successor} follows when there is room"
        return f"{self.worker} {self.reason}: {outcome}{f'; its log: {self.log}' if self.log else ''}"


@dataclass(kw_only=True, slots=True, frozen=True)
class NodeRefused:
    """A node does not fit the job: no worker is started there any more."""

    node: str
    """Host name, or the address where that is not known."""
    reason: str

    def __str__(self) -> str:
        return f"node {self.node} takes no work: {self.reason}"


@dataclass(kw_only=True, slots=True, frozen=True)
class SlotsUnplaceable:
    """Slots whose first worker Ray can place on no node: they are given up, until a node joins that has a place."""

    slots: tuple[str, ...]
    asked: str
    """Resources and labels that each slot's worker requires of its node, in words."""
    nodes: str
    """Resources and labels of the nodes, in words."""
    waited_s: float
    stages: frozenset[Stage]
    """That their devices could have run."""

    def __str__(self) -> str:
        of = "slot" if len(self.slots) == 1 else "slots"
        return (
            f"no node has a place for the worker of {of} {', '.join(self.slots)} after {self.waited_s:.0f} s, which asks for"
            f" {self.asked}, beside the job's other workers; there are {self.nodes}: the job goes on without it"
        )


@dataclass(kw_only=True, slots=True, frozen=True)
class HeadSilent:
    """The head of the cluster has not answered for too long: nothing can be started any more, and soon all workers end."""

    what: str
    """The head and its silence, in words."""
    save_s: float
    """Seconds that are left to save what runs."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskEnded:
    """A task ended, well or badly."""

    event: TaskDone | TaskFailed
    report: TaskReport | None = None
    """None when the worker never ran the task."""


ExecutorEvent = (
    WorkerStarting
    | WorkerStarted
    | WorkerReplaced
    | NodeRefused
    | SlotsUnplaceable
    | HeadSilent
    | DeviceFree
    | TaskEnded
    | WorkerLost
    | DataLost
)


class Executor(Protocol):
    """Runs tasks on workers that it starts and replaces. `tests/unit/runtime/test_executor_contract.py` is the contract.

    Each submission is answered once: by its TaskEnded, or by the WorkerLost of its worker. DeviceFree may come before, where
    the worker can take the next submission while it writes the file of this one. A failure that ends its worker
    (`Failure.ends_worker`) is answered by a TaskEnded, which the worker's WorkerLost follows. A WorkerLost is followed by a
    WorkerReplaced for the same worker, and where that names a successor, by the successor's WorkerStarted. An executor may say
    with WorkerStarting which workers it starts at first, and later on nodes that join, so that the job waits for them.

    A worker whose node is about to leave is lost as soon as its task has ended: a denoise is asked to save and end.
    HeadSilent comes once, and is the end: tasks that run can still be stopped and answered, others are not to be submitted.
    """

    @property
    def is_empty(self) -> bool:
        """Whether no worker is alive or being started."""
        ...

    @property
    def last_death(self) -> str:
        """Why the last lost worker died; empty if none was lost."""
        ...

    def submit(self, submission: Submission) -> None:
        """Start a task on a worker that is ready and idle. Returns at once."""
        ...

    def stop(self, worker: str, task: Task, *, save: bool = False) -> None:
        """Ask a worker to stop a task; with `save` an unfinished denoise is checkpointed. Ignored if it is not running."""
        ...

    def need(self, workers: int) -> None:
        """Set the number of workers that the job can keep busy: where nodes come and go, no more are requested."""
        ...

    def holds(self, key: DataKey) -> bool:
        """Whether the output of an earlier task is available."""
        ...

    def drop(self, key: DataKey) -> None:
        """Release the output of an earlier task; unknown keys are ignored."""
        ...

    def poll(self, timeout_s: float) -> Sequence[ExecutorEvent]:
        """Wait up to `timeout_s` for anything to happen and return the events so far, each once."""
        ...

    def activities(self) -> dict[str, Activity]:
        """Progress of busy workers, as last reported; does not block."""
        ...

    def shutdown(self) -> None:
        """Stop every worker now and release all data."""
        ...
