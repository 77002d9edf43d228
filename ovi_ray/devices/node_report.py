"""The report of `ovi-ray doctor` on a node: values, their JSON form and a summary of each backend's trial."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ovi.attention import AttentionBackend, Site
from ovi.attention.autotune import Choice
from ovi.attention.benchmark import Trial
from ovi.convolution.choice import ConvolutionChoice
from ovi.kernels.choice import KernelChoice
from ovi.kernels.trial import KernelTrial
from ovi.memory.plan import MemoryDemand, MemoryPlan
from ovi.stages import Stage
from ovi_ray.devices.probe import GB, Device
from ovi_ray.inputs.job_spec import Weights
from ovi_ray.scheduling.assumed_speeds import assumed_rates
from ovi_ray.scheduling.device_profile import StageRates


@dataclass(kw_only=True, slots=True, frozen=True)
class ExaminedModel:
    """The model whose sizes the findings are for."""

    name: str
    height: int
    """Pixels of the clips, which are square."""
    width: int
    frames: int
    sizes_from: str
    """The file that gives the sizes of its components; "" for those of the published model."""

    def __str__(self) -> str:
        sizes = f"sizes of {self.sizes_from}" if self.sizes_from else "published sizes"
        return f"{self.name}, {self.frames} frames of {self.height}x{self.width}, {sizes}"


@dataclass(kw_only=True, slots=True, frozen=True)
class MeasuredDevice:
    """A device as a class of a cluster profile."""

    section: Mapping[str, Any]
    """The class in the form of the YAML file, without the number of its devices."""
    not_measured: Mapping[Stage, str]
    """Why the speed of some stages is assumed."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WeightsPlan:
    """The memory plan of a device for the model with the transformer's weights in one form."""

    demand: MemoryDemand
    plan: MemoryPlan | None
    """None where no stage fits."""
    refusal: str
    """Why no stage fits; empty if one does."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that fit."""
        return () if self.plan is None else tuple(stage for stage in Stage if stage in self.plan.stages)


@dataclass(kw_only=True, slots=True, frozen=True)
class DeviceReport:
    """Findings about one device."""

    device: Device
    labels: dict[str, str]
    """Labels for `ray start --labels`."""
    attention: dict[Site, Choice]
    """Trials and chosen backend of each site; empty if no backend works."""
    attention_error: str
    """Why no backend works; empty if one does."""
    convolutions: ConvolutionChoice
    """The convolution mode of the decoders, and the trials that chose it."""
    convolution_error: str
    """Why every way to run them is wrong; empty if one is right, or none could be tried."""
    kernels: KernelChoice
    """The trials of all fused kernels."""
    weights: Mapping[Weights, WeightsPlan]
    """The memory of each form of the weights."""
    clip_s: float | None
    """Expected seconds to denoise a clip; None if the device cannot."""
    advice: tuple[str, ...]
    """Recommendations for the user."""
    measured: MeasuredDevice | None = None
    """Its measured speed, where that was asked for; of equal devices of a node the first has it."""

    @property
    def memory(self) -> str:
        """Memory mode for weights in their dtype, such as "resident"; empty if no stage fits."""
        plan = self.weights[Weights.DTYPE].plan
        return "" if plan is None else str(plan)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that fit, for weights in their dtype."""
        return self.weights[Weights.DTYPE].stages

    @property
    def assumed_rates(self) -> StageRates:
        """Rates that a job without a cluster profile expects of the device until its tasks are measured."""
        return assumed_rates(self.device.name, self.device.vendor, self.device.architecture)


@dataclass(kw_only=True, slots=True, frozen=True)
class NodeReport:
    """Findings about one node and its devices."""

    node: str
    """Host name."""
    torch_build: str
    driver: str
    model: ExaminedModel
    devices: tuple[DeviceReport, ...]
    notes: tuple[str, ...] = ()
    """Notes of the probe: driver errors, and GPUs that torch cannot use."""

    def as_json(self) -> dict[str, object]:
        """The report as plain values for `json.dumps`."""
        return {
            "node": self.node,
            "torch": self.torch_build,
            "driver": self.driver,
            "model": asdict(self.model),
            "notes": list(self.notes),
            "devices": [_device_json(report) for report in self.devices],
        }


def backend_summary(backend: AttentionBackend, attention: Mapping[Site, Choice]) -> tuple[str, str]:
    """The trial of a backend at the video's self-attention, and the sites that it is chosen at, as short texts."""
    sites = [site for site, choice in attention.items() if choice.chosen is backend]
    chosen = "all" if len(sites) == len(attention) else ", ".join(sites)
    trials = attention[Site.VIDEO_SELF].trials
    return _trial_summary(next((trial for trial in trials if trial.backend is backend), None)), chosen


