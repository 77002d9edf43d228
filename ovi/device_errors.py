"""Classification of errors: memory ran out, or the process can no longer use its GPU.

Torch has no class for either in every place: libraries below it raise RuntimeError with words of their own.
"""

import torch

_OUT_OF_MEMORY = (  # in lower case: of CUDA, HIP and the CPU's allocator
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
_NOT_BUILT_FOR = ("no kernel image", "invalid device function", "operation not supported")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _has_any(error, _OUT_OF_MEMORY)
    )


def device_failed(error: BaseException) -> bool:
    """Whether an error of the GPU leaves the process unable to use it: a new process is needed, on this GPU or another."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or _has_any(error, _DEVICE_FAILED)


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed another time: memory ran out, or the GPU failed for another reason than its kind."""
    return is_out_of_memory(error) or (device_failed(error) and not _has_any(error, _NOT_BUILT_FOR))


def _has_any(error: BaseException, words: tuple[str, ...]) -> bool:
    message = str(error).lower()
    return any(word in message for word in words)
