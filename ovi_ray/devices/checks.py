"""Checks of a job against its devices before anything starts: memory budget and attention backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from ovi_ray.inputs.clip_forms import ClipForm
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec, Weights
from ovi_ray.weights.cache import local_checkpoint


def device_problems(
    job: JobSpec,
    edge: DeviceEdge | None = None,
    *,
    forms: Sequence[ClipForm] = (),
    host_gb: float | None = None,
) -> list[Problem]:
    """Problems of a job's memory budget and, if it runs on this machine, of its device and its attention backend.

    `forms` are those of its clips, by default the job's own. `host_gb` is the memory of this machine, by default what it has.
    """
    needs = _Needs.of(job, forms)
    problems = list(_memory_problems(job, needs))
    if job.address is None:
        probed = probe(edge)
        if not problems:
            problems += _room_problems(job, needs, probed, host_gb or host_memory_gb())
        problems += [*_device_problems(job, probed), *_attention_problems(job, needs, probed)]
    return problems


@dataclass(kw_only=True, slots=True, frozen=True)
class _Needs:
    """The memory that the clips of a job need."""

    job: JobSpec
    folder: Path
    forms: Sequence[ClipForm]

    @classmethod
    def of(cls, job: JobSpec, forms: Sequence[ClipForm]) -> "_Needs":
        return cls(job=job, folder=local_checkpoint(job.ckpt_dir), forms=forms or (ClipForm.of_job(job),))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(form.model_name for form in self.forms))

    def demand(self, weights: WeightFormat, *, streams: bool = False) -> MemoryDemand:
        """The most that any of the clips needs, stage by stage."""
        demands = [self._demand(form, weights, streams=streams) for form in self.forms]
        most = {stage: max(demand.activations[stage] for demand in demands) for stage in Stage}
        return replace(demands[0], activations=most)

    def to_denoise(self, weights: WeightFormat, *, streams: bool = False) -> int:
        """Bytes on the device."""
        return self.demand(weights, streams=streams).of(Stage.DENOISE)

    def largest(self, weights: WeightFormat) -> str:
        """The clips that need most to denoise, in words; empty where they are what the job says for every row."""
        form = max(self.forms, key=lambda form: self._demand(form, weights).activations[Stage.DENOISE])
        return "" if form == ClipForm.of_job(self.job) else f" clips of {form}"

    def _demand(self, form: ClipForm, weights: WeightFormat, *, streams: bool = False) -> MemoryDemand:
        size = snap_size(*form.size, Architecture.read(self.folder).spec(form.model_name).video_area)
        dtype = getattr(torch, self.job.dtype)
        return memory_demand(self.folder, form.model_name, dtype, weights, size, streams=streams, quality=form.quality)


def _device_problems(job: JobSpec, probed: ProbeResult) -> Iterator[Problem]:
    """A CPU never stands in for GPUs that are there and cannot be used, unless it is asked for."""
    if job.device is DeviceKind.CPU or job.cluster is not None or probed.gpus:
        return
    if probed.notes:
        expected = f"cpu, to render without a GPU, or a GPU that torch can use: {'; '.join(probed.notes)}"
        yield Problem(file=COMMAND_LINE, field="device", value=str(job.device), expected=expected)


def chosen_weights(
    job: JobSpec,
    edge: DeviceEdge | None = None,
    *,
    forms: Sequence[ClipForm] = (),
    host_gb: float | None = None,
) -> Weights:
    """The form of the weights for a job that leaves it open: streamed, or else qint8, if more of its devices can denoise so.

    `forms` and `host_gb` are as in `device_problems`. Raises InputError where the devices are not known.
    """
    needs = _Needs.of(job, forms)
    budgets = _budgets(job, edge, host_gb or host_memory_gb())
    demands = {
        Weights.DTYPE: needs.demand(WeightFormat.DTYPE),
        Weights.STREAMED: needs.demand(WeightFormat.DTYPE, streams=True),
        Weights.QINT8: needs.demand(WeightFormat.QINT8),
    }
    able = {
        weights: sum(demand.of(Stage.DENOISE) <= each.device and demand.pinned <= each.host for each in budgets)
        for weights, demand in demands.items()
    }
    return max(able, key=lambda weights: able[weights])  # the first among equals


@dataclass(kw_only=True, slots=True, frozen=True)
class _Budget:
    """Bytes of one device."""

    device: int
    host: int = 0
    """Of its host's memory, for streamed blocks; 0 where that is its own, or is not known."""


