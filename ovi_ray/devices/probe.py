"""Detection of a node's devices: vendor, architecture, memory, and the labels and environment that follow from them.

Torch and the kernel drivers are queried through `DeviceEdge`, for which tests have a fake.
"""

import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.backends import cudnn

from ovi.attention.target import AOTRITON_EXPERIMENTAL, driver_version, gpu_identity, host_memory_bytes
from ovi_ray.devices.kernel_gpus import access_problem, carved_out_bytes, gpus_by_vendor
from ovi_ray.devices.known_faults import known_faults

GB = 1e9
HOST_SHARE_OF_INTEGRATED = 0.85  # of the host's memory, for an integrated GPU (an assumption)
USABLE_SHARE = 0.94  # of a GPU's memory (an assumption); contexts and fragmentation take the rest


@dataclass(kw_only=True, slots=True, frozen=True)
class Device:
    """One device that torch can use."""

    name: str
    vendor: str
    """nvidia, amd or cpu."""
    architecture: str
    """For example sm90 or gfx942; empty for a CPU."""
    memory_gb: float
    """Total memory in GB (10^9 bytes)."""
    torch_device: str = "cpu"
    """Torch's name, for example "cuda:0"."""
    shares_host_memory: bool = False
    """Whether it is an integrated GPU, whose memory is the host's: nothing is saved by moving weights there."""

    @property
    def usable_gb(self) -> float:
        """GB available for weights and activations, without a GPU's context and the allocator's fragmentation."""
        return self.memory_gb * (1.0 if self.vendor == "cpu" else USABLE_SHARE)

    def spare_host_gb(self, host_gb: float) -> float:
        """Of `host_gb` GB of host memory, what may keep components that are not on the device."""
        return 0.0 if self.vendor == "cpu" or self.shares_host_memory else host_gb


@dataclass(kw_only=True, slots=True, frozen=True)
class ProbeResult:
    """The devices of a node that torch can use, and notes for the user on those that it cannot."""

    devices: tuple[Device, ...]
    """The GPUs or, if torch has none, the CPU; never empty."""
    torch_build: str
    """Version and platform, for example "2.13.0 (ROCm 6.4)"."""
    driver: str
    """Version of the GPU's kernel driver; empty if unknown."""
    notes: tuple[str, ...] = ()
    """Driver errors, and GPUs that this build of torch cannot use."""

    @property
    def gpus(self) -> tuple[Device, ...]:
        """The devices that are GPUs."""
        return tuple(device for device in self.devices if device.vendor != "cpu")


class DeviceEdge(Protocol):
    """The queries to torch and the kernel drivers. `count` and `properties` raise RuntimeError if a driver fails."""

    def torch_build(self) -> str:
        """Version of torch and the platform it is built for."""

    def is_rocm(self) -> bool:
        """Whether torch is built for ROCm, so that its GPUs are AMD's."""

    def count(self) -> int:
        """Number of GPUs that torch sees."""

    def properties(self, index: int) -> Any:
        """Torch's properties of a GPU: name, total_memory, major and minor and, on ROCm, gcnArchName."""

    def driver(self) -> str:
        """Version of the GPU's kernel driver; empty if unknown."""

    def vendors(self) -> frozenset[str]:
        """Vendors whose kernel driver is loaded on this node, whatever torch is built for."""


class TorchEdge:
    """The `DeviceEdge` of this machine."""

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
        return frozenset(gpus_by_vendor())


def probe(edge: DeviceEdge | None = None) -> ProbeResult:
    """Detect the devices of this node. If a driver fails, its message becomes a note and the CPU is the only device."""
    edge = edge or TorchEdge()
    notes, devices = [], []
    try:
        devices = [_gpu(edge, index) for index in range(edge.count())]
    except RuntimeError as error:
        notes.append(f"the GPU driver failed: {error}")
    notes += _unused_vendors(edge, frozenset(device.vendor for device in devices))
    return ProbeResult(
        devices=tuple(devices) or (_cpu(),), torch_build=edge.torch_build(), driver=edge.driver(), notes=tuple(notes)
    )


