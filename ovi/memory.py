"""Giving memory back to the device in full."""

import gc

import torch


def release_memory(device: torch.device) -> None:
    """Return what unloaded components held: collect garbage, finish pending work, empty the cache, close shared handles.

    Does for CUDA and ROCm alike, and no more than a collection on a CPU.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
