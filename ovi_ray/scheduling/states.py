"""The states of a clip, an input, a worker and a circuit breaker, each with its transition table.

Every change of state goes through `check_transition`, so that a wrong move fails at once and not as a wrong schedule later.
README.md draws the same tables as diagrams.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ovi.stages import Stage
from ovi_ray.scheduling.task import BreakerState


class IllegalTransition(RuntimeError):
    """A state machine was asked for a move that its table does not have: an error in the scheduler, not in its input."""


State = TypeVar("State", bound=IntEnum | StrEnum)


def check_transition(allowed: frozenset[State], subject: str, old: State, new: State) -> None:
    """Raise IllegalTransition unless `new` is among the states `allowed` after `old`."""
    if new not in allowed:
        raise IllegalTransition(f"{subject} cannot go from {old.name} to {new.name}; allowed: {sorted(allowed)}")


class ClipState(IntEnum):
    """States of a clip, in the order of its life."""

    PENDING = 0
    """Not admitted yet: none of its inputs is queued on its behalf."""
    WAITING = 1
    """Admitted; at least one of its inputs is not encoded yet."""
    READY = 2
    """All inputs are in the object store; queued for denoise."""
    DENOISING = 3
    DENOISED = 4
    """Latents are in the object store; queued for decode."""
    DECODING = 5
    DONE = 6
    FAILED = 7


CLIP_TRANSITIONS: Mapping[ClipState, frozenset[ClipState]] = MappingProxyType(
    {
        ClipState.PENDING: frozenset({ClipState.WAITING, ClipState.FAILED}),
        ClipState.WAITING: frozenset({ClipState.WAITING, ClipState.READY, ClipState.FAILED}),
        ClipState.READY: frozenset({ClipState.DENOISING, ClipState.WAITING, ClipState.FAILED}),
        ClipState.DENOISING: frozenset({ClipState.DENOISED, ClipState.READY, ClipState.WAITING, ClipState.FAILED}),
        ClipState.DENOISED: frozenset({ClipState.DECODING, ClipState.WAITING, ClipState.FAILED}),
        ClipState.DECODING: frozenset({ClipState.DONE, ClipState.DENOISED, ClipState.FAILED}),
        ClipState.DONE: frozenset(),
        ClipState.FAILED: frozenset(),
    }
)


class StageStates(NamedTuple):
    """The states of a clip before, during and after one of its own stages."""

    queued: ClipState
    running: ClipState
    finished: ClipState


CLIP_STAGE_STATES: Mapping[Stage, StageStates] = MappingProxyType(
    {
        Stage.DENOISE: StageStates(ClipState.READY, ClipState.DENOISING, ClipState.DENOISED),
        Stage.DECODE: StageStates(ClipState.DENOISED, ClipState.DECODING, ClipState.DONE),
    }
)


class InputState(IntEnum):
    """States of a text or a first frame."""

    ABSENT = 0
    """Neither encoded nor queued: not needed yet, not needed any more, or lost."""
    QUEUED = 1
    RUNNING = 2
    HELD = 3
    """Encoded and in the object store."""
    BAD = 4
    """Can never be encoded; clips that need it fail."""


INPUT_TRANSITIONS: Mapping[InputState, frozenset[InputState]] = MappingProxyType(
    {
        InputState.ABSENT: frozenset({InputState.QUEUED}),
        InputState.QUEUED: frozenset({InputState.RUNNING, InputState.ABSENT}),
        InputState.RUNNING: frozenset({InputState.HELD, InputState.QUEUED, InputState.ABSENT, InputState.BAD}),
        InputState.HELD: frozenset({InputState.ABSENT}),
        InputState.BAD: frozenset(),
    }
)


class WorkerStatus(StrEnum):
    """States of a worker."""

    IDLE = "idle"
    BUSY = "busy"
    ASSISTING = "assisting"
    """Computing the negative passes of a denoise that another worker runs."""
    LOST = "lost"


WORKER_TRANSITIONS: Mapping[WorkerStatus, frozenset[WorkerStatus]] = MappingProxyType(
    {
        WorkerStatus.IDLE: frozenset({WorkerStatus.BUSY, WorkerStatus.ASSISTING, WorkerStatus.LOST}),
        WorkerStatus.BUSY: frozenset({WorkerStatus.IDLE}),
        WorkerStatus.ASSISTING: frozenset({WorkerStatus.IDLE}),
        WorkerStatus.LOST: frozenset(),
    }
)

BREAKER_TRANSITIONS: Mapping[BreakerState, frozenset[BreakerState]] = MappingProxyType(
    {
        BreakerState.CLOSED: frozenset({BreakerState.OPEN}),
        BreakerState.OPEN: frozenset({BreakerState.HALF_OPEN}),
        BreakerState.HALF_OPEN: frozenset({BreakerState.CLOSED, BreakerState.OPEN}),
    }
)
