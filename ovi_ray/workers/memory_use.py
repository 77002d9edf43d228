"""The memory that a worker holds now."""

import os
from pathlib import Path

import torch

from ovi_ray.devices.probe import GB


def memory_in_use_gb(device: torch.device) -> float | None:
    """GB that this process holds on a device; of the host's memory for a CPU. None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / GB
    try:
        resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return None
    return resident_pages * os.sysconf("SC_PAGE_SIZE") / GB
