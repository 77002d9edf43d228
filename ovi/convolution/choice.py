"""The way to run convolutions on a device, chosen by trying, and remembered by device, driver and versions."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovi.attention.target import AttentionTarget
from ovi.convolution.paths import FIND_MODE, ConvolutionPath
from ovi.convolution.probe import ConvolutionShape, ConvolutionTrial, measure_in_child
from ovi.errors import ConvolutionsWrong
from ovi.files import user_cache_folder
from ovi.trials import TrialFile, build_of_torch

Measure = Callable[[ConvolutionPath, str, Sequence[ConvolutionShape]], ConvolutionTrial]


@dataclass(kw_only=True, slots=True, frozen=True)
class ConvolutionChoice:
    """The way that was chosen, and the trials that it was chosen from; a CPU has none."""

    path: ConvolutionPath = ConvolutionPath.DEFAULT
    trials: tuple[ConvolutionTrial, ...] = ()


def choose_path(
    target: AttentionTarget,
    shapes: Sequence[ConvolutionShape],
    *,
    file: Path | None = None,
    run: Measure = measure_in_child,
) -> ConvolutionChoice:
    """The way to run convolutions of these shapes on a device.

    On AMD GPUs the fastest one, as MIOpen's first choice may be slow; elsewhere the first that is right, beginning with
    torch's own. Where none can be tried, as in a child that finds the GPU taken, torch's own is taken unseen. Raises
    ConvolutionsWrong where every way that runs is wrong.
    """
    if target.vendor == "cpu":
        return ConvolutionChoice()
    known = TrialFile(file or user_cache_folder() / "convolutions.json")
    trials: list[ConvolutionTrial] = []
    for trial in _trials(target, shapes, known, run):
        trials.append(trial)
        if trial.seconds is not None and target.vendor != "amd":
            break
    usable = [(trial.seconds, trial.path) for trial in trials if trial.seconds is not None]
    if usable:
        return ConvolutionChoice(path=min(usable)[1], trials=tuple(trials))
    if any(trial.error is not None for trial in trials):
        reasons = "; ".join(f"{trial.path}: {trial.reason}" for trial in trials)
        raise ConvolutionsWrong(
            f"no way to run convolutions is right on {target.name}, so nothing is decoded: {reasons}"
        )
    return ConvolutionChoice(trials=tuple(trials))


def _trials(
    target: AttentionTarget, shapes: Sequence[ConvolutionShape], known: TrialFile, run: Measure
) -> Iterator[ConvolutionTrial]:
    for path in ConvolutionPath:
        if path is ConvolutionPath.FAST_FIND and (target.vendor != "amd" or FIND_MODE in os.environ):
            continue  # the user's own choice applies to every way
        key = " | ".join((target.name, target.architecture, target.driver, build_of_torch(), path, str(list(shapes))))
        try:
            yield ConvolutionTrial(**{**known.get(key), "path": path})
        except TypeError:  # not tried yet, or by another version
            trial = run(path, target.device, shapes)
            if not trial.transient:
                known.put({key: dataclasses.asdict(trial)})
            yield trial