def _budgets(job: JobSpec, edge: DeviceEdge | None, host_gb: float) -> list[_Budget]:
    """Memory of each device that may denoise."""
    if job.cluster is not None:
        devices = read_profile(job.cluster).devices
        classes = [(kind.profile(name), kind.count) for name, kind in devices.items()]
        return [
            _Budget(device=int(each.memory_gb * GB))
            for each, count in classes
            if Stage.DENOISE in each.stages
            for _ in range(count)
        ]
    if job.address is not None:
        expected = "a cluster profile beside it (--cluster), which tells the devices' memory; or dtype, or qint8"
        raise InputError([Problem(file=COMMAND_LINE, field="weights", value=str(job.weights), expected=expected)])
    probed = probe(edge)
    gpus = () if job.device is DeviceKind.CPU else probed.gpus
    if not gpus:
        return [_Budget(device=int(min(host_gb, job.memory_gb or host_gb) * GB))]
    host = _host_bytes_per_gpu(gpus, host_gb)
    return [_Budget(device=int(min(gpu.usable_gb, job.memory_gb or gpu.usable_gb) * GB), host=host) for gpu in gpus]


def _host_bytes_per_gpu(gpus: Sequence[Device], host_gb: float) -> int:
    """Bytes of this machine's memory that each GPU may have for streamed blocks; 0 where it is the GPUs' own."""
    return int(min(gpu.spare_host_gb(host_gb) for gpu in gpus) / len(gpus) * GB)


def _room_problems(job: JobSpec, needs: _Needs, probed: ProbeResult, host_gb: float) -> Iterator[Problem]:
    """GPUs of which none can denoise, told before anything loads, with the option that makes it fit."""
    gpus = () if job.device is DeviceKind.CPU or job.cluster is not None else probed.gpus
    sizes = [min(gpu.usable_gb, job.memory_gb or gpu.usable_gb) for gpu in gpus]
    if not sizes:
        return
    streams = job.weights is Weights.STREAMED
    streamed, host = needs.demand(WeightFormat.DTYPE, streams=True), _host_bytes_per_gpu(gpus, host_gb)
    if streams and streamed.pinned > host:
        value = (
            f"streamed, which needs {streamed.pinned / GB:.1f} GB of host memory for each GPU, of {host / GB:.1f} GB"
        )
        expected = "--weights auto or --qint8, or a machine with more memory of its own beside the GPUs'"
        yield Problem(file=COMMAND_LINE, field="weights", value=value, expected=expected)
        return
    needed = needs.to_denoise(job.weight_format, streams=streams) / GB
    if needed <= max(sizes):
        return
    largest = max(gpus, key=lambda gpu: gpu.usable_gb)
    narrow = needs.to_denoise(WeightFormat.QINT8) / GB
    fp8 = f" or, of model {FP8_MODEL}, --fp8" if needs.models == [FP8_MODEL] else ""
    fits = f"--qint8 or --weights auto{fp8}, with which it needs {narrow:.1f} GB and other pixels are rendered"
    expected = fits if narrow <= max(sizes) else "a larger GPU, or --device cpu"
    if not streams and streamed.pinned <= host and streamed.of(Stage.DENOISE) / GB <= max(sizes):
        exact = (
            f"--weights streamed, with {streamed.pinned / GB:.1f} GB of host memory for each GPU and the same pixels"
        )
        expected = f"{exact}; or {expected}"
    room = f"{largest.name} has {max(sizes):.1f} GB for it"
    form = Weights.STREAMED if streams else job.weight_format
    value = f"{form}, with which denoising{needs.largest(job.weight_format)} needs {needed:.1f} GB, and {room}"
    yield Problem(file=COMMAND_LINE, field="weights", value=value, expected=expected)


def _memory_problems(job: JobSpec, needs: _Needs) -> Iterator[Problem]:
    if job.memory_gb is None:
        return
    try:
        streams = job.weights is Weights.STREAMED
        check_budget(needs.demand(job.weight_format, streams=streams), int(job.memory_gb * GB))
    except MemoryTooSmall as error:
        value = " for".join([f"{job.memory_gb:g}", *filter(None, [needs.largest(job.weight_format)])])
        yield Problem(file=COMMAND_LINE, field="memory_gb", value=value, expected=str(error))


def _attention_problems(job: JobSpec, needs: _Needs, probed: ProbeResult) -> Iterator[Problem]:
    if job.attention is AttentionBackend.AUTO:
        return
    device = probed.devices[0]
    if job.device is DeviceKind.CPU:
        device = Device(name="cpu", vendor="cpu", architecture="", memory_gb=device.memory_gb)
    target = attention_target(device, probed.driver, getattr(torch, job.dtype))
    try:
        for model_name in needs.models:
            check_available(job.attention, target, model_shapes(needs.folder, model_name)[Site.VIDEO_SELF])
    except AttentionUnavailable as error:
        yield Problem(file=COMMAND_LINE, field="attention", value=str(job.attention), expected=str(error))
