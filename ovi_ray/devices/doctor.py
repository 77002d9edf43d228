"""Examination of a node for `ovi-ray doctor`: attention trials, memory plan and expected speed of each device."""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ovi.attention import AttentionShape, Site
from ovi.attention.autotune import Choice, Measure, choose
from ovi.attention.target import AttentionTarget
from ovi.config import Architecture
from ovi.convolution.choice import ConvolutionChoice, choose_path
from ovi.convolution.choice import Measure as ConvolutionMeasure
from ovi.convolution.probe import decoder_shapes, measure_in_child
from ovi.errors import AttentionUnavailable, ConvolutionsWrong, MemoryTooSmall
from ovi.geometry import num_frames, snap_size
from ovi.kernels import KernelMode
from ovi.kernels.choice import KernelChoice, choose_kernels
from ovi.kernels.choice import Measure as KernelMeasure
from ovi.kernels.trial import KernelShape
from ovi.kernels.trial import measure_in_child as measure_kernel
from ovi.memory.plan import plan_memory
from ovi.precision import full_float32
from ovi.stages import Stage
from ovi.timing import seconds_per_call
from ovi.weights.formats import WeightFormat
from ovi.weights.layout import ARCHITECTURE
from ovi_ray.devices.advice import DenoiseTime, advice
from ovi_ray.devices.attention import attention_target, model_shapes
from ovi_ray.devices.measured_profile import measure_device
from ovi_ray.devices.memory import memory_demand
from ovi_ray.devices.node_report import DeviceReport, ExaminedModel, NodeReport, WeightsPlan
from ovi_ray.devices.probe import (
    GB,
    Device,
    ProbeResult,
    faults_of_versions,
    host_memory_gb,
    node_labels,
    probe,
    use_gpu_environment,
)
from ovi_ray.devices.stage_speed import Announce
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import Weights
from ovi_ray.storage.paths import Location, PathOrUri, to_location
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.weights.checks import checkpoint_problems

CPU_TOKENS = 1024  # limit of queries and keys in trials on a CPU, where the real shapes would take minutes
STEPS = 50  # denoising steps of the expected time
_GPU_ROWS = 15_004  # tokens of a clip of 720x720 and 5 s
_CPU_ROWS = 512
_WIDTHS_IN_HIDDEN = 4


def measure_matmul_rate(target: AttentionTarget, dim: int) -> float:
    """Achieved FLOP/s of the first product of a feed-forward, on as many rows as a clip has tokens; fewer on a CPU."""
    rows = _CPU_ROWS if target.vendor == "cpu" else _GPU_ROWS
    x = torch.randn(rows, dim, dtype=target.dtype, device=target.device)
    weight = torch.randn(_WIDTHS_IN_HIDDEN * dim, dim, dtype=target.dtype, device=target.device)
    with torch.inference_mode(), full_float32():
        F.linear(x, weight)
        seconds = seconds_per_call(lambda: F.linear(x, weight), torch.device(target.device))
    return 2 * x.numel() * weight.shape[0] / seconds


@dataclass(kw_only=True, slots=True, frozen=True)
class Benchmarks:
    """The functions that measure a device; tests inject fakes."""

    attention: Measure | None = None
    """Runs attention trials; None for the default of `ovi.attention.autotune.choose`."""
    convolution: ConvolutionMeasure = measure_in_child
    """Tries a way to run convolutions."""
    kernels: KernelMeasure = measure_kernel
    """Tries a fused kernel."""
    matmul_rate: Callable[[AttentionTarget, int], float] = measure_matmul_rate
    """(target, width) -> achieved FLOP/s of matrix products."""


def examine_node(
    ckpt_dir: PathOrUri,
    model_name: str,
    *,
    allow_inexact: bool = False,
    measures_stages: bool = False,
    announce: Announce = lambda text: None,
    probed: ProbeResult | None = None,
    benchmarks: Benchmarks | None = None,
    host_gb: float | None = None,
) -> NodeReport:
    """Probe and measure every device of this node, whose host has `host_gb` GB, by default what this machine has.

    With `measures_stages` the model's stages are run too, for `measured_profile`; `announce` is told of each. Raises
    CheckpointMismatch for an invalid `architecture.json`, and InputError where the weights that are run cannot be.
    """
    if probed is None:
        probed = probe()
        use_gpu_environment(probed)
    source = to_location(ckpt_dir)
    if measures_stages and (problems := checkpoint_problems(source, model_name)):
        raise InputError(problems)
    examiner = _Examiner(
        ckpt_dir=local_checkpoint(source, [model_name] if measures_stages else []),
        model_name=model_name,
        driver=probed.driver,
        allow_inexact=allow_inexact,
        benchmarks=benchmarks or Benchmarks(),
        host_gb=(host_gb or host_memory_gb()) / len(probed.devices),
    )
    devices = [examiner.examine(device) for device in probed.devices]
    if measures_stages:
        devices = list(examiner.with_speeds(devices, announce))
    return NodeReport(
        node=socket.gethostname(),
        torch_build=probed.torch_build,
        driver=probed.driver,
        model=_examined_model(source, examiner.ckpt_dir, model_name),
        devices=tuple(devices),
        notes=(*probed.notes, *faults_of_versions(probed)),
    )


