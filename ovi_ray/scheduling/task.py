"""Values shared by the scheduler's events and actions: tasks, data keys, reasons, failure kinds, health changes."""

from dataclasses import dataclass
from enum import StrEnum

from ovi.stages import DataKind as DataKind
from ovi.stages import Stage


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


class ClipStatus(StrEnum):
    """How a clip ended."""

    DONE = "done"
    FAILED = "failed"


class BreakerState(StrEnum):
    """What becomes of a worker."""

    OPEN = "is taken out"
    HALF_OPEN = "is tried again"
    CLOSED = "is back in full"


class BreakerReason(StrEnum):
    """Why."""

    IN_A_ROW = "it failed three tasks in a row while others can go on"
    REFUTED = "it failed tasks that others finished"
    PROBE_FAILED = "it failed again after its rest"
    RESTED = "its rest is over; one more failure and it rests longer"
    PROBE_DONE = "it finished a task of the kind that it had failed"


@dataclass(kw_only=True, slots=True, frozen=True)
class BreakerChange:
    """A worker is taken out, tried again, or trusted again: for the user to know; nothing is to be done about it."""

    worker: str
    state: BreakerState
    reason: BreakerReason
    rest_s: float = 0.0
    """Seconds without tasks, if it is taken out."""
    last_failure: str = ""

    def __str__(self) -> str:
        seconds = f" for {self.rest_s:.0f} s" if self.rest_s else ""
        last = f"; the last failure: {self.last_failure}" if self.last_failure else ""
        return f"{self.worker} {self.state}{seconds}, because {self.reason}{last}"
