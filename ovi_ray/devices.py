"""What a worker's device is: vendor, architecture, memory, and what the model's components take on it."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ovi.checkpoints import FLOAT32_COMPONENTS, num_parameters
from ovi.config import Component

GB = 1e9


@dataclass(kw_only=True, slots=True, frozen=True)
class Device:
    """One device as torch sees it."""

    name: str
    vendor: str
    """nvidia, amd or cpu."""
    architecture: str
    """Such as sm90 or gfx942; empty for a CPU."""
    memory_gb: float
    """GB in all."""


def describe_device(device: torch.device) -> Device:
    """The device behind a torch device. ROCm's devices are `cuda` to torch."""
    if device.type != "cuda":
        return Device(name="cpu", vendor="cpu", architecture="", memory_gb=host_memory_gb())
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        vendor, architecture = "amd", properties.gcnArchName.split(":")[0]
    else:
        vendor, architecture = "nvidia", f"sm{properties.major}{properties.minor}"
    return Device(
        name=properties.name, vendor=vendor, architecture=architecture, memory_gb=properties.total_memory / GB
    )


def component_sizes(ckpt_dir: str | Path, dtype: torch.dtype) -> dict[Component, float]:
    """GB of each component's weights once loaded in `dtype`, counted on the architecture: no file is read."""
    counts = num_parameters(ckpt_dir)
    return {
        component: count * (torch.float32 if component in FLOAT32_COMPONENTS else dtype).itemsize / GB
        for component, count in counts.items()
    }


def host_memory_gb() -> float:
    """GB of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