def convolution_summary(report: DeviceReport) -> str:
    """The convolution mode, and the reason for leaving torch's own, as a short text."""
    refused = [f"{trial.path}: {trial.reason}" for trial in report.convolutions.trials if trial.reason]
    return report.convolution_error or "; ".join([str(report.convolutions.path), *refused])


def kernel_summary(trial: KernelTrial) -> tuple[str, str]:
    """The trial of a fused kernel, and the jobs that use it, as short texts."""
    if trial.reason:
        return trial.reason, "none"
    milliseconds = f"{1000 * (trial.seconds or 0):.3g} ms, plain torch {1000 * (trial.eager_seconds or 0):.3g} ms"
    users = "all" if trial.kernel.rounds_as_eager else "those with --kernels fused, which changes pixels"
    return f"{milliseconds}, difference {trial.error or 0:.1e}", users


def weights_summary(found: WeightsPlan) -> tuple[str, str, str, str]:
    """Cells of a table: the memory on the device and on its host, the memory mode, and the stages that fit."""
    demand = found.demand
    components = f"{_gigabytes(sum(demand.components.values()))}, {_gigabytes(demand.of(Stage.DENOISE))} to denoise"
    host = _gigabytes(demand.pinned) if demand.pinned else "-"
    if found.plan is None:
        return components, host, "-", found.refusal
    stages = "all" if len(found.stages) == len(Stage) else ", ".join(found.stages)
    return components, host, found.plan.mode, stages


def _gigabytes(size: int) -> str:
    return f"{size / GB:.1f} GB"


def _trial_summary(trial: Trial | None) -> str:
    if trial is None:
        return "not tried: inexact, changes pixels (allow it with --allow-inexact)"
    if trial.seconds is None:
        return f"unusable: {trial.reason}"
    return f"{1000 * trial.seconds:.3g} ms, error {trial.error:.1e}"


def _device_json(report: DeviceReport) -> dict[str, object]:
    return {
        **asdict(report.device),
        "labels": report.labels,
        "attention": {site: _choice_json(choice) for site, choice in report.attention.items()},
        "attention_error": report.attention_error,
        "convolutions": {
            "chosen": None if report.convolution_error else report.convolutions.path,
            "error": report.convolution_error,
            "ways": {
                trial.path: {"seconds": trial.seconds, "error": trial.error, "reason": trial.reason}
                for trial in report.convolutions.trials
            },
        },
        "kernels": {
            trial.kernel: {
                "used": not trial.reason,
                "rounds_as_eager": trial.kernel.rounds_as_eager,
                "seconds": trial.seconds,
                "eager_seconds": trial.eager_seconds,
                "error": trial.error,
                "reason": trial.reason,
            }
            for trial in report.kernels.trials
        },
        "memory_mode": report.memory,
        "stages": list(report.stages),
        "weights": {weights: _weights_json(found) for weights, found in report.weights.items()},
        "denoise_clip_s": None if report.clip_s is None else round(report.clip_s, 1),
        "assumed_tflops": {stage: round(report.assumed_rates.of(stage), 2) for stage in Stage},
        "advice": list(report.advice),
    }


def _weights_json(found: WeightsPlan) -> dict[str, object]:
    demand = found.demand
    return {
        "components_gb": {component: round(size / GB, 2) for component, size in demand.components.items()},
        "denoise_gb": round(demand.of(Stage.DENOISE) / GB, 2),
        "host_gb": round(demand.pinned / GB, 2),
        "memory_mode": "" if found.plan is None else str(found.plan),
        "stages": list(found.stages),
        "reason": found.refusal,
    }


def _choice_json(choice: Choice) -> dict[str, object]:
    return {
        "shape": str(choice.shape),
        "chosen": choice.chosen,
        "backends": {
            trial.backend: {"seconds": trial.seconds, "error": trial.error, "reason": trial.reason}
            for trial in choice.trials
        },
    }
