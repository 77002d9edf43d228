"""The cluster profile of `ovi-ray doctor --profile`: the devices of the examined nodes at their measured speed."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from ovi import __version__
from ovi.attention import AttentionBackend
from ovi.config import Architecture
from ovi.pipeline import OviPipeline
from ovi.stages import STAGES, Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.memory import component_sizes, memory_demand
from ovi_ray.devices.node_report import MeasuredDevice, NodeReport, WeightsPlan
from ovi_ray.devices.probe import GB, Device
from ovi_ray.devices.stage_speed import Announce, StageTimer, clip_kind
from ovi_ray.inputs.cluster_profile import parse_profile
from ovi_ray.inputs.job_spec import Weights
from ovi_ray.scheduling.assumed_speeds import assumed_rates
from ovi_ray.scheduling.device_profile import BF16_SIZES, COMPONENTS, ComponentSizes, DeviceProfile, StageRates

_DTYPE = torch.bfloat16


def measure_device(
    device: Device, forms: Mapping[Weights, WeightsPlan], ckpt_dir: Path, model_name: str, announce: Announce
) -> MeasuredDevice:
    """Run the stages that fit on a device. Raises CheckpointError and errors of the device.

    The transformer has 8-bit weights where it does not fit on the device in its dtype.
    """
    fitting = {form: forms[Weights(form)].stages for form in (WeightFormat.DTYPE, WeightFormat.QINT8)}
    able = [form for form, stages in fitting.items() if Stage.DENOISE in stages]
    weights = next(iter(able or [form for form, stages in fitting.items() if stages]), WeightFormat.DTYPE)
    whole, loaded = (_sizes(ckpt_dir, each) for each in (WeightFormat.DTYPE, weights))
    expected = _expected_rates(device, whole)
    speed = StageTimer(
        pipeline=OviPipeline.from_pretrained(
            ckpt_dir,
            model_name,
            device=device.torch_device,
            dtype=_DTYPE,
            attention_backend=AttentionBackend.AUTO,
            weights=weights,
        ),
        stages=frozenset(fitting[weights]),
        sizes=loaded,
        expected=expected,
        announce=announce,
    ).measure()
    section = {
        "vendor": device.vendor,
        **({"architecture": device.architecture} if device.architecture else {}),
        "memory_gb": _rounded(device.usable_gb),
        **_model_section(ckpt_dir, model_name, weights, loaded),
        "tflops": {str(stage): _rounded(speed.tflops.get(stage, expected.of(stage))) for stage in STAGES},
        "load_gb_per_s": _rounded(speed.load_gb_per_s or DeviceProfile(name="").load_gb_per_s),
    }
    return MeasuredDevice(section=section, not_measured=dict(speed.not_measured))


def profile_text(reports: Sequence[NodeReport]) -> str:
    """A cluster profile in YAML, of nodes whose stages were measured."""
    content = {
        "name": reports[0].node if len(reports) == 1 else "measured",
        "description": f"measured with {reports[0].model}",
        "devices": _classes(reports),
    }
    parse_profile(content)  # what is written can be read
    notes = [
        f"Measured by ovi-ray {__version__} on {datetime.now(UTC):%Y-%m-%d}, torch {reports[0].torch_build}.",
        "tflops: achieved, in operations of the published model. Add what a device costs as price_per_hour.",
        *_assumptions(reports),
    ]
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {note}\n" for note in notes) + body


def _classes(reports: Sequence[NodeReport]) -> dict[str, dict[str, Any]]:
    """Device classes, by name, each with the speed of its first device and the memory of its smallest one."""
    classes: dict[str, dict[str, Any]] = {}
    for report in reports:
        for found in report.devices:
            name = _class_name(found.device)
            if found.measured is not None and name not in classes:
                classes[name] = {"count": 0, **found.measured.section}
            classes[name]["count"] += 1
            classes[name]["memory_gb"] = min(classes[name]["memory_gb"], _rounded(found.device.usable_gb))
    return classes


def _assumptions(reports: Sequence[NodeReport]) -> Iterator[str]:
    told = set()
    for report in reports:
        for found in report.devices:
            for stage, reason in ({} if found.measured is None else found.measured.not_measured).items():
                if (line := f"{_class_name(found.device)}: {stage} is assumed, not measured: {reason}") not in told:
                    told.add(line)
                    yield line


def _class_name(device: Device) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") or device.vendor


def _sizes(ckpt_dir: Path, weights: WeightFormat) -> ComponentSizes:
    sizes = component_sizes(ckpt_dir, _DTYPE, weights)
    return ComponentSizes(**{component.value: sizes[component] for component in COMPONENTS})


def _expected_rates(device: Device, sizes: ComponentSizes) -> StageRates:
    """The rates that a device is assumed to have for a model of these sizes, in operations of the published model."""
    published = assumed_rates(device.name, device.vendor, device.architecture)
    main = {stage: spec.main_component for stage, spec in STAGES.items()}
    return StageRates(**{str(stage): published.of(stage) * BF16_SIZES.of(c) / sizes.of(c) for stage, c in main.items()})


def _model_section(ckpt_dir: Path, model_name: str, weights: WeightFormat, sizes: ComponentSizes) -> dict[str, Any]:
    """The keys that say how much memory a model takes. Those of the published model have a short form."""
    arch = Architecture.read(ckpt_dir)
    if arch == Architecture():
        return {"weights": "int8"} if weights is WeightFormat.QINT8 else {}
    demand = memory_demand(ckpt_dir, model_name, _DTYPE, weights)
    kind = clip_kind(arch.spec(model_name), steps=1)
    needs = {
        spec.activations.key: (demand.activations[stage] / GB - spec.activations.base_gb) / spec.activations.units(kind)
        for stage, spec in STAGES.items()
        if stage in demand.activations
    }
    return {
        "sizes": {name: _rounded(size) for name, size in dataclasses.asdict(sizes).items()},
        "activations": {name: _rounded(max(0.0, size)) for name, size in needs.items()},
    }


def _rounded(value: float) -> float:
    """With four significant digits."""
    return float(f"{value:.4g}")
