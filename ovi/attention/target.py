"""The device that attention runs on: the properties that decide which backends support it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import torch

AOTRITON_EXPERIMENTAL = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
"""Environment variable that, set to 1 before torch is imported, enables AOTriton on architectures that it considers
experimental, such as gfx1151."""


@dataclass(kw_only=True, slots=True, frozen=True)
class AttentionTarget:
    """A device and the dtype that attention computes in."""

    device: str
    """Torch's name: "cpu", "cuda" or "cuda:1"."""
    dtype: torch.dtype
    vendor: str
    """nvidia, amd or cpu."""
    architecture: str
    """For example sm90 or gfx942; empty for a CPU."""
    memory_bytes: int
    """Total memory of the device."""
    model_bytes: int = 0
    """Memory of the model's weights, beside which attention must fit; 0 if it is not known."""
    name: str = "cpu"
    """Product name, for example "NVIDIA H200"."""
    driver: str = ""
    """Version of the kernel driver; empty if unknown."""
    aotriton_experimental: bool = False
    """Whether AOTriton is enabled on architectures that it considers experimental."""

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, model_bytes: int = 0) -> Self:
        """The target of a torch device. Torch names ROCm devices `cuda` too."""
        if device.type != "cuda":
            return cls(
                device=str(device),
                dtype=dtype,
                vendor="cpu",
                architecture="",
                memory_bytes=host_memory_bytes(),
                model_bytes=model_bytes,
                name=_cpu_name(),
            )
        properties = torch.cuda.get_device_properties(device)
        vendor, architecture = gpu_identity(properties, is_rocm=torch.version.hip is not None)
        return cls(
            device=str(device),
            dtype=dtype,
            vendor=vendor,
            architecture=architecture,
            memory_bytes=properties.total_memory,
            model_bytes=model_bytes,
            name=properties.name,
            driver=driver_version(),
            aotriton_experimental=aotriton_experimental(),
        )

    @property
    def capability(self) -> int:
        """CUDA compute capability of an NVIDIA device, for example 90 for sm90; 0 for other vendors."""
        return int(self.architecture.removeprefix("sm")) if self.vendor == "nvidia" else 0


def gpu_identity(properties: Any, *, is_rocm: bool) -> tuple[str, str]:
    """(vendor, architecture) from torch's device properties, for example ("nvidia", "sm90") or ("amd", "gfx942")."""
    if is_rocm:
        return "amd", properties.gcnArchName.split(":")[0]
    return "nvidia", f"sm{properties.major}{properties.minor}"


def aotriton_experimental() -> bool:
    """Whether the environment enables AOTriton on experimental architectures."""
    return os.environ.get(AOTRITON_EXPERIMENTAL) == "1"


def host_memory_bytes() -> int:
    """Total memory of this machine."""
    return int(psutil.virtual_memory().total)


def driver_version() -> str:
    """Version of the GPU's kernel driver; empty if unknown."""
    for path in (Path("/sys/module/nvidia/version"), Path("/sys/module/amdgpu/version")):
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
    return ""


def _cpu_name() -> str:
    """Model name of the processor; part of the cache key, because the fastest backend depends on it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1).strip() if found else "cpu"
