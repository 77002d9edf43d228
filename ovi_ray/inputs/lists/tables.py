"""Arrow and Parquet: files of typed columns, and folders of Parquet files."""

import itertools
import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet
import pyarrow.types as types

from ovi_ray.errors import InputError, Problem, show, show_path
from ovi_ray.inputs.columns import PROMPT_COLUMN, clean_names, in_words, is_known, is_meta
from ovi_ray.inputs.lists.prompt_list import PromptList, check_names, file_problem
from ovi_ray.inputs.params import NEGATIVE_PROMPTS
from ovi_ray.inputs.text_files import readable, readable_problem
from ovi_ray.printing import counted, is_utf8
from ovi_ray.storage.paths import Location

PARQUET = ".parquet"
NO_PARTS = f"a folder without a file that ends in {PARQUET}"
_INDEX_COLUMN = "__index_level_"  # pandas writes an index that is not a mere count as columns of such names
_SIZE_COLUMN = "video_frame_height_width"
_MAX_PARTS_TOLD = 5
_FRACTION = re.compile(r"\.\d+")
_ZONE = re.compile(r"([+-]\d\d)(\d\d)$")
_LIST_CHECKS = (
    types.is_list,
    types.is_large_list,
    types.is_fixed_size_list,
    types.is_list_view,
    types.is_large_list_view,
)
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

_TEXT_COLUMNS = (PROMPT_COLUMN, "image_path", *NEGATIVE_PROMPTS)
"""Columns whose cells are never meant as a date, though its text would pass for a prompt or a path."""

_Refused = tuple[int, str, str]
"""A cell that is refused: its index, what is in it, and what was expected."""


def read_table(path: Location) -> Any:
    """Read an Arrow or Parquet file as a `pyarrow.Table`. Raises InputError."""
    is_parquet = path.suffix.lower() == PARQUET
    expected = "a Parquet file" if is_parquet else "an Arrow IPC file or stream (Feather version 2)"
    with readable(path, expected) as local:
        try:
            table = _open_parquet(local) if is_parquet else _open_arrow(local)
            table.validate()  # offsets that point outside of the file would end the program
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError([file_problem(path, f"unreadable ({reason})", expected)]) from None
    return table


def read_columns(path: Location, first_row: int = 1) -> PromptList:
    """Read an Arrow or Parquet file, whose rows are numbered from `first_row`.

    Raises InputError for one that cannot be read, and for names that cannot be used.
    """
    table = read_table(path)
    names, notes = clean_names(table.column_names)
    check_names(path, dict(enumerate(names, start=1)))
    prompts = PromptList(
        file=str(path),
        folder=path.parent,
        columns={},
        rows=range(first_row, first_row + table.num_rows),
        has_types=True,
        notes=notes,
    )
    for name, column in zip(names, table.columns, strict=True):
        if name.startswith(_INDEX_COLUMN):
            notes.append(f"the column {name}, an index that pandas wrote, is ignored")
        else:
            _add_column(prompts, name, column)
    return prompts


def read_folder(folder: Location) -> PromptList:
    """Read the Parquet files directly in a folder, in the order of their names, as one list. Raises InputError."""
    files = names_of_parts(folder)
    if not files:
        raise InputError([file_problem(folder, NO_PARTS, "a folder with a list in Parquet files")])
    lists: list[PromptList] = []
    unreadable = [
        file_problem(folder, f"a file named {show_path(name)}", "names in UTF-8") for name in files if not is_utf8(name)
    ]
    unreadable += _parts_that_are_no_files(folder)
    for name in filter(is_utf8, files):
        try:
            lists.append(read_columns(folder / name, first_row=1 + sum(map(len, lists))))
        except InputError as error:
            unreadable += error.problems
    if unreadable:
        raise InputError(unreadable)
    joined = _joined(folder, lists)
    if deeper := folders_with_parts(folder):
        joined.notes.append(f"Parquet files in folders inside of the folder are not read: {in_words(deeper)}")
    return joined


