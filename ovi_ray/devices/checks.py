"""Checks of a job against its devices before anything starts: memory budget and attention backend."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ovi.attention import AttentionBackend, Site
from ovi.attention.autotune import check_available
from ovi.config import Architecture
from ovi.errors import AttentionUnavailable, MemoryTooSmall
from ovi.geometry import snap_size
from ovi.memory.plan import check_budget
from ovi_ray.devices.attention import attention_target, model_shapes
from ovi_ray.devices.memory import memory_demand
from ovi_ray.devices.probe import GB, Device, DeviceEdge, ProbeResult, probe
from ovi_ray.errors import COMMAND_LINE, Problem
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec
from ovi_ray.weights.cache import local_checkpoint


def device_problems(job: JobSpec, edge: DeviceEdge | None = None) -> list[Problem]:
    """Problems of a job's memory budget and, if it runs on this machine, of its device and its attention backend."""
    folder = local_checkpoint(job.ckpt_dir)
    problems = list(_memory_problems(job, folder))
    if job.address is None:
        probed = probe(edge)
        problems += [*_device_problems(job, probed), *_attention_problems(job, folder, probed)]
    return problems


def _device_problems(job: JobSpec, probed: ProbeResult) -> Iterator[Problem]:
    """A CPU never stands in for GPUs that are there and cannot be used, unless it is asked for."""
    if job.device is DeviceKind.CPU or job.cluster is not None or probed.gpus:
        return
    if probed.notes:
        expected = f"cpu, to render without a GPU, or a GPU that torch can use: {'; '.join(probed.notes)}"
        yield Problem(file=COMMAND_LINE, field="device", value=str(job.device), expected=expected)


def _memory_problems(job: JobSpec, folder: Path) -> Iterator[Problem]:
    if job.memory_gb is None:
        return
    size = snap_size(*job.video_frame_height_width, Architecture.read(folder).spec(job.model_name).video_area)
    demand = memory_demand(folder, job.model_name, getattr(torch, job.dtype), job.weights, size)
    try:
        check_budget(demand, int(job.memory_gb * GB))
    except MemoryTooSmall as error:
        yield Problem(file=COMMAND_LINE, field="memory_gb", value=f"{job.memory_gb:g}", expected=str(error))


def _attention_problems(job: JobSpec, folder: Path, probed: ProbeResult) -> Iterator[Problem]:
    if job.attention is AttentionBackend.AUTO:
        return
    device = probed.devices[0]
    if job.device is DeviceKind.CPU:
        device = Device(name="cpu", vendor="cpu", architecture="", memory_gb=device.memory_gb)
    target = attention_target(device, probed.driver, getattr(torch, job.dtype))
    try:
        check_available(job.attention, target, model_shapes(folder, job.model_name)[Site.VIDEO_SELF])
    except AttentionUnavailable as error:
        yield Problem(file=COMMAND_LINE, field="attention", value=str(job.attention), expected=str(error))
