"""Lists that are grids of cells, such as CSV and spreadsheets: a header, then records with a cell for each column."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ovi_ray.errors import Problem
from ovi_ray.inputs.columns import clean_names, in_words
from ovi_ray.inputs.lists.prompt_list import PromptList, check_names
from ovi_ray.printing import counted
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
    grid = _Grid(path=path, width=len(names))
    for row, (line, record) in enumerate(records, start=1):
        grid.add(row, line, record)
    notes += grid.end()
    columns = list(zip(*grid.cells, strict=True)) if grid.cells else [()] * len(names)
    used = {place: name for place, name in enumerate(names) if name or not are_blank(columns[place])}
    check_names(path, {place + 1: name for place, name in used.items()}, header_line)
    if unused := [place + 1 for place in range(len(names)) if place not in used]:
        some = "columns" if len(unused) > 1 else "column"
        notes.append(f"{some} {in_words(unused)}, without a name and without a value, ignored")
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns={name: list(columns[place]) for place, name in used.items()},
        rows=grid.rows,
        lines=grid.lines,
        problems=grid.problems,
        notes=notes,
    )


@dataclass(kw_only=True, slots=True)
class _Grid:
    """The records of a list, all of one width."""

    path: Location
    width: int
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    cells: list[Sequence[Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    """Places in `cells` of the records with blank cells beyond the last column."""

    def add(self, row: int, line: int, record: Sequence[Any] | Problem) -> None:
        """Add a record, or a problem where it has another width; blank cells are added or left out for it."""
        if isinstance(record, Problem):
            self.problems.append(replace(record, row=row))
            return
        if len(record) != self.width:
            rest = record[self.width :] if len(record) > self.width else record
            if not are_blank(rest):
                self.problems.append(_width_problem(self.path, row, line, len(record), self.width))
                return
            if len(record) > self.width:
                self.longer.append(len(self.cells))
            record = [*record[: self.width], *[""] * (self.width - len(record))]
        self.rows.append(row)
        self.lines.append(line)
        self.cells.append(record)

    def end(self) -> list[str]:
        """Leave out the blank records at the end. Returns notes on what is left out."""
        notes = []
        if blank := _blank_at_end(self.cells):
            del self.rows[-blank:], self.lines[-blank:], self.cells[-blank:]
            notes.append(f"{blank} blank row{'s are' if blank > 1 else ' is'} ignored at the end of the list")
        if any(place < len(self.cells) for place in self.longer):
            notes.append("blank cells beyond the last column are ignored")
        return notes


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
        value=counted(found, "field"),
        expected=f"{expected}, as in the header; {hint}",
    )
