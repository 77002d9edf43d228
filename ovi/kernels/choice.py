"""The fused kernels for a device, chosen by trying, and remembered by device, driver and versions."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ovi.attention.target import AttentionTarget
from ovi.files import user_cache_folder
from ovi.kernels.trial import KernelShape, KernelTrial, measure_in_child
from ovi.kernels.types import EAGER_PLAN, FusedKernel, KernelMode, KernelPlan
from ovi.trials import TrialFile, build_of_torch

Measure = Callable[[Sequence[FusedKernel], str, torch.dtype, KernelShape], list[KernelTrial]]


@dataclass(kw_only=True, slots=True, frozen=True)
class KernelChoice:
    """The kernels that were chosen, and the trials that they were chosen from; a CPU has none."""

    plan: KernelPlan = EAGER_PLAN
    trials: tuple[KernelTrial, ...] = ()


def choose_kernels(
    mode: KernelMode,
    target: AttentionTarget,
    shape: KernelShape,
    *,
    file: Path | None = None,
    run: Measure = measure_in_child,
) -> KernelChoice:
    """Every kernel of a mode that computes on the device what plain torch computes, and is faster.

    A CPU computes in plain torch, and so does a GPU on which no kernel can be tried.
    """
    if target.vendor == "cpu":
        return KernelChoice()
    known = TrialFile(file or user_cache_folder() / "kernels.json")
    keys = {kernel: _key(kernel, target, shape) for kernel in _candidates(mode)}
    trials = {kernel: trial for kernel, key in keys.items() if (trial := _known(known.get(key), kernel)) is not None}
    untried = [kernel for kernel in keys if kernel not in trials]
    if untried:
        made = dict(zip(untried, run(untried, target.device, target.dtype, shape), strict=True))
        known.put({keys[kernel]: dataclasses.asdict(trial) for kernel, trial in made.items() if not trial.transient})
        trials |= made
    used = [kernel for kernel in keys if not trials[kernel].reason]
    return KernelChoice(plan=KernelPlan.of(used), trials=tuple(trials[kernel] for kernel in keys))


def _candidates(mode: KernelMode) -> tuple[FusedKernel, ...]:
    match mode:
        case KernelMode.EAGER:
            return ()
        case KernelMode.AUTO:
            return tuple(kernel for kernel in FusedKernel if kernel.rounds_as_eager)
        case KernelMode.FUSED:
            return tuple(FusedKernel)


def _key(kernel: FusedKernel, target: AttentionTarget, shape: KernelShape) -> str:
    where = (target.name, target.architecture, f"driver {target.driver or '-'}", build_of_torch(), _triton_version())
    return " | ".join((*where, kernel, str(target.dtype), str(shape)))


def _known(fields: Any, kernel: FusedKernel) -> KernelTrial | None:
    """A remembered trial; None if there is none, or one of another version."""
    try:
        return KernelTrial(**{**fields, "kernel": kernel})
    except TypeError:
        return None


def _triton_version() -> str:
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no triton"
