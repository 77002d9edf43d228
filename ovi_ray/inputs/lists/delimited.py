"""CSV and TSV."""

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import PROMPT_COLUMN, clean_name, is_known
from ovi_ray.inputs.lists.grid import Record, grid_list
from ovi_ray.inputs.lists.prompt_list import PromptList, file_problem
from ovi_ray.inputs.notes import rows_have
from ovi_ray.inputs.params import NUMBERS
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.storage.paths import Location

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""The separators of columns that are found by looking, by name."""
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*")
_SPACED_QUOTE = re.compile(r'[ \t\u00a0]+"')
_EXCEL_HINT = re.compile(r'"?sep=(\\t|[^"\r\n])"?[,;\t|]*\s*', re.IGNORECASE)


def read_delimited(path: Location, usual: str, delimiter: str | None = None) -> PromptList:
    """Read a CSV or TSV. `delimiter` is the user's choice; without it, and without a line `sep=;` as Excel reads it, the
    separator is the one that makes most columns of the header known, preferably the `usual` one. Raises InputError.
    """
    lines = read_lines(path, newline="")
    before, first = _first_line(lines)
    notes = []
    if hint := _EXCEL_HINT.fullmatch(first):
        told, line = hint[1].replace(r"\t", "\t"), first.strip(" \r\n")
        notes.append(f"line {before + 1}, {show(line)}, tells Excel the separator of the columns; it is no row")
        more, first = _first_line(lines)
        before += 1 + more
        delimiter = delimiter or told
    elif delimiter is None:
        delimiter = _found_by_looking(first, usual)
        if delimiter != usual:
            notes.append(f"the columns are separated by {name_of(delimiter)}s; --delimiter names another separator")
    records = _Records(path, itertools.chain([first], lines), delimiter or usual, start=before + 1)
    header_line, header = next(records, (1, None))
    if header is None:
        expected = f"a header line with a column {PROMPT_COLUMN}"
        raise InputError(records.unclosed or [file_problem(path, "an empty file", expected)])
    if isinstance(header, Problem):
        raise InputError([header])
    records.width = len(header)
    prompts = grid_list(path, (header_line, header), records)
    prompts.problems += records.unclosed
    notes += _spaced_notes(prompts, records)
    if (delimiter or usual) == ";":
        notes += _read_decimal_commas(prompts)
    prompts.notes[:0] = notes
    return prompts


def _read_decimal_commas(prompts: PromptList) -> list[str]:
    """Replace the decimal commas of numbers by points: where semicolons separate columns, the comma is free for them."""
    found = []
    for name in NUMBERS:
        cells = prompts.columns.get(name, [])
        for index, cell in enumerate(cells):
            if _DECIMAL_COMMA.fullmatch(cell):
                cells[index] = cell.replace(",", ".")
                found.append((prompts.rows[index], name, cell.strip()))
    if not found:
        return []
    row, name, cell = min(found)
    return [f"commas in numbers are read as decimal points, such as {name} {cell} in row {row}"]


def name_of(delimiter: str) -> str:
    """A separator in words, such as "semicolon"."""
    return next((name for name, character in DELIMITERS.items() if character == delimiter), show(delimiter))


def _first_line(lines: Iterator[str]) -> tuple[int, str]:
    """The first line that is not blank, and the number of blank ones before it."""
    for before, line in enumerate(lines):
        if line.strip():
            return before, line
    return 0, ""


def _found_by_looking(header: str, usual: str) -> str:
    def known(delimiter: str) -> int:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return sum(is_known(clean_name(name)) for name in names)

    return max((usual, *DELIMITERS.values()), key=known)  # the first of those that are equally good


def _spaced_notes(prompts: PromptList, records: "_Records") -> list[str]:
    line_of_row = list(zip(prompts.rows, prompts.lines or (), strict=True))
    read_as = {
        "spaces before a cell in quotes: the spaces and the quotes are not part of its text": records.spaced,
        "spaces before a quote that does not enclose its cell: the quote is part of the text": records.kept,
    }
    named = {what: [row for row, line in line_of_row if line in lines] for what, lines in read_as.items()}
    return [f"{rows_have(rows)} {what}" for what, rows in named.items() if rows]


class _Records(Iterator[Record]):
    """The records of a file that are not blank lines; the problem in place of one whose quotes are broken."""

    def __init__(self, path: Location, lines: Iterator[str], delimiter: str, *, start: int) -> None:
        self.width: int | None = None
        """Number of columns, once the header is read."""
        self.unclosed: list[Problem] = []
        """Quotes that go on over lines and are broken: which of these lines are rows is not known."""
        self.spaced: set[int] = set()
        """Lines of the records with spaces before a quoted cell."""
        self.kept: set[int] = set()
        """The same where the quotes are not those of the cell."""
        self._path = path
        self._lines = _Rereadable(lines, start)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self._lenient = csv.reader(self._lines, delimiter=delimiter, strict=True, skipinitialspace=True)

    def __next__(self) -> Record:
        while True:
            line = self._lines.mark()
            try:
                record = next(self._reader)
            except csv.Error as error:
                return line, self._broken(line, error)
            if any(map(_SPACED_QUOTE.match, record)):
                record = self._without_spaces(line, record)
            if record:
                return line, record

    def _broken(self, line: int, error: csv.Error) -> Problem | None:
        """The problem with the record that begins at `line`; reading goes on in the line after it."""
        most = f"; cells of at most {csv.field_size_limit():,} characters" if "field limit" in str(error) else ""
        expected = (
            'a closing quote for every opening one, right before a separator, and quotes in a quoted cell doubled ("")'
        )
        found = f"a row that cannot be read ({error})"
        problem = Problem(file=str(self._path), line=line, value=found, expected=f"{expected}{most}")
        if self._lines.reread(after=1) or self.width is None:
            self.unclosed.append(problem)
            return None
        return problem

    def _without_spaces(self, line: int, record: list[str]) -> list[str]:
        """The record as it is where spaces before quotes do not count, if it can be read so."""
        taken = self._lines.reread()
        try:
            lenient = next(self._lenient)
        except csv.Error:
            lenient = []
        if lenient and len(lenient) == (self.width or len(lenient)):
            self.spaced.add(line)
            return lenient
        self.kept.add(line)
        self._lines.reread()
        for _ in range(taken):
            next(self._lines)
        return record


class _Rereadable(Iterator[str]):
    """Lines of which those after a mark can be read again."""

    def __init__(self, lines: Iterator[str], start: int) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._number = start

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        return line

    def mark(self) -> int:
        """Set the mark here. Returns the number of the line that comes next."""
        self._number += len(self._taken)
        self._taken.clear()
        return self._number

    def reread(self, after: int = 0) -> int:
        """Go back to the mark, or to so many lines behind it. Returns how many lines will be read again."""
        again = self._taken[after:]
        self._again.extendleft(reversed(again))
        del self._taken[after:]
        return len(again)
