"""Values shared by events and actions: tasks, data keys, reasons, kinds of failure, changes of a circuit breaker."""

from dataclasses import dataclass
from enum import StrEnum

from ovi.stages import DataKind as DataKind
from ovi.stages import Stage


class Reason(StrEnum):
    """Why the scheduler took an action, or why a worker is idle. Shown by `--explain`."""

    BEST_USE = "best use of the device in the current allocation"
    FEEDS_DENOISE = "denoise is about to run out of encoded inputs"
    DRAINS_LATENTS = "the latents waiting for decode are near their limit"
    ONLY_WORK = "the only work that the device can do now"
    LAST_RESORT = "no better device is expected"
    PRELOAD = "its weights are loaded while the first texts are encoded"
    SPECULATIVE_COPY = "speculative copy of a late task; the first result is used"
    TRIED = "declared speeds turned out wrong, and this device may be faster than declared"
    MEASUREMENT = "declared speeds turned out wrong, and this measures the device"
    TOO_SLOW = "its device is so slow that another one will finish it earlier"
    ASSISTS = "it computes half of each step for a device like it, which ends sooner"
    LEADER_ENDED = "the denoise that it assists has ended"
    BETTER_ALONE = "the two devices are late, or a faster one begins the denoise too"
    NOT_NEEDED = "two devices will end the denoise first"
    SUPERSEDED = "another worker finished it first"
    CLIP_ENDED = "its clip has ended"
    # reasons to be idle
    NOTHING_READY = "no task that it can run is ready"
    FASTER_DEVICE_SOON = "a faster device will be free soon and finish earlier"
    BETTER_WORK_SOON = "work that the device is better at will be ready soon"
    NOT_WORTH_A_SWAP = "too little work to justify swapping components"
    ENOUGH_AHEAD = "enough texts are encoded ahead"
    LATENTS_FULL = "the latents waiting for decode have reached their limit"
    UNPLACEABLE = "a stage of the clips that are left fits on no present device"
    FAILED_HERE_BEFORE = "the ready tasks failed before: they wait for another device, or until all others have started"
    QUARANTINED = "its device failed repeatedly at the stage of the ready tasks and is in cooldown"
    TOO_LITTLE_MEMORY = "several devices with no less memory ran out of it at the ready tasks"
    AWAITING_WORKER = "the rest can only run on a worker that is being started"


@dataclass(kw_only=True, slots=True, frozen=True)
class Task:
    """A unit of work for one worker. Equal values are the same attempt at the same work.

    A DENOISE task without items is a preload: it only makes its components resident.
    """

    stage: Stage
    items: tuple[int, ...]
    """Text numbers (a batch), one first-frame number, or one clip."""
    attempt: int = 1
    """1 for the first attempt."""
    assists: bool = False
    """Compute the negative passes of a denoise that another worker runs, its *leader*; the task has no result of its own."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DataKey:
    """Identifies one datum in the object store."""

    kind: DataKind
    number: int
    """Number of the text, first frame or clip."""


class FailureKind(StrEnum):
    """Attribution of a failure, which decides whether and where the task is retried."""

    BAD_INPUT = "bad_input"
    """The text, image or parameters can never work: clips that need them fail without a retry."""
    ERROR = "error"
    """Unexpected: retried, on another device if possible."""
    OUT_OF_MEMORY = "out_of_memory"
    """Retried with only the needed components resident, then on another device."""
    CANCELLED = "cancelled"
    """Stopped on request or returned by the worker: retried without being counted."""


class ClipStatus(StrEnum):
    """The final outcome of a clip."""

    DONE = "done"
    FAILED = "failed"


class BreakerState(StrEnum):
    """State of a device's circuit breaker for a stage; the value completes the sentence "decode on w1 ..."."""

    CLOSED = "is back in service"
    """Normal operation."""
    OPEN = "is taken out of service"
    """In cooldown: the device gets no tasks of the stage."""
    HALF_OPEN = "is tried again"
    """Cooldown over: the device gets such tasks, and one more failure opens the breaker again."""


class BreakerReason(StrEnum):
    """Why a circuit breaker changed its state; the value completes the sentence "... because"."""

    CONSECUTIVE_FAILURES = "it failed several tasks in a row while other devices can run them"
    REFUTED = "it failed tasks that other devices finished"
    PROBE_FAILED = "it failed again after its cooldown"
    COOLDOWN_OVER = "its cooldown is over; one more failure starts a longer one"
    PROBE_DONE = "it finished a task of the stage that it had failed"


@dataclass(kw_only=True, slots=True, frozen=True)
class BreakerChange:
    """A circuit breaker of a worker's device changed its state. Informs the user; no reaction is needed."""

    worker: str
    stage: Stage | None = None
    """The stage that it is for; None in records of versions with one breaker for all stages."""
    state: BreakerState
    reason: BreakerReason
    cooldown_s: float = 0.0
    """Seconds without tasks; 0 unless `state` is OPEN."""
    last_failure: str = ""
    """Message of the device's last failure; empty unless `state` is OPEN."""

    def __str__(self) -> str:
        seconds = f" for {self.cooldown_s:.0f} s" if self.cooldown_s else ""
        last = f"; last failure: {self.last_failure}" if self.last_failure else ""
        subject = self.worker if self.stage is None else f"{self.stage} on {self.worker}"
        return f"{subject} {self.state}{seconds}, because {self.reason}{last}"
