"""Holding a process to a part of its device's memory, and what is free of it."""

from typing import Protocol

import torch


class MemoryEdge(Protocol):
    """The queries and settings of `torch.cuda`, which stands for ROCm too."""

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        """Bytes that are free on the device, whichever process holds the rest, and all of its bytes."""
        ...

    def set_per_process_memory_fraction(self, fraction: float, device: int | None) -> None:
        """Let the allocator fail as the device would where this process asks for more than a part of its memory.

        None is the current device; torch refuses a device without its number.
        """
        ...


def limit_memory(device: torch.device, size: int, edge: MemoryEdge = torch.cuda) -> None:
    """Hold what this process allocates on a GPU to `size` bytes; a CPU's memory cannot be held so."""
    if device.type == "cuda":
        _, total = edge.mem_get_info(device)
        edge.set_per_process_memory_fraction(min(1.0, size / total), device.index)


def free_bytes(device: torch.device, edge: MemoryEdge = torch.cuda) -> int | None:
    """Bytes of a GPU that no process holds; None for a CPU."""
    return edge.mem_get_info(device)[0] if device.type == "cuda" else None
