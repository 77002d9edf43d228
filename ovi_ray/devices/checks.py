"""Checks of a job against its devices before anything starts: memory budget and attention backend."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ovi.attention import AttentionBackend, Site
from ovi.attention.autotune import check_available
from ovi.config import Architecture
from ovi.errors import AttentionUnavailable, MemoryTooSmall
from ovi.geometry import snap_size
from ovi.memory.plan import MemoryDemand, check_budget
from ovi.stages import Stage
from ovi.weights.formats import FP8_MODEL, WeightFormat
from ovi_ray.devices.attention import attention_target, model_shapes
from ovi_ray.devices.memory import memory_demand
from ovi_ray.devices.probe import GB, Device, DeviceEdge, ProbeResult, host_memory_gb, probe
from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec
from ovi_ray.weights.cache import local_checkpoint


def device_problems(job: JobSpec, edge: DeviceEdge | None = None) -> list[Problem]:
    """Problems of a job's memory budget and, if it runs on this machine, of its device and its attention backend."""
    folder = local_checkpoint(job.ckpt_dir)
    problems = list(_memory_problems(job, folder))
    if job.address is None:
        probed = probe(edge)
        if not problems:
            problems += _room_problems(job, folder, probed)
        problems += [*_device_problems(job, probed), *_attention_problems(job, folder, probed)]
    return problems


def _device_problems(job: JobSpec, probed: ProbeResult) -> Iterator[Problem]:
    """A CPU never stands in for GPUs that are there and cannot be used, unless it is asked for."""
    if job.device is DeviceKind.CPU or job.cluster is not None or probed.gpus:
        return
    if probed.notes:
        expected = f"cpu, to render without a GPU, or a GPU that torch can use: {'; '.join(probed.notes)}"
        yield Problem(file=COMMAND_LINE, field="device", value=str(job.device), expected=expected)


def chosen_weights(job: JobSpec, edge: DeviceEdge | None = None) -> WeightFormat:
    """The form of the weights for a job that leaves it open: qint8 if more of its devices can denoise with it.

    Raises InputError where the devices are not known.
    """
    folder = local_checkpoint(job.ckpt_dir)
    budgets = _budgets(job, edge)
    able = {
        weights: sum(_bytes_to_denoise(job, folder, weights) <= budget for budget in budgets)
        for weights in (WeightFormat.DTYPE, WeightFormat.QINT8)
    }
    return max(able, key=lambda weights: able[weights])  # the first among equals


def _budgets(job: JobSpec, edge: DeviceEdge | None) -> list[int]:
    """Bytes of each device that may denoise."""
    if job.cluster is not None:
        devices = read_profile(job.cluster).devices
        classes = [(kind.profile(name), kind.count) for name, kind in devices.items()]
        return [
            int(each.memory_gb * GB) for each, count in classes if Stage.DENOISE in each.stages for _ in range(count)
        ]
    if job.address is not None:
        expected = "a cluster profile beside it (--cluster), which tells the devices' memory; or dtype, or qint8"
        raise InputError([Problem(file=COMMAND_LINE, field="weights", value=str(job.weights), expected=expected)])
    probed = probe(edge)
    gigabytes = [device.usable_gb for device in probed.gpus if job.device is not DeviceKind.CPU] or [host_memory_gb()]
    return [int(min(size, job.memory_gb or size) * GB) for size in gigabytes]


def _bytes_to_denoise(job: JobSpec, folder: Path, weights: WeightFormat) -> int:
    return _demand(job, folder, weights).of(Stage.DENOISE)


def _demand(job: JobSpec, folder: Path, weights: WeightFormat) -> MemoryDemand:
    size = snap_size(*job.video_frame_height_width, Architecture.read(folder).spec(job.model_name).video_area)
    return memory_demand(folder, job.model_name, getattr(torch, job.dtype), weights, size)


def _room_problems(job: JobSpec, folder: Path, probed: ProbeResult) -> Iterator[Problem]:
    """GPUs of which none can denoise, told before anything loads, with the option that makes it fit."""
    gpus = () if job.device is DeviceKind.CPU or job.cluster is not None else probed.gpus
    sizes = [min(gpu.usable_gb, job.memory_gb or gpu.usable_gb) for gpu in gpus]
    needed = _bytes_to_denoise(job, folder, job.weight_format) / GB
    if not sizes or needed <= max(sizes):
        return
    largest = max(gpus, key=lambda gpu: gpu.usable_gb)
    narrow = _bytes_to_denoise(job, folder, WeightFormat.QINT8) / GB
    fp8 = f" or, of model {FP8_MODEL}, --fp8" if job.model_name == FP8_MODEL else ""
    fits = f"--qint8 or --weights auto{fp8}, with which it needs {narrow:.1f} GB and other pixels are rendered"
    expected = fits if narrow <= max(sizes) else "a larger GPU, or --device cpu"
    room = f"{largest.name} has {max(sizes):.1f} GB for it"
    value = f"{job.weight_format}, with which denoising needs {needed:.1f} GB, and {room}"
    yield Problem(file=COMMAND_LINE, field="weights", value=value, expected=expected)


def _memory_problems(job: JobSpec, folder: Path) -> Iterator[Problem]:
    if job.memory_gb is None:
        return
    try:
        check_budget(_demand(job, folder, job.weight_format), int(job.memory_gb * GB))
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
