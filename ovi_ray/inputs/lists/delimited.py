"""CSV and TSV."""

import csv
import itertools
import re
from collections.abc import Iterator

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import PROMPT_COLUMN, clean_name, is_known
from ovi_ray.inputs.lists.grid import Record, grid_list
from ovi_ray.inputs.lists.prompt_list import PromptList, file_problem
from ovi_ray.inputs.params import NUMBERS
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.storage.paths import Location

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""The separators of columns that are found by looking, by name."""
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*")
_EXCEL_HINT = re.compile(r'"?sep=(\\t|[^"\r\n])"?[,;\t|]*\s*', re.IGNORECASE)


def read_delimited(path: Location, usual: str, delimiter: str | None = None) -> PromptList:
    """Read a CSV or TSV. `delimiter` is the user's choice; without it, and without a line `sep=;` as Excel reads it, the
    separator is the one that makes most columns of the header known, preferably the `usual` one. Raises InputError.
    """
    lines = read_lines(path, newline="")
    before, first = _first_line(lines)
    notes = []
    if hint := _EXCEL_HINT.fullmatch(first):
        told = hint[1].replace(r"\t", "\t")
        notes.append(
            f"line {before + 1}, {show(first.strip())}, tells Excel the separator of the columns; it is no row"
        )
        more, first = _first_line(lines)
        before += 1 + more
        delimiter = delimiter or told
    elif delimiter is None:
        delimiter = _found_by_looking(first, usual)
        if delimiter != usual:
            notes.append(f"the columns are separated by {name_of(delimiter)}s; --delimiter names another separator")
    records = _records(path, itertools.chain([first], lines), delimiter or usual, start=before + 1)
    header_line, header = next(records, (1, None))
    if header is None:
        raise InputError([file_problem(path, "an empty file", f"a header line with a column {PROMPT_COLUMN}")])
    if isinstance(header, Problem):
        raise InputError([header])
    prompts = grid_list(path, (header_line, header), records)
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


def _records(path: Location, lines: Iterator[str], delimiter: str, *, start: int) -> Iterator[Record]:
    """Each record that is not a blank line. Broken quoting gives a Problem in place of the last record."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = start
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + start
    except csv.Error as error:
        most = f"; cells of at most {csv.field_size_limit():,} characters" if "field limit" in str(error) else ""
        expected = f'a closing quote for every opening one, and quotes inside a quoted cell doubled (""){most}'
        yield line, Problem(file=str(path), line=line, value=f"a row that cannot be read ({error})", expected=expected)
