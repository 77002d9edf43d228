"""The fused kernels for a device, chosen by trying, and remembered by device, driver and versions."""

import dataclasses
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ovi.attention.target import AttentionTarget
from ovi.files import user_cache_folder
from ovi.kernels.trial import KernelShape, KernelTrial, measure_in_child
from ovi.kernels.types import EAGER_PLAN, FusedKernel, KernelMode, KernelPlan
from ovi.trials import TrialFile, build_of_torch

Measure = Callable[[FusedKernel, str, torch.dtype, KernelShape], KernelTrial]


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
    trials = tuple(_trial(kernel, target, shape, known, run) for kernel in _candidates(mode))
    return KernelChoice(plan=KernelPlan.of(trial.kernel for trial in trials if not trial.reason), trials=trials)


def _candidates(mode: KernelMode) -> tuple[FusedKernel, ...]:
    match mode:
        case KernelMode.EAGER:
            return ()
        case KernelMode.AUTO:
            return tuple(kernel for kernel in FusedKernel if kernel.rounds_as_eager)
        case KernelMode.FUSED:
            return tuple(FusedKernel)


def _trial(
    kernel: FusedKernel, target: AttentionTarget, shape: KernelShape, known: TrialFile, run: Measure
) -> KernelTrial:
    """The remembered trial, or a new one, which is remembered if its result will hold."""
    where = (target.name, target.architecture, f"driver {target.driver or '-'}", build_of_torch(), _triton_version())
    key = " | ".join((*where, kernel, str(target.dtype), str(shape)))
    try:
        return KernelTrial(**{**known.get(key), "kernel": kernel})
    except TypeError:  # not tried yet, or by another version
        trial = run(kernel, target.device, target.dtype, shape)
        if not trial.transient:
            known.put({key: dataclasses.asdict(trial)})
        return trial


def _triton_version() -> str:
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no triton"
