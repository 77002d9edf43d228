"""Rows of a prompt list that cannot be rendered, set apart so that the others can."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.columns import META_PREFIX
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.storage.paths import resolve_path

ROW_COLUMN, LINE_COLUMN, REASON_COLUMN = (f"{META_PREFIX}{name}" for name in ("row", "line", "reason"))
T = TypeVar("T")


@dataclass(kw_only=True, slots=True, frozen=True)
class BadRow:
    """A row, and why it cannot be rendered."""

    row: int
    """From 1."""
    line: int | None
    cells: Mapping[str, Any]
    """As the list has them, but with the whole path of an image; empty for a row that could not be read."""
    problems: tuple[Problem, ...]

    @property
    def reason(self) -> str:
        """Every problem, in one line."""
        return "; ".join(problem.what for problem in self.problems)


def split_bad_rows(prompts: PromptList, problems: Iterable[Problem]) -> tuple[PromptList, list[BadRow]]:
    """The list without the rows that have problems, and these rows.

    Raises InputError with the problems where one is of the list as a whole, or no row is left.
    """
    problems = tuple(problems)
    of_row: defaultdict[int, list[Problem]] = defaultdict(list)
    for problem in problems:
        if problem.row is None:
            raise InputError(problems)
        of_row[problem.row].append(problem)
    keep = [index for index, row in enumerate(prompts.rows) if row not in of_row]
    if not keep:
        raise InputError(problems)
    place = {row: index for index, row in enumerate(prompts.rows)}
    bad = [
        BadRow(
            row=row,
            line=found[0].line,
            cells=_cells(prompts, place[row]) if row in place else {},
            problems=tuple(found),
        )
        for row, found in sorted(of_row.items())
    ]
    return prompts.taken(keep), bad


def of_good_rows(build: Callable[[PromptList], T], prompts: PromptList) -> tuple[T, list[BadRow]]:
    """The result of `build` for the rows without problems, and the other rows. Raises InputError for other problems."""
    bad_rows: list[BadRow] = []
    while True:  # some problems show only once those of the cells are out of the way
        try:
            return build(prompts), sorted(bad_rows, key=lambda bad: bad.row)
        except InputError as error:
            prompts, bad = split_bad_rows(prompts, error.problems)
            bad_rows += bad


def rejected_csv(bad: Sequence[BadRow]) -> bytes:
    """The rows as a prompt list in CSV, with the reason of each. Corrected, it can be rendered."""
    own = (ROW_COLUMN, LINE_COLUMN, REASON_COLUMN)
    names = list(dict.fromkeys(name for row in bad for name in row.cells if name not in own))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*own, *names])
    writer.writeheader()
    for row in bad:
        writer.writerow({**row.cells, ROW_COLUMN: row.row, LINE_COLUMN: row.line, REASON_COLUMN: row.reason})
    return text.getvalue().encode("utf-8", errors="replace")


def _cells(prompts: PromptList, index: int) -> dict[str, Any]:
    cells = {name: column[index] for name, column in prompts.columns.items()}
    image = cells.get("image_path")
    if isinstance(image, str) and image.strip():
        with suppress(ValueError):  # it names no path, which is why the row is refused
            cells["image_path"] = str(resolve_path(image.strip(), prompts.folder.absolute()))
    return cells
