"""The memory that a worker holds now."""

import psutil
import torch

from ovi_ray.devices.probe import GB


def memory_in_use_gb(device: torch.device) -> float:
    """GB that this process holds on a device; of the host's memory for a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / GB
    return float(psutil.Process().memory_info().rss) / GB
