"""Spreadsheets as Excel and LibreOffice write them."""

import datetime

import openpyxl
import pytest

from tests.support.lists import manifest_of, problems_of, write_ods

HEADER = ["text_prompt", "seed", "meta_shot"]


@pytest.fixture
def xlsx(tmp_path):
    """A spreadsheet with these sheets, each a list of rows; text that begins with # is the error of a formula."""

    def write(**sheets):
        book = openpyxl.Workbook()
        book.remove(book.active)
        for name, rows in sheets.items():
            sheet = book.create_sheet(name)
            for row in rows:
                sheet.append(row)
            for cell in (cell for row in sheet.iter_rows() for cell in row if str(cell.value).startswith("#")):
                cell.data_type = "e"
        book.save(tmp_path / "p.xlsx")
        return tmp_path / "p.xlsx"

    return write


def rows_of(manifest, *names):
    return manifest.table.select(names).to_pylist()


def test_the_cells_of_a_sheet_are_read_as_they_are_meant(xlsx):
    day, time = datetime.datetime(2026, 1, 2, 3, 4), datetime.time(3, 4)
    path = xlsx(
        S=[["text_prompt", "sample_steps", "shift", "meta_a", "meta_b", "meta_c"], ["A\nfox", 30, 4.5, 12, day, time]]
    )
    expected = {"row": 1, "line": 2, "text_prompt": "A\nfox", "sample_steps": 30, "shift": 4.5}
    own = {"meta_a": "12", "meta_b": "2026-01-02T03:04:00", "meta_c": "03:04:00"}
    assert rows_of(manifest_of(path), *expected, *own) == [expected | own]


@pytest.mark.parametrize("suffix", ["xlsx", "ods"])
def test_blank_rows_and_columns_around_a_list_are_ignored_and_lines_are_those_of_the_sheet(xlsx, tmp_path, suffix):
    rows = [[None], [None], [None, *HEADER, None], [None, "A", 7, 12], [None, "B", 8.0, "x"], [None, " "], [None]]
    path = xlsx(S=rows) if suffix == "xlsx" else write_ods(tmp_path / "p.ods", *rows)
    manifest = manifest_of(path)
    assert rows_of(manifest, "row", "line", "text_prompt", "seed", "meta_shot") == [
        {"row": 1, "line": 4, "text_prompt": "A", "seed": 7, "meta_shot": "12"},
        {"row": 2, "line": 5, "text_prompt": "B", "seed": 8, "meta_shot": "x"},
    ]
    assert any("blank row" in note for note in manifest.notes)
    assert any("column" in note for note in manifest.notes)


def test_formulas_that_failed_are_told_by_cell_with_the_other_problems(xlsx):
    path = xlsx(S=[HEADER, ["A", "#DIV/0!", None], ["B", 7.5, "#N/A"], ["#REF!", 1, None]])
    problems = problems_of(path)
    assert [(problem.row, problem.line, problem.field) for problem in problems] == [
        (1, 2, "seed"),
        (2, 3, "seed"),
        (2, 3, "meta_shot"),
        (3, 4, "text_prompt"),
    ]
    for problem, words in zip(
        problems, ["#DIV/0! in cell B2", "7.5", "#N/A in cell C3", "#REF! in cell A4"], strict=True
    ):
        assert words in problem.value


def test_formulas_that_failed_in_libreoffice_are_told_by_cell(tmp_path):
    (problem,) = problems_of(write_ods(tmp_path / "p.ods", HEADER, ["A", 7], error="Err:502"))
    assert (problem.row, problem.line, problem.field) == (1, 2, "meta_shot")
    assert "Err:502 in cell C2" in problem.value


def test_formulas_that_were_never_computed_are_told_by_cell(xlsx):
    (problem,) = problems_of(xlsx(S=[HEADER, ["A", "=1+2", None], ["B", 1, None]]))
    assert (problem.row, problem.line, problem.field) == (1, 2, "seed")
    assert "without a value in cell B2" in problem.value


def test_rows_that_are_hidden_are_rendered_and_told(xlsx):
    path = xlsx(S=[HEADER, ["A", 1, None], ["B", 2, None], ["C", 3, None]])
    book = openpyxl.load_workbook(path)
    book["S"].row_dimensions[3].hidden = True
    book.save(path)
    manifest = manifest_of(path)
    assert [row["seed"] for row in rows_of(manifest, "seed")] == [1, 2, 3]
    assert [note for note in manifest.notes if note.startswith("row 2 is hidden")]


def test_the_first_visible_sheet_is_read_unless_another_is_named(xlsx):
    sheets = {name: [["text_prompt"], [name]] for name in ("hidden", "Shots", "Other takes")}
    path = xlsx(**sheets)
    book = openpyxl.load_workbook(path)
    book["hidden"].sheet_state = "hidden"
    book.save(path)
    first, named = manifest_of(path), manifest_of(path, sheet="Other takes")
    assert [rows_of(manifest, "text_prompt")[0]["text_prompt"] for manifest in (first, named)] == [
        "Shots",
        "Other takes",
    ]
    assert "'Shots'" in first.notes[0]
    assert "'Other takes'" in first.notes[0]
    assert named.notes == ()
    (problem,) = problems_of(path, sheet="shots")
    assert "'Shots'" in problem.expected


def test_a_number_that_a_spreadsheet_cannot_hold_is_refused(xlsx):
    (problem,) = problems_of(xlsx(S=[HEADER, ["A", 123456789012345678, None]]))
    assert (problem.row, problem.field) == (1, "seed")


@pytest.mark.parametrize("content", [b"", b"A\n", b"PK\x03\x04 and no more", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("name", ["p.xlsx", "p.ods"])
def test_what_is_no_spreadsheet_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (problem,) = problems_of(tmp_path / name)
    assert problem.value.startswith("unreadable (")


def test_an_empty_sheet_is_named(xlsx):
    (problem,) = problems_of(xlsx(Empty=[]))
    assert "'Empty'" in problem.value


@pytest.mark.parametrize("first", [[], [["shot"]], [["shot"], ["a fox"]]])
def test_a_first_sheet_that_is_no_list_is_refused_with_the_names_of_the_others(xlsx, first):
    problems = problems_of(xlsx(Notes=first, Shots=[["text_prompt"], ["a fox"]]))
    assert any("'Shots'" in problem.expected for problem in problems)
