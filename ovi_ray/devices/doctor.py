"""What each device of a node or a cluster can do: its attention backends, its memory, its speed, and what would help."""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ovi.attention import AttentionBackend, AttentionShape, Site
from ovi.attention.autotune import Choice, Measure, choose
from ovi.attention.benchmark import Trial
from ovi.attention.target import AOTRITON_EXPERIMENTAL, AttentionTarget
from ovi.config import Architecture
from ovi.errors import AttentionUnavailable, MemoryTooSmall
from ovi.memory.plan import MemoryPlan, plan_memory
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.attention import attention_target, model_shapes
from ovi_ray.devices.memory import memory_demand
from ovi_ray.devices.probe import GB, Device, Findings, host_memory_gb, node_labels, probe
from ovi_ray.storage.paths import PathOrUri, to_location
from ovi_ray.weights.cache import local_checkpoint

CPU_TOKENS = 1024  # queries and keys that a CPU is measured on: the real ones would take minutes
STEPS = 50


@dataclass(kw_only=True, slots=True, frozen=True)
class DeviceReport:
    """One device."""

    device: Device
    labels: dict[str, str]
    """For `ray start --labels`."""
    attention: dict[Site, Choice]
    """What was measured at each site and what is chosen; empty where nothing works."""
    attention_error: str
    memory: str
    """Its mode, such as "resident" or "qint8 staged"; empty where nothing fits."""
    stages: tuple[Stage, ...]
    """The stages that fit, in the dtype of the weights."""
    clip_s: float | None
    """Expected seconds to denoise a clip; None where it cannot."""
    advice: tuple[str, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class NodeReport:
    """One node."""

    node: str
    torch_build: str
    driver: str
    devices: tuple[DeviceReport, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, object]:
        """Plain values, ready for `json.dumps`."""
        return {
            "node": self.node,
            "torch": self.torch_build,
            "driver": self.driver,
            "notes": list(self.notes),
            "devices": [_device_json(report) for report in self.devices],
        }


@dataclass(kw_only=True, slots=True, frozen=True)
class Instruments:
    """What measures on a device; tests replace it."""

    attention: Measure | None = None
    """None for the real thing."""
    product_rate: Callable[[AttentionTarget, int], float]
    """Operations a second of matrix products of a width."""


def examine_node(
    ckpt_dir: PathOrUri,
    model_name: str,
    *,
    allow_inexact: bool = False,
    findings: Findings | None = None,
    instruments: Instruments | None = None,
) -> NodeReport:
    """Probe and measure every device of this node. Raises CheckpointMismatch for an unusable `architecture.json`."""
    findings = findings or probe()
    folder = local_checkpoint(to_location(ckpt_dir))
    instruments = instruments or Instruments(product_rate=measure_product_rate)
    reports = tuple(
        _examine(device, folder, model_name, findings.driver, allow_inexact, instruments) for device in findings.devices
    )
    return NodeReport(
        node=socket.gethostname(),
        torch_build=findings.torch_build,
        driver=findings.driver,
        devices=reports,
        notes=findings.notes,
    )


def _examine(
    device: Device,
    ckpt_dir: str | Path,
    model_name: str,
    driver: str,
    allow_inexact: bool,
    instruments: Instruments,
) -> DeviceReport:
    target = attention_target(device, driver)
    shapes = model_shapes(ckpt_dir, model_name)
    try:
        attention, error = _choices(target, _measured(shapes, device), allow_inexact, instruments), ""
    except AttentionUnavailable as unavailable:
        attention, error = {}, str(unavailable)
    plans = memory_plans(device, ckpt_dir, model_name)
    plan = plans.get(WeightFormat.DTYPE)
    denoises = plan is not None and Stage.DENOISE in plan.stages
    return DeviceReport(
        device=device,
        labels=node_labels(device),
        attention=attention,
        attention_error=error,
        memory="" if plan is None else str(plan),
        stages=() if plan is None else tuple(stage for stage in Stage if stage in plan.stages),
        clip_s=_expected_seconds(attention, shapes, ckpt_dir, target, instruments) if attention and denoises else None,
        advice=tuple(advice(device, attention, plans)),
    )


def _choices(
    target: AttentionTarget, shapes: Mapping[Site, AttentionShape], allow_inexact: bool, instruments: Instruments
) -> dict[Site, Choice]:
    return choose(target, shapes, allow_inexact=allow_inexact, run=instruments.attention)


def memory_plans(device: Device, ckpt_dir: str | Path, model_name: str) -> dict[WeightFormat, MemoryPlan]:
    """How a device would hold the model in each format of its weights; those in which nothing fits are left out."""
    plans = {}
    host = 0 if device.vendor == "cpu" else int(host_memory_gb() * GB)
    for weights in (WeightFormat.DTYPE, WeightFormat.QINT8):
        demand = memory_demand(ckpt_dir, model_name, torch.bfloat16, weights)
        try:
            plans[weights] = plan_memory({weights: demand}, int(device.usable_gb * GB), host)
        except MemoryTooSmall:
            continue
    return plans


def _expected_seconds(
    attention: Mapping[Site, Choice],
    shapes: Mapping[Site, AttentionShape],
    ckpt_dir: str | Path,
    target: AttentionTarget,
    instruments: Instruments,
) -> float:
    """Seconds to denoise a clip: attention and matrix products as measured, everything else left out."""
    config = Architecture.read(ckpt_dir).video
    per_block = sum(_site_seconds(choice, shapes[site]) for site, choice in attention.items())
    tokens = shapes[Site.VIDEO_SELF].query_length
    products = 2 * tokens * (8 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    return 2 * STEPS * config.num_layers * (per_block + products / instruments.product_rate(target, config.dim))


def _site_seconds(choice: Choice, shape: AttentionShape) -> float:
    """Measured seconds, scaled from the shape that was measured to the real one."""
    seconds = min(trial.seconds or 0.0 for trial in choice.trials if trial.backend is choice.chosen)
    return seconds * shape.score_bytes / choice.shape.score_bytes


def measure_product_rate(target: AttentionTarget, dim: int) -> float:
    """Operations a second of a matrix product with a matrix [dim, dim]."""
    x = torch.randn(512, dim, dtype=target.dtype, device=target.device)
    weight = torch.randn(dim, dim, dtype=target.dtype, device=target.device)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (x @ weight).sum().item()  # waits for the result
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * dim * dim / best


def _measured(shapes: Mapping[Site, AttentionShape], device: Device) -> dict[Site, AttentionShape]:
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


def advice(device: Device, attention: Mapping[Site, Choice], plans: Mapping[WeightFormat, MemoryPlan]) -> list[str]:
    """What would help this device, in plain words."""
    said = []
    trials = {trial.backend: trial for choice in attention.values() for trial in choice.trials}
    aotriton = trials.get(AttentionBackend.SDPA_AOTRITON)
    if device.vendor == "amd" and aotriton is not None and AOTRITON_EXPERIMENTAL in aotriton.reason:
        said.append(
            f"set {AOTRITON_EXPERIMENTAL}=1 before torch starts: attention then runs on AOTriton, measured about 1,920"
            f" times faster than plain math on gfx1151. ovi-ray's own workers on nodes with the label vendor=amd set it"
        )
    flash3 = trials.get(AttentionBackend.FLASH_ATTN_3)
    if device.architecture == "sm90" and flash3 is not None and "cannot be imported" in flash3.reason:
        said.append("install FlashAttention-3 (flash_attn_interface): it is the fastest exact attention on sm90")
    exact, narrow = plans.get(WeightFormat.DTYPE), plans.get(WeightFormat.QINT8)
    if narrow is not None and Stage.DENOISE in narrow.stages and (exact is None or Stage.DENOISE not in exact.stages):
        said.append("it is too small to denoise in bf16; with --qint8 it can (the pixels change a little)")
    if exact is None and narrow is None:
        said.append("nothing of the model fits on it")
    if device.vendor == "cpu":
        said.append("a CPU encodes texts and decodes; denoising on it is for small models and tests")
    return said


def _device_json(report: DeviceReport) -> dict[str, object]:
    device = asdict(report.device)
    attention = {
        site: {
            "shape": str(choice.shape),
            "chosen": choice.chosen,
            "backends": {trial.backend: _trial_json(trial) for trial in choice.trials},
        }
        for site, choice in report.attention.items()
    }
    return {
        **device,
        "labels": report.labels,
        "attention": attention,
        "attention_error": report.attention_error,
        "memory_mode": report.memory,
        "stages": list(report.stages),
        "denoise_clip_s": None if report.clip_s is None else round(report.clip_s, 1),
        "advice": list(report.advice),
    }


def _trial_json(trial: Trial) -> dict[str, object]:
    return {"seconds": trial.seconds, "error": trial.error, "reason": trial.reason}


def state_of(backend: AttentionBackend, attention: Mapping[Site, Choice]) -> tuple[str, str]:
    """How a backend fared at the video's self-attention, and the sites it is chosen at, in a few words."""
    sites = [site for site, choice in attention.items() if choice.chosen is backend]
    chosen = "all" if len(sites) == len(attention) else ", ".join(sites)
    choice = attention[Site.VIDEO_SELF]
    trial = next((trial for trial in choice.trials if trial.backend is backend), None)
    if trial is None:
        return "not tried: it changes pixels (--allow-inexact)", chosen
    if trial.seconds is None:
        return f"out: {trial.reason}", chosen
    return f"{1000 * trial.seconds:.3g} ms, error {trial.error:.1e}", chosen
