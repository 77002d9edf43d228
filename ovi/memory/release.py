"""Moving modules off a device and returning their memory to it."""

import gc
from contextlib import suppress

import torch
from torch import nn


def offload_to_cpu(module: nn.Module) -> nn.Module:
    """Move a module's weights to host memory and release the device memory; a no-op if they are on the CPU."""
    device = next(module.parameters()).device
    if device.type != "cpu":
        module.to("cpu")
        release_memory(device)
    return module


def release_memory(device: torch.device) -> None:
    """Return the memory of dropped tensors to the device.

    Collects garbage and, on CUDA and ROCm, waits for pending kernels, empties the caching allocator and closes shared
    handles of other processes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()


def try_to_release_memory(device: torch.device) -> None:
    """As `release_memory`, for use while an error is handled: a device that fails in it raises nothing."""
    with suppress(RuntimeError):
        release_memory(device)