def faults_of_versions(probed: ProbeResult) -> tuple[str, ...]:
    """Known faults of the versions of torch and cuDNN in this process, on the GPUs that were found."""
    vendor = probed.gpus[0].vendor if probed.gpus else ""
    return known_faults(vendor=vendor, torch_version=torch.__version__, cudnn=cudnn.version())


def _unused_vendors(edge: DeviceEdge, used: frozenset[str]) -> list[str]:
    return [_unused(vendor, edge) for vendor in sorted(edge.vendors() - used)]


def _unused(vendor: str, edge: DeviceEdge) -> str:
    there = f"this node has {vendor.upper()} GPUs that torch {edge.torch_build()} cannot use"
    if vendor == "amd" and edge.is_rocm() and (reason := access_problem()):
        return f"{there}: {reason}"
    platform = "ROCm" if vendor == "amd" else "CUDA"
    return f"{there}; start a separate Ray node for them from an environment with torch for {platform}"


def describe_device(device: torch.device, edge: DeviceEdge | None = None) -> Device:
    """Describe a torch device. Torch names ROCm devices `cuda` too. Raises RuntimeError if the driver fails."""
    return _gpu(edge or TorchEdge(), device.index or 0) if device.type == "cuda" else _cpu()


def _cpu() -> Device:
    return Device(name="cpu", vendor="cpu", architecture="", memory_gb=host_memory_gb())


def _gpu(edge: DeviceEdge, index: int) -> Device:
    properties = edge.properties(index)
    vendor, architecture = gpu_identity(properties, is_rocm=edge.is_rocm())
    is_integrated = bool(getattr(properties, "is_integrated", False))
    size = properties.total_memory
    if is_integrated:
        size = integrated_bytes(size, carved_out=carved_out_bytes(), host=host_memory_bytes())
    return Device(
        name=properties.name,
        vendor=vendor,
        architecture=architecture,
        memory_gb=size / GB,
        torch_device=f"cuda:{index}",
        shares_host_memory=is_integrated,
    )


def integrated_bytes(total: int, *, carved_out: int, host: int) -> int:
    """Memory that an integrated GPU can really have of the `total` that its driver names.

    What the firmware carved out is the GPU's alone; the rest is the host's, which needs a part of it itself.
    """
    return min(total, carved_out + int(HOST_SHARE_OF_INTEGRATED * host))


def node_labels(device: Device) -> dict[str, str]:
    """Ray labels of a node with this device; workers are placed by them."""
    labels = {"vendor": device.vendor, "memory_gib": str(int(device.memory_gb * GB / 2**30))}
    return labels | ({"arch": device.architecture} if device.architecture else {})


def vendor_environment(vendor: str) -> dict[str, str]:
    """Environment variables that a vendor's workers need before they import torch."""
    return dict(_ENVIRONMENT.get(vendor, {}))


def gpu_environment(vendor: str = "") -> dict[str, str]:
    """The variables of a worker on a GPU of a vendor; of every vendor where it is not known, as each ignores the others'."""
    return vendor_environment(vendor) or {name: value for each in _ENVIRONMENT.values() for name, value in each.items()}


def use_gpu_environment(probed: ProbeResult) -> None:
    """Give this process, which has not used a GPU yet, and its children the variables that workers here would have."""
    for name, value in gpu_environment(probed.gpus[0].vendor).items() if probed.gpus else ():
        os.environ.setdefault(name, value)


_ENVIRONMENT = {
    # Loading and unloading components of different sizes can fragment half of the device's memory.
    "nvidia": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    # Without it, gfx1151 and RDNA cards fall back to unfused attention, which is hundreds of times slower.
    "amd": {AOTRITON_EXPERIMENTAL: "1"},
}


def host_memory_gb() -> float:
    """Total memory of this machine in GB."""
    return host_memory_bytes() / GB
