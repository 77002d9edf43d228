"""Sampling parameters against what the model can do with them: refused where they do nothing, noted where they are unusual."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ovi.config import Architecture, param_specs
from ovi_ray.errors import Problem, show
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.prompt_lists import PromptList

SKIPPED_BLOCK = "slg_layer"
_THE_JOB = "the job's settings"


def block_problems(
    prompts: PromptList, columns: Mapping[str, Sequence[Any]], job: BatchSpec, arch: Architecture
) -> list[Problem]:
    """A problem for each cell, and one for the job's own value, that names a block which the transformer does not have."""
    expected = arch.skippable_blocks
    problems = [
        prompts.problem(index, SKIPPED_BLOCK, show(value), expected)
        for index, value in enumerate(columns[SKIPPED_BLOCK])
        if isinstance(value, int) and value != job.slg_layer and not arch.can_skip(value)
    ]
    if not arch.can_skip(job.slg_layer):
        problems.insert(0, Problem(file=_THE_JOB, field=SKIPPED_BLOCK, value=show(job.slg_layer), expected=expected))
    return problems


def unusual_notes(prompts: PromptList, columns: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """A note for each parameter with values outside of the range that the published program offers."""
    for name, spec in param_specs().items():
        if spec.usual is None:
            continue
        least, most = spec.usual
        unusual = [index for index, value in enumerate(columns[name]) if not least <= value <= most]
        if unusual:
            first = unusual[0]
            others = len({prompts.rows[index] for index in unusual}) - 1
            rows = prompts.place(first) + (f" and {others} more row{'s'[: others != 1]}" if others else "")
            yield (
                f"{rows}: {name} {columns[name][first]:g} is out of the usual range, {least:g} to {most:g}: picture and"
                " sound degrade there, and numbers may overflow"
            )
