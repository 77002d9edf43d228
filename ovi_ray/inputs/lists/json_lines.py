"""JSON Lines: a JSON object a line."""

import json
import math
from array import array
from typing import Any

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import clean_names, is_meta
from ovi_ray.inputs.lists.prompt_list import PromptList, check_names, file_problem
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.printing import shell_command
from ovi_ray.storage.paths import Location

_EXPECTED = 'one JSON object a line, such as {"text_prompt": "A dog barks"}'
_JSON_NAMES: dict[type, str] = {str: "string", list: "list", bool: "boolean", type(None): "null"}
_MAX_DIGITS = 30  # of an integer; a longer one is kept as text, for its field to refuse


def read_json_lines(path: Location) -> PromptList:
    """Read JSON Lines. A line that is not an object, or that holds what no cell can, becomes a problem.

    Raises InputError for a JSON array, and for names that cannot be used.
    """
    columns: dict[str, list[Any]] = {}
    rows, lines = array("q"), array("q")
    problems: list[Problem] = []
    numbered = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())
    for row, (number, line) in enumerate(numbered, start=1):
        if row == 1 and (found := _spread_out(line)):
            raise InputError([_spread_problem(path, number, *found)])
        try:
            cells = _json_object(line)
        except ValueError as error:
            problems.append(Problem(file=str(path), row=row, line=number, value=str(error), expected=_EXPECTED))
            continue
        for name, value, expected in _unusable_cells(cells):
            problems.append(Problem(file=str(path), row=row, line=number, field=name, value=value, expected=expected))
            cells[name] = None
        for name, cell in cells.items():
            column = columns.setdefault(name, [])
            column.extend([None] * (len(rows) - len(column)))
            column.append(cell)
        rows.append(row)
        lines.append(number)
    for column in columns.values():
        column.extend([None] * (len(rows) - len(column)))
    names, notes = clean_names(list(columns))
    check_names(path, dict(enumerate(names, start=1)))
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns=dict(zip(names, columns.values(), strict=True)),
        rows=rows,
        lines=lines,
        has_types=True,
        problems=problems,
        notes=notes,
    )


def _spread_out(line: str) -> tuple[str, str] | None:
    """The form of a file that is not JSON Lines, by its first line, with the filter of jq that converts it; None for a row."""
    text = line.strip()
    if text == "{":
        return "a JSON object over several lines", "."
    return ("a JSON array", ".[]") if text.startswith("[") and ("{" in text or not text.endswith("]")) else None


def _spread_problem(path: Location, line: int, found: str, jq_filter: str) -> Problem:
    expected = _EXPECTED
    if path.is_local:
        target = path.with_name(f"{path.stem}-lines{path.suffix}")
        expected += f"; this makes them: {shell_command('jq', '-c', jq_filter, path, '>', target)}"
    return file_problem(path, found, expected, line)


def _json_object(line: str) -> dict[str, Any]:
    try:
        cells = json.loads(line, object_pairs_hook=_unique_keys, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(cells, dict):
        raise ValueError(f"a JSON {_JSON_NAMES.get(type(cells), 'number')}")
    return cells


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {show(next(name for name in names if names.count(name) > 1))} twice")
    return cells


def _unusable_cells(cells: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and what was expected of the cells that no column can hold."""
    unusable = []
    for name, cell in cells.items():
        if isinstance(cell, float) and not math.isfinite(cell):
            unusable.append(
                (name, show(cell), "a number, or null where there is none: JSON has no NaN and no Infinity")
            )
        elif is_meta(name) and isinstance(cell, dict | list):
            unusable.append((name, show(cell), "text, a number, true, false or null, and nothing nested"))
    return unusable
