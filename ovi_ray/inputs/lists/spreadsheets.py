"""Spreadsheets: .xlsx and .ods, read by calamine, the one kept library that reads both."""

import datetime
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum, load_workbook

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import PROMPT_COLUMN, clean_name
from ovi_ray.inputs.lists.grid import are_blank, grid_list
from ovi_ray.inputs.lists.prompt_list import PromptList, file_problem
from ovi_ray.inputs.lists.tables import iso_duration
from ovi_ray.inputs.notes import name_rows
from ovi_ray.inputs.text_files import check_kind, readable
from ovi_ray.storage.paths import Location

_LARGEST_EXACT_FLOAT = 2**53
_MOST_REPEATED = 100_000  # rows that a file repeats; more of them are the empty rest of a sheet
_CELL = re.compile(r"([A-Z]+)(\d+)")
_EXPECTED = "a spreadsheet (.xlsx or .ods) without a password"


def read_spreadsheet(path: Location, sheet: str | None = None) -> PromptList:
    """Read a sheet, by default the first visible one. Raises InputError.

    `lines` are the sheet's own row numbers. Whole numbers become int, dates and times ISO text. A cell whose formula
    failed, or was never computed, becomes a problem that names it, such as B7.
    """
    with readable(path, _EXPECTED) as local:
        check_kind(path, local)
        try:
            book = load_workbook(str(local))
            name, notes = _choose(path, book, sheet)
            content = book.get_sheet_by_name(name).to_python(skip_empty_area=False)
            findings = _look_into(local, name)
        except (CalamineError, zipfile.BadZipFile, ElementTree.ParseError, KeyError, OSError) as error:
            raise InputError([file_problem(path, f"unreadable ({error})", _EXPECTED)]) from None
    numbered = ((line, list(map(_cell, cells))) for line, cells in enumerate(content, start=1))
    header = next(((line, cells) for line, cells in numbered if not are_blank(cells)), None)
    if header is None:
        expected = f"a header row with a column {PROMPT_COLUMN}"
        raise InputError([file_problem(path, f"the empty sheet {show(name)}", "; ".join([expected, *notes]))])
    prompts = grid_list(path, (header[0], ["" if cell is None else str(cell) for cell in header[1]]), numbered)
    prompts.notes[:0] = notes
    prompts.notes += _hidden_note(prompts, findings.hidden)
    prompts.problems += _cell_problems(path, findings, header)
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
        return iso_duration(cell // datetime.timedelta(microseconds=1) * 1000)
    return None if cell == "" else cell


# -- what calamine does not tell: errors and missing values of formulas, which it takes for empty cells or zeros; hidden rows


@dataclass(kw_only=True, slots=True)
class _Findings:
    """Hidden rows and formulas without a computed value in a sheet. Rows and columns are counted from 1."""

    unusable: dict[tuple[int, int], str] = field(default_factory=dict)
    """Cells without a value that can be used, by row and column, and what is in each."""
    hidden: list[int] = field(default_factory=list)
    """Rows that are hidden, by hand or by a filter."""


_NO_VALUE = "a formula without a value"


def _cell_problems(path: Location, findings: _Findings, header: tuple[int, list[Any]]) -> Iterator[Problem]:
    header_line, names = header
    for (line, column), found in findings.unusable.items():
        name = names[column - 1] if column <= len(names) else None
        computed = "; a spreadsheet program computes it when it opens and saves the file" if found == _NO_VALUE else ""
        yield Problem(
            file=str(path),
            row=line - header_line if line > header_line else None,
            line=line,
            field=clean_name(str(name)) if name is not None else None,
            value=f"{found} in cell {_letters(column)}{line}",
            expected=f"a value, or a formula that has one{computed}",
        )


def _hidden_note(prompts: PromptList, hidden: Iterable[int]) -> list[str]:
    row_of = dict(zip(prompts.lines or (), prompts.rows, strict=True))
    rows = [row_of[line] for line in hidden if line in row_of]
    if not rows:
        return []
    are, them = ("are", "them") if len(rows) > 1 else ("is", "it")
    return [f"{name_rows(rows)} {are} hidden in the sheet, by hand or by a filter; this job renders {them} too"]


def _letters(column: int) -> str:
    """The letters of a column, counted from 1."""
    letters = ""
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _look_into(path: Path, sheet: str) -> _Findings:
    findings = _Findings()
    with zipfile.ZipFile(path) as archive:
        if path.suffix.lower() == ".ods":
            _look_into_ods(findings, archive, sheet)
        else:
            _look_into_xlsx(findings, archive.read(_xlsx_part(archive, sheet)))
    return findings


def _look_into_xlsx(findings: _Findings, content: bytes) -> None:
    if not _has_any(content, b't="e"', b"<f", b"hidden="):
        return
    for element in _parsed(content).iter():
        match _local(element):
            case "row" if element.get("hidden") in ("1", "true"):
                findings.hidden.append(int(element.get("r", "0")))
            case "c" if (found := _unusable_in_xlsx(element)) and (place := _CELL.fullmatch(element.get("r", ""))):
                findings.unusable[int(place[2]), _column(place[1])] = found


def _unusable_in_xlsx(cell: ElementTree.Element) -> str:
    content = {_local(child): child.text or "" for child in cell}
    if cell.get("t") == "e":
        return f"the error {content.get('v') or 'of a formula'}"
    has_no_value = (
        "f" in content and not content.get("v") and cell.get("t") != "str"
    )  # "str" is text, which may be empty
    return _NO_VALUE if has_no_value else ""


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


def _look_into_ods(findings: _Findings, archive: zipfile.ZipFile, sheet: str) -> None:
    content = archive.read("content.xml")
    if not _has_any(content, b'"error"', b":formula=", b":visibility="):
        return
    for table in (element for element in _parsed(content).iter() if _local(element) == "table"):
        if _attribute(table, "name") != sheet:
            continue
        line = 1
        for row in (element for element in table.iter() if _local(element) == "table-row"):
            rows, column = int(_attribute(row, "number-rows-repeated") or 1), 1
            if _attribute(row, "visibility") in ("collapse", "filter") and rows <= _MOST_REPEATED:
                findings.hidden += range(line, line + rows)
            for cell in row:
                columns = int(_attribute(cell, "number-columns-repeated") or 1)
                if found := _unusable_in_ods(cell):
                    for down, right in itertools.product(range(rows), range(columns)):
                        findings.unusable[line + down, column + right] = found
                column += columns
            line += rows


def _unusable_in_ods(cell: ElementTree.Element) -> str:
    if _attribute(cell, "value-type", "calcext") == "error":
        return f"the error {''.join(cell.itertext()) or 'of a formula'}"
    has_no_value = _attribute(cell, "formula") is not None and _attribute(cell, "value-type") is None
    return _NO_VALUE if has_no_value else ""


def _has_any(content: bytes, *marks: bytes) -> bool:
    """Whether one of the marks is in a file: parsing a sheet takes as long as reading it."""
    return any(mark in content for mark in marks)


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
