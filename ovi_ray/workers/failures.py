"""Classifies exceptions of a task: whose fault it is, and what the driver should do about it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ovi.device_errors import device_failed, is_out_of_memory
from ovi.errors import DenoiseStopped, InvalidRequest, MediaError, PartnerUnavailable
from ovi_ray.errors import InputAway, LatentsUnusable, OutputUnavailable
from ovi_ray.protocol.messages import Failure, FailureCause
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.diagnostics import output_error


def failure_kind(error: BaseException) -> FailureKind:
    """Whose fault an exception is."""
    match error:
        case InvalidRequest():
            return FailureKind.BAD_INPUT
        case DenoiseStopped() | PartnerUnavailable():
            return FailureKind.CANCELLED
        case _ if is_out_of_memory(error):
            return FailureKind.OUT_OF_MEMORY
        case _:
            return FailureKind.ERROR


def failure_of(error: Exception) -> Failure:
    """An exception as data. Call it while the exception is being handled: it takes the current traceback."""
    cause = _cause(error)
    return Failure(
        kind=failure_kind(error) if cause is FailureCause.TASK else FailureKind.CANCELLED,
        message=str(error) or type(error).__name__,
        traceback=traceback.format_exc(),
        cause=cause,
        ends_worker=device_failed(error),
        input_path=error.path if isinstance(error, InputAway) else "",
    )


@contextmanager
def output_errors() -> Iterator[None]:
    """Errors of the system or the store in this block, about files of the output folder, become OutputUnavailable."""
    try:
        yield
    except OutputUnavailable:
        raise
    except OSError as error:
        raise OutputUnavailable(str(error)) from error
    except MediaError as error:
        if reason := output_error(error):
            raise OutputUnavailable(str(error) or reason) from error
        raise


def _cause(error: BaseException) -> FailureCause:
    match error:
        case LatentsUnusable():
            return FailureCause.LATENTS
        case OutputUnavailable() | InputAway():
            return FailureCause.STORAGE
        case _:
            return FailureCause.TASK
