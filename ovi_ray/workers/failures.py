"""Classifies exceptions of a task: whose fault it is, and what the driver should do about it."""

import traceback

import torch

from ovi.errors import CheckpointError, DenoiseStopped, InvalidRequest
from ovi_ray.errors import LatentsUnusable
from ovi_ray.protocol.messages import Failure, FailureCause
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.diagnostics import storage_error

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # HIP's and the CPU allocator's have no class of their own


def failure_kind(error: BaseException) -> FailureKind:
    """Whose fault an exception is."""
    match error:
        case InvalidRequest():
            return FailureKind.BAD_INPUT
        case DenoiseStopped():
            return FailureKind.CANCELLED
        case torch.OutOfMemoryError() | MemoryError():
            return FailureKind.OUT_OF_MEMORY
        case RuntimeError() if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return FailureKind.OUT_OF_MEMORY
        case _:
            return FailureKind.ERROR


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory."""
    return failure_kind(error) is FailureKind.OUT_OF_MEMORY


def failure_of(error: Exception) -> Failure:
    """An exception as data. Call it while the exception is being handled: it takes the current traceback."""
    cause = _cause(error)
    return Failure(
        kind=failure_kind(error) if cause is FailureCause.TASK else FailureKind.CANCELLED,
        message=str(error) or type(error).__name__,
        traceback=traceback.format_exc(),
        cause=cause,
    )


def _cause(error: BaseException) -> FailureCause:
    if isinstance(error, LatentsUnusable):
        return FailureCause.LATENTS
    if isinstance(error, CheckpointError):  # of this machine's copy of the weights: another machine may succeed
        return FailureCause.TASK
    return FailureCause.STORAGE if storage_error(error) else FailureCause.TASK
