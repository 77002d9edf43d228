"""Versions and weights that a node must share with the driver of a job, checked by each worker before it opens its model."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

import ovi_ray
from ovi.config import Architecture
from ovi.weights.formats import FP8_FILE, WeightFormat, in_format
from ovi.weights.layout import ARCHITECTURE, model_files
from ovi_ray.devices.probe import probe
from ovi_ray.errors import NodeUnfit
from ovi_ray.weights.digests import sampled_digest


@dataclass(kw_only=True, slots=True, frozen=True)
class NodeRequirements:
    """Versions and weights of the driver. Builds of torch for CUDA, ROCm and CPUs are one version."""

    ovi_ray: str
    torch: str
    python: str
    """Such as 3.11: values that are pickled by one minor version may not be read by another."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """File of the checkpoint folder -> its sampled digest, for the files of every model that the driver has."""


def requirements_here(ckpt_dir: Path, weights: WeightFormat) -> NodeRequirements:
    """The versions of this process, and the weights in a checkpoint folder that was checked. Raises OSError."""
    fp8 = [FP8_FILE] if weights is WeightFormat.FP8 else []
    models = Architecture.read(ckpt_dir).models.values()
    files = dict.fromkeys([ARCHITECTURE, *fp8, *(file for spec in models for file in model_files(spec))])
    digests = {file: sampled_digest(ckpt_dir / file) for file in files if (ckpt_dir / file).is_file()}
    return NodeRequirements(**_versions(), weights=digests)


def check_versions(required: NodeRequirements) -> None:
    """Compare the versions of this process. Raises NodeUnfit with every difference."""
    here = _versions()
    differences = [
        f"{name} {found}, where the driver has {getattr(required, name)}"
        for name, found in here.items()
        if found != getattr(required, name)
    ]
    if differences:
        raise NodeUnfit("; ".join(text.replace("ovi_ray", "ovi-ray") for text in differences))


def check_device(device: str) -> None:
    """Compute something on a device. Raises NodeUnfit where that fails."""
    try:
        if float(torch.ones(2, device=device).sum()) == 2.0:
            return
        found = "it computes wrong numbers"
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is not built for it
        found = " ".join(str(error).split()) or type(error).__name__
    probed = probe()
    notes = "".join(f"; {note}" for note in probed.notes)
    driver = f", driver {probed.driver}" if probed.driver else ""
    raise NodeUnfit(f"its GPU cannot be used by torch {probed.torch_build}{driver}: {found}{notes}")


def check_weights(required: NodeRequirements, ckpt_dir: Path, model_name: str, weights: WeightFormat) -> None:
    """Compare the weights of a model with those of the driver. Raises NodeUnfit with every file that differs."""
    if not ckpt_dir.is_dir():
        raise NodeUnfit(f"there is no folder {ckpt_dir} on it")
    spec = in_format(Architecture.read(ckpt_dir).spec(model_name), weights)
    differing = list(_differing(required, ckpt_dir, [ARCHITECTURE, *model_files(spec)]))
    if differing:
        raise NodeUnfit("; ".join(differing))


def _differing(required: NodeRequirements, ckpt_dir: Path, files: list[str]) -> Iterator[str]:
    for file, expected in ((file, required.weights.get(file)) for file in files):
        try:
            if expected is not None and sampled_digest(ckpt_dir / file) != expected:
                yield f"{ckpt_dir / file} is not the file that the driver has under this path"
        except OSError as error:
            yield f"{ckpt_dir / file} cannot be read ({error.strerror or error})"


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"ovi_ray": ovi_ray.__version__, "torch": torch.__version__.partition("+")[0], "python": python}
