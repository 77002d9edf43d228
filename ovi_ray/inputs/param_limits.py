"""Sampling parameters against what the model can do with them: notes on values that do nothing, or rarely anything good."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ovi.config import Architecture, param_specs
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.printing import counted

Columns = Mapping[str, Sequence[Any]]


def limit_notes(prompts: PromptList, columns: Columns, arch: Architecture) -> Iterator[str]:
    """A note for each parameter that names a block which the transformer does not have, or is out of its usual range."""
    if rows := _rows_where(prompts, columns, "slg_layer", lambda value: not arch.can_skip(value)):
        yield f"{rows} skips nothing; expected {arch.skippable_blocks}"
    for name, spec in param_specs().items():
        if spec.usual is not None and (rows := _rows_where(prompts, columns, name, _is_out_of(*spec.usual))):
            least, most = spec.usual
            yield (
                f"{rows} is unusual; expected {least:g} to {most:g}: beyond, picture and sound degrade, and numbers may"
                " overflow"
            )


def _is_out_of(least: float, most: float) -> Callable[[float], bool]:
    return lambda value: not least <= value <= most


def _rows_where(prompts: PromptList, columns: Columns, name: str, applies: Callable[[Any], bool]) -> str:
    """The first row to whose value something applies, with the value, and how many more there are; empty for none."""
    found = [index for index, value in enumerate(columns[name]) if applies(value)]
    if not found:
        return ""
    others = len({prompts.rows[index] for index in found}) - 1
    more = f" (and in {counted(others, 'more row')})" if others else ""
    return f"{prompts.place(found[0])}: {name} {columns[name][found[0]]:g}{more}"
