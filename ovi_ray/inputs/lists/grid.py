"""Lists that are grids of cells, such as CSV and spreadsheets: a header, then records with a cell for each column."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ovi_ray.errors import Problem
from ovi_ray.inputs.columns import clean_names, in_words
from ovi_ray.inputs.lists.prompt_list import PromptList, check_names
from ovi_ray.storage.paths import Location

Record = tuple[int, Sequence[Any] | Problem]
"""The line of a record, and its cells; or the problem that kept it from being read."""


def grid_list(path: Location, header: tuple[int, Sequence[str]], records: Iterable[Record]) -> PromptList:
    """The prompt list of a grid. Raises InputError for column names that cannot be used.

    Columns without a name and a value, and blank rows at the end, are ignored with a note. A record of another length
    than the header, unless the rest is blank, becomes a problem.
    """
    header_line, given = header
    names, notes = clean_names(given)
    width = len(names)
    rows, lines, problems = array("q"), array("q"), []
    cells: list[Sequence[Any]] = []
    longer: list[int] = []  # places of records with blank cells beyond the last column
    for row, (line, record) in enumerate(records, start=1):
        if isinstance(record, Problem):
            problems.append(replace(record, row=row))
            continue
        if len(record) != width:
            if not are_blank(record[width:]) or (len(record) < width and not are_blank(record)):
                problems.append(_width_problem(path, row, line, len(record), width))
                continue
            if len(record) > width:
                longer.append(len(cells))
            record = [*record[:width], *[""] * (width - len(record))]
        rows.append(row)
        lines.append(line)
        cells.append(record)
    blank = _blank_at_end(cells)
    if blank:
        del rows[-blank:], lines[-blank:], cells[-blank:]
        notes.append(f"{blank} blank row{'s are' if blank > 1 else ' is'} ignored at the end of the list")
    if any(place < len(cells) for place in longer):
        notes.append("blank cells beyond the last column are ignored")
    columns = list(zip(*cells, strict=True)) if cells else [()] * width
    unused = [place for place, name in enumerate(names) if not name and are_blank(columns[place])]
    if unused:
        places = in_words(place + 1 for place in unused)
        notes.append(f"column{'s' if len(unused) > 1 else ''} {places}, without a name and without a value, ignored")
    used = [place for place in range(width) if place not in set(unused)]
    check_names(path, {place + 1: names[place] for place in used}, header_line)
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns={names[place]: list(columns[place]) for place in used},
        rows=rows,
        lines=lines,
        problems=problems,
        notes=notes,
    )


def are_blank(cells: Iterable[Any]) -> bool:
    """Whether no cell holds anything but spaces."""
    return not any(cell is not None and (not isinstance(cell, str) or cell.strip()) for cell in cells)


def _blank_at_end(cells: Sequence[Sequence[Any]]) -> int:
    return next((count for count, record in enumerate(reversed(cells)) if not are_blank(record)), len(cells))


def _width_problem(path: Location, row: int, line: int, found: int, expected: int) -> Problem:
    hint = (
        "a cell that holds the separator needs quotes"
        if found > expected
        else "an empty cell still needs its separator"
    )
    return Problem(
        file=str(path),
        row=row,
        line=line,
        value=f"{found} field{'s' if found != 1 else ''}",
        expected=f"{expected}, as in the header; {hint}",
    )
