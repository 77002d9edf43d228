"""The GPUs of this machine as the kernel's drivers show them, whether torch and Ray can use them or not (no torch)."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

KFD = "dev/kfd"
_NODES = "sys/class/kfd/kfd/topology/nodes"
_NVIDIA = "dev/nvidiactl"


def gpus_by_vendor(root: Path = Path("/")) -> dict[str, int]:
    """The number of GPUs of each vendor that has any. `root` stands for the root of the file system."""
    counts = {"amd": _amd_gpus(root), "nvidia": _nvidia_gpus(root)}
    return {vendor: count for vendor, count in counts.items() if count}


def may_have_gpu(root: Path = Path("/")) -> bool:
    """Whether it is worth importing torch to ask for GPUs: always where the kernel shows them elsewhere than on Linux."""
    return sys.platform != "linux" or bool(gpus_by_vendor(root))


def access_problem(root: Path = Path("/")) -> str:
    """Why this user cannot use the AMD GPUs that are there; empty if nothing is in the way."""
    kfd = root / KFD
    if not kfd.exists() or os.access(kfd, os.R_OK | os.W_OK):
        return ""
    return f"this user may not open {kfd}: add it to the groups render and video, and log in again"


def carved_out_bytes(root: Path = Path("/")) -> int:
    """Memory that the firmware set aside for AMD GPUs; on an integrated one the system cannot use it otherwise."""
    total = 0
    for path in root.glob("sys/class/drm/card*/device/mem_info_vram_total"):
        with suppress(OSError, ValueError):
            total += int(path.read_text(encoding="utf-8"))
    return total


def counts_in_words(counts: Mapping[str, int]) -> str:
    """For example "1 AMD GPU and 8 NVIDIA GPUs"."""
    return " and ".join(f"{count} {vendor.upper()} GPU{'s' * (count != 1)}" for vendor, count in counts.items())


def _amd_gpus(root: Path) -> int:
    """GPUs among the nodes of the compute driver, which lists CPUs too, with a GPU id of 0; 1 where it lists nothing."""
    if not (root / KFD).exists():
        return 0
    try:
        ids = [path.read_text(encoding="utf-8").strip() for path in (root / _NODES).glob("*/gpu_id")]
    except OSError:  # of a container that may not look
        return 1
    return sum(gpu_id not in ("", "0") for gpu_id in ids) if ids else 1


def _nvidia_gpus(root: Path) -> int:
    if not (root / _NVIDIA).exists():
        return 0
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in (root / "dev").glob("nvidia*"))
