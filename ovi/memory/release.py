"""Giving memory back to the device in full."""

import gc

import torch
from torch import nn


def offload_to_cpu(module: nn.Module) -> nn.Module:
    """Move a module's weights to the host's memory and give the device's back. Does nothing where they are there already."""
    device = next(module.parameters()).device
    if device.type != "cpu":
        module.to("cpu")
        release_memory(device)
    return module


def release_memory(device: torch.device) -> None:
    """Return what unloaded components held: collect garbage, finish pending work, empty the cache, close shared handles.

    Does for CUDA and ROCm alike, and no more than a collection on a CPU.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