def names_of_parts(folder: Location) -> list[str]:
    """Names of the Parquet files directly in a folder, in order; those that Spark and others hide are left out."""
    return sorted(entry.name for entry in folder.files() if _is_part(entry.name))


def folders_with_parts(folder: Location) -> list[str]:
    """The folders in a folder on a disk that have Parquet files directly in them, as text for messages, the first few."""
    if folder.local_path is None:
        return []
    inside = sorted(
        path for path in folder.local_path.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))
    )
    found = (show_path(path.name) for path in inside if any(_is_part(file.name) for file in path.iterdir()))
    return list(itertools.islice(found, _MAX_PARTS_TOLD))


def _parts_that_are_no_files(folder: Location) -> list[Problem]:
    """Problems with links that lead nowhere and whatever else is named like a Parquet file, on a disk."""
    if folder.local_path is None:
        return []
    paths = [path for path in folder.local_path.iterdir() if _is_part(path.name) and not path.is_file()]
    return [
        file_problem(folder / path.name, found, "a Parquet file")
        for path in sorted(paths)
        if is_utf8(path.name) and (found := readable_problem(folder / path.name)) is not None
    ]


def _is_part(name: str) -> bool:
    return name.lower().endswith(PARQUET) and not name.startswith((".", "_"))


def _joined(folder: Location, lists: list[PromptList]) -> PromptList:
    """The lists as one; a column that one of them lacks is absent in its rows."""
    names = dict.fromkeys(name for part in lists for name in part.columns)
    parts = [(part.rows[0], part.file) for part in lists if len(part)]
    starts_at = ", ".join(f"{Path(file).name} from row {start}" for start, file in parts[:_MAX_PARTS_TOLD])
    more = f" and {len(parts) - _MAX_PARTS_TOLD} more" if len(parts) > _MAX_PARTS_TOLD else ""
    subject = f"{len(parts)} Parquet files are read as one list, in the order of their names"
    note = (
        f"{subject}: {starts_at}{more}"
        if len(parts) > 1
        else f"the Parquet file {starts_at.partition(' from ')[0]} is read"
    )
    return PromptList(
        file=str(folder),
        folder=folder,
        columns={
            name: [cell for part in lists for cell in part.columns.get(name) or [None] * len(part)] for name in names
        },
        rows=range(1, sum(map(len, lists)) + 1),
        has_types=True,
        problems=[problem for part in lists for problem in part.problems],
        notes=[note, *dict.fromkeys(note for part in lists for note in part.notes)],
        parts=parts,
    )


def _open_parquet(path: Path) -> Any:
    with pa.parquet.ParquetFile(path) as file:  # read_table would add columns for folders such as date=2026-01-01
        return file.read()


