"""Rows of a list as options name them: "37,40-60"."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show

ROWS_EXPECTED = "numbers of rows, from 1, and ranges of them, such as 37,40-60"
_MAX_RUNS_SHOWN = 8
_RANGE = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?")


@dataclass(kw_only=True, slots=True, frozen=True)
class RowRanges:
    """Some rows of a list."""

    ranges: tuple[tuple[int, int], ...]
    """First and last row of each, from 1."""

    @classmethod
    def parse(cls, text: str) -> "RowRanges":
        """Raises InputError for what names no rows."""
        ranges = []
        for piece in text.split(","):
            match = _RANGE.fullmatch(piece)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 1 <= first <= last:
                raise InputError([Problem(file=COMMAND_LINE, field="--rows", value=show(text), expected=ROWS_EXPECTED)])
            ranges.append((first, last))
        return cls(ranges=tuple(ranges))

    def among(self, rows: pa.ChunkedArray) -> pa.ChunkedArray:
        """A mask of the rows that lie in the ranges."""
        marks = pc.equal(rows, 0)
        for first, last in self.ranges:
            marks = pc.or_(marks, self._within(rows, first, last))
        return marks

    def check(self, rows: pa.ChunkedArray) -> None:
        """Raises InputError for each range that has none of these rows."""
        expected = f"rows of clips, which are {_in_words(rows)}"
        problems = [
            Problem(
                file=COMMAND_LINE,
                field="--rows",
                value=f"{first}" if first == last else f"{first}-{last}",
                expected=expected,
            )
            for first, last in self.ranges
            if not pc.any(self._within(rows, first, last), min_count=0).as_py()
        ]
        if problems:
            raise InputError(problems)

    @staticmethod
    def _within(rows: pa.ChunkedArray, first: int, last: int) -> pa.ChunkedArray:
        return pc.and_(pc.greater_equal(rows, first), pc.less_equal(rows, last))


def _in_words(rows: pa.ChunkedArray) -> str:
    """Rows as `--rows` takes them: "1, 4-6". Some may be missing between: those with problems, and those of other shards."""
    if not len(rows):
        return "none"
    numbers = np.unique(rows.to_numpy())
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    shown = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:_MAX_RUNS_SHOWN]]
    return ", ".join(shown) + (f", ... up to {numbers[-1]}" if len(runs) > _MAX_RUNS_SHOWN else "")
