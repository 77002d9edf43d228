"""Spreadsheets: .xlsx and .ods, read by calamine, the one kept library that reads both."""

import datetime
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum, load_workbook

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import PROMPT_COLUMN, clean_name
from ovi_ray.inputs.lists.grid import are_blank, grid_list
from ovi_ray.inputs.lists.prompt_list import PromptList, file_problem
from ovi_ray.inputs.text_files import readable
from ovi_ray.storage.paths import Location

_LARGEST_EXACT_FLOAT = 2**53
_CELL = re.compile(r"([A-Z]+)(\d+)")
_EXPECTED = "a spreadsheet (.xlsx or .ods) without a password"


def read_spreadsheet(path: Location, sheet: str | None = None) -> PromptList:
    """Read a sheet, by default the first visible one. Raises InputError.

    `lines` are the sheet's own row numbers. Whole numbers become int, dates and times ISO text. A cell whose formula
    failed becomes a problem that names it, such as B7.
    """
    with readable(path, _EXPECTED) as local:
        try:
            book = load_workbook(str(local))
            name, notes = _choose(path, book, sheet)
            content = book.get_sheet_by_name(name).to_python(skip_empty_area=False)
            errors = dict(_formula_errors(local, name))
        except (CalamineError, zipfile.BadZipFile, ElementTree.ParseError, KeyError, OSError) as error:
            raise InputError([file_problem(path, f"unreadable ({error})", _EXPECTED)]) from None
    numbered = ((line, list(map(_cell, cells))) for line, cells in enumerate(content, start=1))
    header = next(((line, cells) for line, cells in numbered if not are_blank(cells)), None)
    if header is None:
        expected = f"a header row with a column {PROMPT_COLUMN}"
        raise InputError([file_problem(path, f"the empty sheet {show(name)}", expected)])
    prompts = grid_list(path, (header[0], ["" if cell is None else str(cell) for cell in header[1]]), numbered)
    prompts.notes[:0] = notes
    prompts.problems += _error_problems(path, errors, header)
    return prompts


def _choose(path: Location, book: CalamineWorkbook, wanted: str | None) -> tuple[str, list[str]]:
    """The name of the sheet to read, and a note where there are others."""
    sheets = [sheet for sheet in book.sheets_metadata if sheet.typ is SheetTypeEnum.WorkSheet]
    names = [sheet.name for sheet in sheets]
    if wanted is not None:
        if wanted in names:
            return wanted, []
        expected = f"one of its sheets: {', '.join(map(show, names))}"
        raise InputError([file_problem(path, f"a spreadsheet without a sheet {show(wanted)}", expected)])
    visible = [sheet.name for sheet in sheets if sheet.visible is SheetVisibleEnum.Visible] or names
    if not visible:
        raise InputError([file_problem(path, "a spreadsheet without a sheet", _EXPECTED)])
    others = ", ".join(map(show, visible[1:]))
    return visible[0], [f"the sheet {show(visible[0])} is read; --sheet names another: {others}"] if others else []


def _cell(cell: Any) -> Any:
    """A cell as int, float, bool, text or None."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) <= _LARGEST_EXACT_FLOAT:
        return int(cell)  # a spreadsheet has no other integers
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    return None if cell == "" else cell


# -- formula errors, which calamine takes for empty cells or zeros ---------------------------------------------------


def _error_problems(
    path: Location, errors: dict[tuple[int, int], str], header: tuple[int, list[Any]]
) -> Iterator[Problem]:
    header_line, names = header
    for (line, column), text in errors.items():
        name = names[column - 1] if column <= len(names) else None
        yield Problem(
            file=str(path),
            row=line - header_line if line > header_line else None,
            line=line,
            field=clean_name(str(name)) if name is not None else None,
            value=f"the error {text} in cell {_letters(column)}{line}",
            expected="a value, or a formula that has one",
        )


def _letters(column: int) -> str:
    """The letters of a column, counted from 1."""
    letters = ""
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _formula_errors(path: Path, sheet: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Row and column, from 1, of each cell of a sheet that holds an error, and the error's text."""
    with zipfile.ZipFile(path) as archive:
        if path.suffix.lower() == ".ods":
            yield from _ods_errors(archive, sheet)
        else:
            yield from _xlsx_errors(archive, sheet)


def _xlsx_errors(archive: zipfile.ZipFile, sheet: str) -> Iterator[tuple[tuple[int, int], str]]:
    for element in _elements(archive, _xlsx_part(archive, sheet), "c", marked_by=b't="e"'):
        if element.get("t") == "e" and (place := _CELL.fullmatch(element.get("r", ""))):
            text = next((child.text for child in element if _local(child) == "v"), None)
            yield (int(place[2]), _column(place[1])), text or "of a formula"


def _xlsx_part(archive: zipfile.ZipFile, sheet: str) -> str:
    """The archive's file of a sheet."""
    workbook = _parsed(archive.read("xl/workbook.xml"))
    relation = next(
        value
        for element in workbook.iter()
        if _local(element) == "sheet" and element.get("name") == sheet
        for key, value in element.items()
        if key.endswith("}id")
    )
    relations = _parsed(archive.read("xl/_rels/workbook.xml.rels"))
    target = next(element.get("Target", "") for element in relations if element.get("Id") == relation)
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _ods_errors(archive: zipfile.ZipFile, sheet: str) -> Iterator[tuple[tuple[int, int], str]]:
    for table in _elements(archive, "content.xml", "table", marked_by=b'"error"'):
        if _attribute(table, "name") != sheet:
            continue
        line = 1
        for row in (element for element in table.iter() if _local(element) == "table-row"):
            rows, column = int(_attribute(row, "number-rows-repeated") or 1), 1
            for cell in row:
                columns = int(_attribute(cell, "number-columns-repeated") or 1)
                if _attribute(cell, "value-type", "calcext") == "error":
                    text = "".join(cell.itertext()) or "of a formula"
                    yield from (
                        ((line + down, column + right), text) for down in range(rows) for right in range(columns)
                    )
                column += columns
            line += rows


def _elements(archive: zipfile.ZipFile, part: str, name: str, marked_by: bytes) -> Iterator[ElementTree.Element]:
    """The elements of a name in a file of the archive; none if the file does not have the mark in it."""
    content = archive.read(part)
    if marked_by in content:
        yield from (element for element in _parsed(content).iter() if _local(element) == name)


def _parsed(content: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(content)  # noqa: S314  (expat limits the growth of entities)


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _attribute(element: ElementTree.Element, name: str, namespace: str = "") -> str | None:
    """An attribute by its name without the namespace, which must contain `namespace`."""
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name and namespace in key), None)


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number
