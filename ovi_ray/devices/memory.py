"""Memory that a model needs on a device (weights by component, activations by stage), and the resulting memory plan."""

from pathlib import Path

import torch

from ovi.config import Architecture, Component
from ovi.geometry import snap_size
from ovi.memory.limit import MemoryEdge, free_bytes
from ovi.memory.plan import MemoryDemand, MemoryPlan, activations, plan_memory
from ovi.pipeline import OviPipeline
from ovi.quality import Quality
from ovi.weights.formats import WeightFormat
from ovi.weights.loading import FLOAT32_COMPONENTS, num_parameters
from ovi.weights.quantization import streamed_bytes, transformer_bytes
from ovi_ray.devices.probe import GB, USABLE_SHARE, DeviceEdge, describe_device, host_memory_gb


def component_sizes(
    ckpt_dir: str | Path, dtype: torch.dtype, weights: WeightFormat = WeightFormat.DTYPE, *, streams: bool = False
) -> dict[Component, float]:
    """GB of each component's weights when loaded in `dtype`, from the architecture alone; no weights are read."""
    sizes = component_bytes(ckpt_dir, dtype, weights, streams=streams)
    return {component: size / GB for component, size in sizes.items()}


def component_bytes(
    ckpt_dir: str | Path, dtype: torch.dtype, weights: WeightFormat, *, streams: bool = False
) -> dict[Component, int]:
    """Bytes of each component's weights on the device, with the transformer's in a weight format, or its blocks streamed."""
    sizes = {
        component: count * (torch.float32 if component in FLOAT32_COMPONENTS else dtype).itemsize
        for component, count in num_parameters(ckpt_dir).items()
    }
    arch = Architecture.read(ckpt_dir)
    transformer = streamed_bytes(arch, dtype).device if streams else transformer_bytes(arch, dtype, weights)
    return sizes | {Component.TRANSFORMER: transformer}


def memory_demand(
    ckpt_dir: str | Path,
    model_name: str,
    dtype: torch.dtype,
    weights: WeightFormat,
    size: tuple[int, int] | None = None,
    *,
    streams: bool = False,
    quality: Quality = Quality.EXACT,
) -> MemoryDemand:
    """Bytes that a model needs for clips of `size` (height, width) pixels; by default a square of the model's area."""
    arch = Architecture.read(ckpt_dir)
    spec = arch.spec(model_name)
    height, width = size or snap_size(1, 1, spec.video_area)
    return MemoryDemand(
        components=component_bytes(ckpt_dir, dtype, weights, streams=streams),
        activations=activations(arch, spec, height, width, dtype.itemsize, quality, weights=weights),
        pinned=streamed_bytes(arch, dtype).host if streams else 0,
    )


def plan_device(
    pipeline: OviPipeline,
    *,
    memory_gb: float | None,
    host_gb: float | None,
    quality: Quality = Quality.EXACT,
    edge: DeviceEdge | None = None,
    memory: MemoryEdge = torch.cuda,
) -> MemoryPlan:
    """The memory plan of a pipeline's device. Raises MemoryTooSmall if no stage fits.

    `memory_gb` and `host_gb` limit device and host memory; None uses what the machine has. Of a GPU, only what is free is used.
    """
    demand = memory_demand(
        pipeline.ckpt_dir,
        pipeline.spec.name,
        pipeline.dtype,
        pipeline.weights,
        streams=pipeline.stream_blocks,
        quality=quality,
    )
    device = describe_device(pipeline.device, edge)
    budget = memory_gb or device.usable_gb
    if (free := free_bytes(pipeline.device, memory)) is not None:
        budget = min(budget, USABLE_SHARE * free / GB)
    host = device.spare_host_gb(host_gb or host_memory_gb())
    return plan_memory({pipeline.weights: demand}, budget=int(budget * GB), host=int(host * GB))
