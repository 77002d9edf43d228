"""What an attention backend must know of the device it would run on."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

AOTRITON_EXPERIMENTAL = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
"""Set to 1 before torch starts, it lets AOTriton run on architectures it calls experimental, such as gfx1151."""


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionTarget:
    """A device and the dtype that attention runs in there."""

    device: str
    """As torch names it: "cpu", "cuda", "cuda:1"."""
    dtype: torch.dtype
    vendor: str
    """nvidia, amd or cpu."""
    architecture: str
    """Such as sm90 or gfx942; empty for a CPU."""
    memory_bytes: int
    """Of the device, in all."""
    name: str = "cpu"
    """Such as "NVIDIA H200"."""
    driver: str = ""
    aotriton_experimental: bool = False
    """Whether AOTriton may run on architectures it calls experimental."""

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Self:
        """The target behind a torch device. ROCm's devices are `cuda` to torch."""
        if device.type != "cuda":
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return cls(
                device=str(device), dtype=dtype, vendor="cpu", architecture="", memory_bytes=memory, name=_cpu_name()
            )
        properties = torch.cuda.get_device_properties(device)
        on_amd = torch.version.hip is not None
        return cls(
            device=str(device),
            dtype=dtype,
            vendor="amd" if on_amd else "nvidia",
            architecture=properties.gcnArchName.split(":")[0] if on_amd else f"sm{properties.major}{properties.minor}",
            memory_bytes=properties.total_memory,
            name=properties.name,
            driver=driver_version(),
            aotriton_experimental=os.environ.get(AOTRITON_EXPERIMENTAL) == "1",
        )

    @property
    def capability(self) -> int:
        """Of an NVIDIA device, such as 90 for sm90; else 0."""
        return int(self.architecture.removeprefix("sm")) if self.vendor == "nvidia" else 0


def driver_version() -> str:
    """Version of the GPU's kernel driver; empty where it cannot be told."""
    for path in (Path("/sys/module/nvidia/version"), Path("/sys/module/amdgpu/version")):
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
    return ""


def _cpu_name() -> str:
    """The processor's model: what is fastest on one need not be on another."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1).strip() if found else "cpu"