@dataclass(kw_only=True, slots=True, frozen=True)
class _Examiner:
    """Examines the devices of a node for one model."""

    ckpt_dir: Path
    model_name: str
    driver: str
    allow_inexact: bool
    benchmarks: Benchmarks
    host_gb: float
    """Host memory for each device."""

    def examine(self, device: Device) -> DeviceReport:
        shapes = model_shapes(self.ckpt_dir, self.model_name)
        weights = weights_plans(device, self.ckpt_dir, self.model_name, self.host_gb)
        plan = weights[Weights.DTYPE].plan
        target = attention_target(device, self.driver, model_bytes=0 if plan is None else plan.weight_bytes)
        attention, error = self._attention(target, _measurable(shapes, device))
        convolutions, convolution_error = self._convolutions(target)
        can_denoise = bool(attention) and Stage.DENOISE in weights[Weights.DTYPE].stages
        time = self._denoise_time(attention, shapes, target) if can_denoise else None
        return DeviceReport(
            device=device,
            labels=node_labels(device),
            attention=attention,
            attention_error=error,
            convolutions=convolutions,
            convolution_error=convolution_error,
            kernels=self._kernels(target),
            weights=weights,
            clip_s=None if time is None else time.seconds,
            advice=advice(device, attention, weights, time),
        )

    def with_speeds(self, reports: Iterable[DeviceReport], announce: Announce) -> Iterator[DeviceReport]:
        """The reports, with the measured speed of the first device of each name."""
        names: set[str] = set()
        for report in reports:
            device, measured = report.device, None
            if device.name not in names:
                names.add(device.name)
                measured = measure_device(device, report.weights, self.ckpt_dir, self.model_name, announce)
            yield replace(report, measured=measured)

    def _attention(
        self, target: AttentionTarget, shapes: Mapping[Site, AttentionShape]
    ) -> tuple[dict[Site, Choice], str]:
        """The choice of each site, or no choices and the reason why no backend works."""
        try:
            return choose(target, shapes, allow_inexact=self.allow_inexact, run=self.benchmarks.attention), ""
        except AttentionUnavailable as error:
            return {}, str(error)

    def _convolutions(self, target: AttentionTarget) -> tuple[ConvolutionChoice, str]:
        """The convolution mode that works, and ""; or the fault of every mode."""
        arch = Architecture.read(self.ckpt_dir)
        shapes = decoder_shapes(arch, arch.spec(self.model_name), target.dtype)
        try:
            return choose_path(target, shapes, run=self.benchmarks.convolution), ""
        except ConvolutionsWrong as error:
            return ConvolutionChoice(), str(error)

    def _kernels(self, target: AttentionTarget) -> KernelChoice:
        """The trials of every fused kernel, those among them that a job takes only where it is allowed to change pixels."""
        shape = KernelShape.of(Architecture.read(self.ckpt_dir))
        return choose_kernels(KernelMode.FUSED, target, shape, run=self.benchmarks.kernels)

    def _denoise_time(
        self, attention: Mapping[Site, Choice], shapes: Mapping[Site, AttentionShape], target: AttentionTarget
    ) -> DenoiseTime:
        """Expected time to denoise a clip, from measured attention and matrix products alone.

        Per block: the six attention calls, and on the video tokens 8 products of dim x dim and 2 of dim x ffn_dim.
        """
        config = Architecture.read(self.ckpt_dir).video
        site_s = {site: _site_seconds(choice, shapes[site]) for site, choice in attention.items()}
        tokens = shapes[Site.VIDEO_SELF].query_length
        flops = 2 * tokens * (8 * config.dim**2 + 2 * config.dim * config.ffn_dim)
        block_s = sum(site_s.values()) + flops / self.benchmarks.matmul_rate(target, config.dim)
        blocks = 2 * STEPS * config.num_layers  # two passes per step
        return DenoiseTime(
            seconds=blocks * block_s,
            self_attention_s=blocks * site_s[Site.VIDEO_SELF],
            self_attention_flops=blocks * 4.0 * tokens**2 * config.dim,
        )


def _examined_model(source: Location, folder: Path, model_name: str) -> ExaminedModel:
    spec = Architecture.read(folder).spec(model_name)
    height, width = snap_size(1, 1, spec.video_area)
    return ExaminedModel(
        name=spec.name,
        height=height,
        width=width,
        frames=num_frames(spec.video_latent_length),
        sizes_from=str(source / ARCHITECTURE) if (folder / ARCHITECTURE).exists() else "",
    )


def weights_plans(device: Device, ckpt_dir: str | Path, model_name: str, host_gb: float) -> dict[Weights, WeightsPlan]:
    """The plan for each form of the weights that a device can hold, beside `host_gb` GB of host memory."""
    host = int(device.spare_host_gb(host_gb) * GB)
    forms = (Weights.DTYPE, *([Weights.STREAMED] if host else []), Weights.QINT8)
    plans = {}
    for weights in forms:
        form = WeightFormat.QINT8 if weights is Weights.QINT8 else WeightFormat.DTYPE
        demand = memory_demand(ckpt_dir, model_name, torch.bfloat16, form, streams=weights is Weights.STREAMED)
        plan, refusal = None, ""
        try:
            plan = plan_memory({form: demand}, budget=int(device.usable_gb * GB), host=host)
        except MemoryTooSmall as error:
            refusal = str(error)
        plans[weights] = WeightsPlan(demand=demand, plan=plan, refusal=refusal)
    return plans


def _site_seconds(choice: Choice, shape: AttentionShape) -> float:
    """Seconds of the chosen backend, scaled from the measured shape to the real one by the size of the scores."""
    seconds = min(trial.seconds or 0.0 for trial in choice.trials if trial.backend is choice.chosen)
    return seconds * shape.score_bytes / choice.shape.score_bytes


def _measurable(shapes: Mapping[Site, AttentionShape], device: Device) -> dict[Site, AttentionShape]:
    """The shapes to measure: on a CPU with at most CPU_TOKENS queries and keys."""
    if device.vendor != "cpu":
        return dict(shapes)
    return {
        site: replace(
            shape,
            query_length=min(shape.query_length, CPU_TOKENS),
            key_length=min(shape.key_length, CPU_TOKENS),
        )
        for site, shape in shapes.items()
    }
