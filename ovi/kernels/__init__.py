"""Fused kernels of the transformer's blocks, the plain operations that they stand for, and the choice between them.

types           the kernels and the plan that names those in use (no torch)
reference       the plain torch operations
triton_kernels  the kernels in Triton; the only module that imports it
operations      what the model calls: a fused kernel where the plan names it, else the plain operations
trial           a kernel beside the plain operations on a device, also as a child process
choice          the plan for a device: tried, checked, cached

May import `ovi.attention.target`, `ovi.config` and the layers below them.
"""

from ovi.kernels.types import FusedKernel, KernelMode, KernelPlan

__all__ = ["FusedKernel", "KernelMode", "KernelPlan"]
