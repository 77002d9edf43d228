"""A prompt list in columns, whatever file it was read from."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import place_in_list
from ovi_ray.printing import is_utf8
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True)
class PromptList:
    """A prompt list in columns. Cells are text, or typed values where the file format has types; None where absent."""

    file: str
    """The path, as messages show it."""
    folder: Location
    """The folder that relative image paths start from."""
    columns: dict[str, list[Any]]
    """The cells of each column; all columns have the same length."""
    rows: Sequence[int]
    """Number of each row, from 1."""
    lines: Sequence[int] | None = None
    """Line of the file, or row of the sheet, where each row starts, from 1; None for files without lines."""
    may_grow: bool = True
    """Whether other rows may be added to it; False for the one prompt of a job without a list."""
    has_types: bool = False
    """Whether the format distinguishes empty text from an absent cell."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of the rows that could not be read, and are not in the columns."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user on the interpretation of the file."""
    parts: Sequence[tuple[int, str]] = ()
    """First row and path of each file, for a list of several files."""

    def __len__(self) -> int:
        return len(self.rows)

    def taken(self, indices: Sequence[int]) -> "PromptList":
        """Some rows, with their numbers; those that could not be read are gone."""
        return replace(
            self,
            columns={name: [cells[index] for index in indices] for name, cells in self.columns.items()},
            rows=[self.rows[index] for index in indices],
            lines=None if self.lines is None else [self.lines[index] for index in indices],
            problems=[],
        )

    def problem(self, index: int, column: str, value: str, expected: str) -> Problem:
        """A problem with the cell at `index` of `column`."""
        line = None if self.lines is None else self.lines[index]
        row = self.rows[index]
        return Problem(file=self._file_of(row), row=row, line=line, field=column, value=value, expected=expected)

    def place(self, index: int) -> str:
        """The row at `index` in words, such as "row 3"."""
        return place_in_list(self.rows[index], None if self.lines is None else self.lines[index])

    def _file_of(self, row: int) -> str:
        if not self.parts:
            return self.file
        return self.parts[bisect_right(self.parts, row, key=lambda part: part[0]) - 1][1]


def file_problem(path: Location, found: str, expected: str, line: int | None = None) -> Problem:
    """A problem with a file, or with a line of it."""
    return Problem(file=str(path), line=line, value=found, expected=expected)


def check_names(path: Location, names: Mapping[int, str], line: int | None = None) -> None:
    """Raises InputError where a column has no name, or the name of another. `names` are by position, from 1."""
    problems = []
    seen: set[str] = set()
    for position, name in names.items():
        if not name:
            pandas = " (pandas writes an unnamed index unless index=False is passed)" if position == 1 else ""
            expected = f"a name for every column that has values{pandas}"
            problems.append(file_problem(path, f"column {position} has no name", expected, line))
        elif not is_utf8(name) or "\0" in name:
            problems.append(file_problem(path, f"the column name {name!a}", "a name in UTF-8", line))
        elif name in seen:
            named = show(name) if name.isprintable() else ascii(name)
            problems.append(file_problem(path, f"two columns are named {named}", "each name once", line))
        seen.add(name)
    if problems:
        raise InputError(problems)
