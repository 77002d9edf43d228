"""Classifies exceptions of a task: whose fault it is, and what the driver should do about it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ovi.errors import DenoiseStopped, InvalidRequest, MediaError
from ovi_ray.errors import InputAway, LatentsUnusable, OutputUnavailable
from ovi_ray.protocol.messages import Failure, FailureCause
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.diagnostics import output_error

_OUT_OF_MEMORY = (  # in lower case: of CUDA, HIP and the CPU's allocator, which have no class for it in every place
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_, CUDNN_STATUS_, HIPBLAS_STATUS_
    "allocfailed",
    "get was unable to find an engine",  # cuDNN, where no algorithm's workspace fits
    "miopenstatus",  # MIOpen tells the reason in its log alone; nearly always it is a workspace that does not fit
)
_DEVICE_FAILED = (  # in lower case: after these, every later call of the process fails too
    "cuda error",
    "hip error",
    "cuda driver error",
    "hip driver error",
    "uncorrectable ecc",
    "device-side assert",
    "illegal memory access",
    "launch failure",
    "hsa_status_error",
    "status_execution_failed",  # CUBLAS_, CUDNN_, HIPBLAS_
    "status_internal_error",
)


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


def device_failed(error: BaseException) -> bool:
    """Whether an error of the GPU leaves the process unable to use it: a new process is needed, on this GPU or another."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(words in str(error).lower() for words in _DEVICE_FAILED)


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
