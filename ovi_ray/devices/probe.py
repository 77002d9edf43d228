"""What a worker's device is: vendor, architecture, memory, and what the model's components take on it.

Torch and the kernel's drivers are asked through a thin edge, `DeviceEdge`, which tests replace.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ovi.attention.target import AOTRITON_EXPERIMENTAL, driver_version

GB = 1e9
USABLE_SHARE = 0.94  # of a GPU's memory; assumed


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
    torch_device: str = "cpu"
    """As torch names it."""

    @property
    def usable_gb(self) -> float:
        """GB that weights and activations may take: a GPU's context and the allocator's fragments take the rest."""
        return self.memory_gb * (1.0 if self.vendor == "cpu" else USABLE_SHARE)


@dataclass(kw_only=True, slots=True, frozen=True)
class Findings:
    """The devices of a node that torch can use, and what the user should know of the others."""

    devices: tuple[Device, ...]
    """Its GPUs, or its CPU where torch has none."""
    torch_build: str
    """Such as "2.13.0 (ROCm 6.4)"."""
    driver: str
    notes: tuple[str, ...] = ()


class DeviceEdge(Protocol):
    """What is asked of torch and of the kernel's drivers. Any of it may raise RuntimeError where a driver errs."""

    def torch_build(self) -> str:
        """Version of torch and what it is built for."""

    def is_rocm(self) -> bool:
        """Whether torch is built for ROCm: its devices are then AMD's."""

    def count(self) -> int:
        """GPUs that torch sees."""

    def properties(self, index: int) -> Any:
        """Torch's properties of a GPU: name, total_memory, and major and minor or gcnArchName."""

    def driver(self) -> str:
        """Version of the GPU's kernel driver."""

    def vendors(self) -> frozenset[str]:
        """Vendors whose kernel driver runs on this node, whatever torch is built for."""


class TorchEdge:
    """The real edge."""

    def torch_build(self) -> str:
        """See DeviceEdge."""
        built_for = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{torch.__version__} ({built_for if torch.version.hip or torch.version.cuda else 'CPU'})"

    def is_rocm(self) -> bool:
        """See DeviceEdge."""
        return torch.version.hip is not None

    def count(self) -> int:
        """See DeviceEdge."""
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def properties(self, index: int) -> Any:
        """See DeviceEdge."""
        return torch.cuda.get_device_properties(index)

    def driver(self) -> str:
        """See DeviceEdge."""
        return driver_version()

    def vendors(self) -> frozenset[str]:
        """See DeviceEdge."""
        marks = {"nvidia": Path("/dev/nvidiactl"), "amd": Path("/dev/kfd")}
        return frozenset(vendor for vendor, mark in marks.items() if mark.exists())


def probe(edge: DeviceEdge | None = None) -> Findings:
    """The devices of this node. Never raises for a driver that errs: its message is a note, and the CPU remains."""
    edge = edge or TorchEdge()
    notes, devices = [], []
    try:
        devices = [_gpu(edge, index) for index in range(edge.count())]
    except RuntimeError as error:
        notes.append(f"the GPU's driver answers with an error: {error}")
    notes += _unused_vendors(edge, frozenset(device.vendor for device in devices))
    return Findings(
        devices=tuple(devices) or (_cpu(),), torch_build=edge.torch_build(), driver=edge.driver(), notes=tuple(notes)
    )


def _unused_vendors(edge: DeviceEdge, used: frozenset[str]) -> list[str]:
    return [
        f"{vendor.upper()} GPUs are here, and this torch ({edge.torch_build()}) cannot use them: start a Ray node of"
        f" their own from an environment with torch for {'ROCm' if vendor == 'amd' else 'CUDA'}"
        for vendor in sorted(edge.vendors() - used)
    ]


def describe_device(device: torch.device, edge: DeviceEdge | None = None) -> Device:
    """The device behind a torch device. ROCm's devices are `cuda` to torch."""
    return _gpu(edge or TorchEdge(), device.index or 0) if device.type == "cuda" else _cpu()


def _cpu() -> Device:
    return Device(name="cpu", vendor="cpu", architecture="", memory_gb=host_memory_gb())


def _gpu(edge: DeviceEdge, index: int) -> Device:
    properties = edge.properties(index)
    rocm = edge.is_rocm()
    return Device(
        name=properties.name,
        vendor="amd" if rocm else "nvidia",
        architecture=properties.gcnArchName.split(":")[0] if rocm else f"sm{properties.major}{properties.minor}",
        memory_gb=properties.total_memory / GB,
        torch_device=f"cuda:{index}",
    )


def node_labels(device: Device) -> dict[str, str]:
    """The Ray labels of a node with such devices: workers are placed by them."""
    labels = {"vendor": device.vendor, "memory_gib": str(int(device.memory_gb * GB / 2**30))}
    return labels | ({"arch": device.architecture} if device.architecture else {})


def vendor_environment(vendor: str) -> dict[str, str]:
    """Environment variables that a vendor's workers need before torch is imported."""
    return dict(_ENVIRONMENT.get(vendor, {}))


_ENVIRONMENT = {
    # half the device's memory can be lost to fragments when components of different sizes come and go
    "nvidia": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    # without it, gfx1151 and RDNA cards fall back to plain math attention, hundreds of times slower
    "amd": {AOTRITON_EXPERIMENTAL: "1"},
}


def host_memory_gb() -> float:
    """GB of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
