"""Prompt lists (CSV, TSV, JSON Lines, plain text, Arrow and Parquet) read into columns.

Rows are counted from 1, without the header and without blank lines. Problems of single rows are collected, to be reported
together with those of the cells; a file that cannot be read as a list at all raises InputError.
"""

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.text_files import read_lines, readable
from ovi_ray.storage.paths import Location

PROMPT_COLUMN = "text_prompt"


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
    """Line where each row starts, from 1; None for files without lines."""
    has_types: bool = False
    """Whether the format distinguishes empty text from an absent cell."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of the rows that could not be read, and are not in the columns."""

    def __len__(self) -> int:
        return len(self.rows)

    def problem(self, index: int, column: str, value: str, expected: str) -> Problem:
        """A problem with the cell at `index` of `column`."""
        line = None if self.lines is None else self.lines[index]
        return Problem(file=self.file, row=self.rows[index], line=line, field=column, value=value, expected=expected)


def read_prompt_list(path: Location) -> PromptList:
    """Read a prompt list by its suffix. Raises InputError for a file that cannot be read as a list at all."""
    if path.suffix.lower() not in READERS:
        expected = f"a prompt list that ends in {', '.join(READERS)}"
        raise InputError([Problem(file=str(path), value=f"a file of type {path.suffix!r}", expected=expected)])
    prompts = READERS[path.suffix.lower()](path)
    if not len(prompts) and not prompts.problems:
        raise InputError([Problem(file=str(path), value="no rows", expected="at least one prompt")])
    return prompts


def _read_csv(path: Location) -> PromptList:
    return _read_delimited(path, ",")


def _read_tsv(path: Location) -> PromptList:
    return _read_delimited(path, "\t")


def _read_delimited(path: Location, delimiter: str) -> PromptList:
    records = _records(path, delimiter)
    header_line, header = next(records, (1, None))
    if header is None:
        raise InputError([_file_problem(path, "an empty file", f"a header line with a column {PROMPT_COLUMN}")])
    if isinstance(header, Problem):
        raise InputError([header])
    names = [name.strip() for name in header]
    _check_header(path, names, header_line)

    cells: list[list[Any]] = [[] for _ in names]
    rows, lines = array("q"), array("q")
    problems: list[Problem] = []
    for row, (line, record) in enumerate(records, start=1):
        if isinstance(record, Problem):
            problems.append(record)
        elif len(record) != len(names):
            problems.append(_field_count_problem(path, row, line, len(record), len(names)))
        else:
            rows.append(row)
            lines.append(line)
            for column, cell in zip(cells, record, strict=True):
                column.append(cell)
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns=dict(zip(names, cells, strict=True)),
        rows=rows,
        lines=lines,
        problems=problems,
    )


def _records(path: Location, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """(first line, fields) of each record that is not blank. Broken quoting gives a Problem in place of the last record."""
    reader = csv.reader(read_lines(path, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        expected = 'a closing quote for every opening one, and quotes inside a quoted cell doubled ("")'
        yield line, Problem(file=str(path), line=line, value=f"a row that cannot be read ({error})", expected=expected)


def _check_header(path: Location, names: list[str], line: int | None = None) -> None:
    problems = []
    for position, name in enumerate(names, start=1):
        if not name:
            expected = "a name for every column (pandas writes an unnamed index unless index=False is passed)"
            problems.append(_file_problem(path, f"column {position} has no name", expected, line))
        elif name in names[: position - 1]:
            problems.append(_file_problem(path, f"two columns are named {show(name)}", "each name once", line))
    if len(names) == 1 and PROMPT_COLUMN in names[0] and names[0] != PROMPT_COLUMN:
        expected = "commas between the columns of a .csv, or tabs and the suffix .tsv"
        problems.append(_file_problem(path, f"the header {show(names[0])}", expected, line))
    if problems:
        raise InputError(problems)


def _field_count_problem(path: Location, row: int, line: int, found: int, expected: int) -> Problem:
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


def _read_text(path: Location) -> PromptList:
    rows = [(number, line.rstrip("\r\n")) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns={PROMPT_COLUMN: [line for _, line in rows]},
        rows=range(1, len(rows) + 1),
        lines=array("q", [number for number, _ in rows]),
    )


def _read_json_lines(path: Location) -> PromptList:
    columns: dict[str, list[Any]] = {}
    rows, lines = array("q"), array("q")
    problems: list[Problem] = []
    numbered = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())
    for row, (number, line) in enumerate(numbered, start=1):
        try:
            cells = _json_object(line)
        except ValueError as error:
            expected = 'one JSON object a line, such as {"text_prompt": "A dog barks"}'
            problems.append(Problem(file=str(path), row=row, line=number, value=str(error), expected=expected))
            continue
        for name, cell in cells.items():
            column = columns.setdefault(name, [])
            column.extend([None] * (len(rows) - len(column)))
            column.append(cell)
        rows.append(row)
        lines.append(number)
    for column in columns.values():
        column.extend([None] * (len(rows) - len(column)))
    return PromptList(
        file=str(path), folder=path.parent, columns=columns, rows=rows, lines=lines, has_types=True, problems=problems
    )


def _json_object(line: str) -> dict[str, Any]:
    try:
        cells = json.loads(line, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(cells, dict):
        raise ValueError(f"a JSON {type(cells).__name__}")
    return cells


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {show(next(name for name in names if names.count(name) > 1))} twice")
    return cells


def read_table(path: Location) -> Any:
    """Read an Arrow or Parquet file as a `pyarrow.Table`. Raises InputError."""
    is_parquet = path.suffix.lower() == ".parquet"
    expected = "a Parquet file" if is_parquet else "an Arrow IPC file or stream (Feather version 2)"
    with readable(path, expected) as local:
        try:
            return pa.parquet.read_table(local) if is_parquet else _open_arrow(local)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError([_file_problem(path, f"unreadable ({reason})", expected)]) from None


def _open_arrow(path: Path) -> Any:
    """The table, memory-mapped: it stays readable after the file is removed."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _read_columns(path: Location) -> PromptList:
    table = read_table(path)
    _check_header(path, table.column_names)
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns={name: table.column(name).to_pylist() for name in table.column_names},
        rows=range(1, table.num_rows + 1),
        has_types=True,
    )


def _file_problem(path: Location, found: str, expected: str, line: int | None = None) -> Problem:
    return Problem(file=str(path), line=line, value=found, expected=expected)


READERS: dict[str, Callable[[Location], PromptList]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".txt": _read_text,
    ".arrow": _read_columns,
    ".feather": _read_columns,
    ".ipc": _read_columns,
    ".parquet": _read_columns,
}
"""The reader of each file suffix."""
