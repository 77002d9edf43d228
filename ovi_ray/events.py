"""What goes into the scheduler and what comes out. Pure, frozen values.

In:  WorkerJoined, WorkerLost, TaskDone, TaskFailed, DataLost, Tick.
Out: RunTask, Cancel, Drop, Finish, WakeAt, HealthChange.
"""

from dataclasses import dataclass
from enum import StrEnum

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.costs import DeviceProfile
from ovi_ray.health import HealthChange


class Reason(StrEnum):
    """Why the scheduler did what it did; printed by `--explain`."""

    BEST_USE = "best use of the device by the plan"
    FEEDS_DENOISE = "denoise is about to run out of encoded texts"
    DRAINS_LATENTS = "latents wait for decode near their bound"
    ONLY_WORK = "the only work that the device can do now"
    LAST_RESORT = "nothing better is coming"
    PRELOAD = "its weights come in while the first texts are encoded"
    STRAGGLER_COPY = "a faster device may overtake a slow one; the first result wins"
    SUPERSEDED = "another worker finished it first"
    CLIP_ENDED = "its clip has ended"
    # why an idle worker waits
    NOTHING_READY = "nothing that it can run is ready"
    FASTER_DEVICE_SOON = "a faster device, free soon, ends it earlier"
    NOT_WORTH_A_SWAP = "too little work to swap components for"
    ENOUGH_AHEAD = "enough is encoded ahead"
    LATENTS_FULL = "the latents that wait for decode are at their bound"
    FAILED_HERE_BEFORE = "what is ready failed here before"
    OWN_SHARE_DONE = "its share is done"
    RESTING = "it failed tasks in a row and rests"


@dataclass(kw_only=True, slots=True, frozen=True)
class Task:
    """A unit of work for one worker. Equal values are the same attempt at the same work.

    A DENOISE task without items renders nothing: it only makes its components resident.
    """

    stage: Stage
    items: tuple[int, ...]
    """Text numbers (a batch), one first-frame number, or one clip."""
    attempt: int = 1
    """1 for the first try."""


class DataKind(StrEnum):
    """What the object store keeps between stages."""

    TEXT = "text"
    FIRST_FRAME = "first_frame"
    LATENTS = "latents"


@dataclass(kw_only=True, slots=True, frozen=True)
class DataKey:
    """One text's embedding, one first frame's latent, or one clip's latents."""

    kind: DataKind
    number: int
    """Of the text, the first frame or the clip."""


class FailureKind(StrEnum):
    """Whose fault a failure is."""

    BAD_INPUT = "bad_input"
    """The text, image or parameters can never work: what needs them fails at once."""
    ERROR = "error"
    """Unexpected: tried again, elsewhere if possible."""
    OUT_OF_MEMORY = "out_of_memory"
    """Tried again with fewer components, then on a larger device."""
    CANCELLED = "cancelled"
    """The worker stopped it as asked, or gave it back: nobody's fault."""


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


class ClipStatus(StrEnum):
    """How a clip ended."""

    DONE = "done"
    FAILED = "failed"


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


Action = RunTask | Cancel | Drop | Finish | WakeAt | HealthChange