def _open_arrow(path: Path) -> Any:
    """The table, memory-mapped: it stays readable after the file is removed."""
    with pa.memory_map(os.fspath(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


# -- columns -------------------------------------------------------------------------------------------------------


def _add_column(prompts: PromptList, name: str, column: Any) -> None:
    """Add a column's cells as text, int, float, bool or None, with the problems of those that are none of these."""
    reason = ""
    cells: list[Any] | None = None
    refused: list[_Refused] = []
    try:
        cells, refused = _cells(name, _plain(column))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        reason = f" ({str(error).splitlines()[0]})"
    if cells is None and is_known(name):  # any other column is refused by its name
        own = ", dates or times" if is_meta(name) else ""
        found = f"a column of type {column.type}{reason}"
        expected = f"a column of text or numbers{own}, and nothing nested"
        prompts.problems.append(Problem(file=prompts.file, field=name, value=found, expected=expected))
    prompts.problems += [prompts.problem(index, name, found, expected) for index, found, expected in refused]
    prompts.columns[name] = [None] * len(column) if cells is None else _without_nan(prompts, name, cells)


def _without_nan(prompts: PromptList, name: str, cells: list[Any]) -> list[Any]:
    """The cells with None for NaN, in which pandas keeps empty cells of numbers."""
    is_nan = [isinstance(cell, float) and math.isnan(cell) for cell in cells]
    if not any(is_nan):
        return cells
    count = sum(is_nan)
    prompts.notes.append(f"{name} is NaN in {counted(count, 'row')}, and is taken for empty there")
    return [None if nan else cell for cell, nan in zip(cells, is_nan, strict=True)]


def _plain(column: Any) -> Any:
    """The column without dictionaries, runs and extension types."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid():
        return _plain(column.cast(kind.storage_type))
    if types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    return _plain(pc.run_end_decode(column)) if types.is_run_end_encoded(kind) else column


def _is_text(kind: pa.DataType) -> bool:
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
        types.is_binary_view,
    )
    return not isinstance(kind, pa.BaseExtensionType) and any(check(kind) for check in checks)


def _cells(name: str, column: Any) -> tuple[list[Any] | None, list[_Refused]]:
    """The cells of a column, None for a type that they cannot have; and the cells that have no value of their type."""
    kind = column.type
    if _is_text(kind):
        return _text_cells(column)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind):
        return column.to_pylist(), []
    if types.is_floating(kind):
        return column.cast(pa.float64()).to_pylist(), []
    if types.is_decimal(kind):
        numbers = column.to_pylist()
        return list(map(_text, numbers)) if is_meta(name) else list(map(_number, numbers)), []
    if types.is_temporal(kind) and not types.is_interval(kind):
        return (None, []) if name in _TEXT_COLUMNS else _time_cells(column)
    if kind == pa.uuid():
        return list(map(_text, column.to_pylist())), []
    is_list = any(check(kind) for check in _LIST_CHECKS)
    return column.to_pylist() if is_list and name == _SIZE_COLUMN else None, []


def _text_cells(column: Any) -> tuple[list[str | None], list[_Refused]]:
    """The cells of a column of text, or of bytes that hold text; those that are not UTF-8 are refused."""
    if types.is_string(column.type) or types.is_large_string(column.type):
        try:
            return column.to_pylist(), []
        except UnicodeDecodeError:
            pass
    cells: list[str | None] = []
    refused: list[_Refused] = []
    for index, cell in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            cells.append(None if cell is None else cell.decode())
        except UnicodeDecodeError:
            cells.append(None)
            refused.append((index, f"{show(cell)}, not UTF-8", "text in UTF-8"))
    return cells, refused


def _time_cells(column: Any) -> tuple[list[str | None], list[_Refused]]:
    """The cells of a column of dates, times or durations as ISO 8601. Arrow has no date for the largest numbers."""
    if types.is_duration(column.type):
        unit = _NANOSECONDS[column.type.unit]
        spans = column.cast(pa.int64()).to_pylist()
        return [None if span is None else iso_duration(span * unit) for span in spans], []
    texts = column.cast(pa.string()).to_pylist()
    refused = [
        (index, text, "a date or time of the years -32767 to 32767")
        for index, text in enumerate(texts)
        if text is not None and text.startswith("<")
    ]
    return [None if text is None or text.startswith("<") else _iso(text) for text in texts], refused


def _text(cell: object) -> str | None:
    return None if cell is None else str(cell)


def _number(cell: Decimal | None) -> int | float | None:
    if cell is None:
        return None
    return int(cell) if cell == cell.to_integral_value() else float(cell)


def _iso(text: str) -> str:
    """Arrow's text for a point in time, as ISO 8601: "2026-01-02 03:04:05.500000+0100" is 2026-01-02T03:04:05.5+01:00."""
    text = _FRACTION.sub(lambda match: match[0].rstrip("0").rstrip("."), text.replace(" ", "T"))
    return _ZONE.sub(r"\1:\2", text)


def iso_duration(nanoseconds: int) -> str:
    """A duration in ISO 8601, such as PT90.5S."""
    seconds = Decimal(nanoseconds).scaleb(-9).normalize()
    return f"PT{seconds:f}S"
