"""Sweeps: lists of values for some parameters, of which every combination is rendered for every row of a prompt list."""

import functools
import itertools
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from ovi.config import MODEL_SPECS, param_specs
from ovi_ray.errors import InputError, show
from ovi_ray.inputs.columns import is_blank
from ovi_ray.inputs.params import DEFAULT_PARAMS, NEGATIVE_PROMPTS, PARAM_FIELDS, parse_param
from ovi_ray.inputs.prompt_lists import PromptList

MAX_COMBINATIONS = 1_000_000  # clips that a job may have
SWEPT_FIELDS = (*PARAM_FIELDS, "model_name")
"""The parameters that can be swept: those that a row of a list can set."""
_RANGE = re.compile(r"\s*([0-9]{1,19})\s*-\s*([0-9]{1,19})\s*")


class Sweep(BaseModel):
    """The values of each swept parameter. `DeclaredSweep` has the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """The swept parameters, in the order of `SWEPT_FIELDS`."""
        return {name: values for name in type(self).model_fields if (values := getattr(self, name)) is not None}

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(values) for values in self.values.values())

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every combination; the last parameter changes fastest."""
        return [dict(zip(self.values, values, strict=True)) for values in itertools.product(*self.values.values())]

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size > MAX_COMBINATIONS:
            raise ValueError(f"at most {MAX_COMBINATIONS:,} combinations; these are {self.size:,}")
        return self

    @model_serializer(mode="wrap")
    def _without_blanks(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: values for name, values in serialize(self).items() if values is not None}


def parse_values(name: str, raw: object) -> tuple[Any, ...] | None:
    """The values of a swept parameter: a list, or text such as "3,4,5", and "0-19" for integers.

    The message of the ValueError names the value that is refused and what is accepted.
    """
    if raw is None:
        return None
    values: list[Any] = []
    for given in raw if isinstance(raw, list | tuple) else [raw]:
        for piece in _pieces(name, given):
            values.append(_parsed(name, piece))
            if len(values) > MAX_COMBINATIONS:
                raise ValueError(f"at most {MAX_COMBINATIONS:,} values")
    if not values:
        raise ValueError("at least one value")
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"each value once: {show(value)} is given again")
        seen.add(value)
    return tuple(values)


def _pieces(name: str, given: object) -> Sequence[object] | range:
    """The values that one text stands for; a text parameter's own commas do not divide it."""
    if not isinstance(given, str) or name in NEGATIVE_PROMPTS:
        return [given]
    pieces: list[object] = []
    for piece in given.split(","):
        match = _RANGE.fullmatch(piece) if isinstance(getattr(DEFAULT_PARAMS, name, None), int) else None
        if match is None:
            pieces.append(piece)
            continue
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(f"a range from the smaller to the larger number; {show(piece.strip())} is not")
        if last - first >= MAX_COMBINATIONS:
            raise ValueError(f"at most {MAX_COMBINATIONS:,} values; {show(piece.strip())} has more")
        pieces.extend(range(first, last + 1))
    return pieces


def _parsed(name: str, value: object) -> Any:
    try:
        return parse_param(name, value)
    except ValueError as error:
        raise ValueError(f"for each value {error}; {show(value)} is not") from None


def _field(name: str) -> Any:
    expected = f"one of {', '.join(MODEL_SPECS)}" if name == "model_name" else param_specs()[name].expected
    validator = BeforeValidator(functools.partial(parse_values, name), json_schema_input_type=list[Any] | str | float)
    return Annotated[tuple[Any, ...] | None, validator], Field(None, description=f"a list; each value {expected}")


if TYPE_CHECKING:
    DeclaredSweep = Sweep
else:
    DeclaredSweep = create_model("Sweep", __base__=Sweep, **{name: _field(name) for name in SWEPT_FIELDS})
    """A field for every parameter that a row of a list can set."""


def parse_sweep(raw: object) -> object:
    """The texts of `--sweep NAME=VALUES`, repeated, as a mapping; other values as they are."""
    if not isinstance(raw, list | tuple):
        return raw
    swept: dict[str, list[str]] = {}
    for text in raw:
        name, equals, values = str(text).partition("=")
        if not equals or not name.strip():
            raise ValueError(f"NAME=VALUES, such as seed=0-19; {show(text)} is not")
        swept.setdefault(name.strip().replace("-", "_"), []).append(values)
    return {name: values[0] if len(values) == 1 else values for name, values in swept.items()}


def swept(prompts: PromptList, sweep: Sweep) -> PromptList:
    """The list with each row once for every combination, one after the other.

    Raises InputError for every cell that sets a swept parameter.
    """
    problems = [
        prompts.problem(index, name, show(cell), "an empty cell: the job sweeps this parameter")
        for name in sweep.values
        for index, cell in enumerate(prompts.columns.get(name, ()))
        if not is_blank(cell)
    ]
    if problems:
        raise InputError([*prompts.problems, *problems])
    points = sweep.points
    times = len(points)
    columns: Mapping[str, list[Any]] = {
        name: [cell for cell in cells for _ in range(times)] for name, cells in prompts.columns.items()
    }
    values = {name: [point[name] for point in points] * len(prompts) for name in sweep.values}
    return PromptList(
        file=prompts.file,
        folder=prompts.folder,
        columns={**columns, **values},
        rows=_repeated(prompts.rows, times),
        lines=None if prompts.lines is None else _repeated(prompts.lines, times),
        may_grow=prompts.may_grow,
        has_types=prompts.has_types,
        problems=prompts.problems,
        notes=prompts.notes,
        parts=prompts.parts,
    )


def _repeated(numbers: Sequence[int], times: int) -> Sequence[int]:
    return array("q", [number for number in numbers for _ in range(times)])
