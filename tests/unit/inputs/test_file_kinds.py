"""Lists whose content is of another kind than their names promise."""

import bz2
import gzip
import io
import lzma
import subprocess
import zipfile

import pyarrow as pa
import pytest

from tests.support.lists import manifest_of, problems_of, write_ods, write_table

CSV = b"text_prompt\nA dog\n"


@pytest.fixture
def write(tmp_path):
    """A file of this content, in a folder whose name needs quotes in a shell."""
    folder = tmp_path / "my lists"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def made(path):
    if path.suffix == ".ods":
        return write_ods(path, ["text_prompt"], ["A dog"])
    return write_table(path, pa.table({"text_prompt": ["A dog"]}))


def archive(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        for name, text in files.items():
            opened.writestr(name.replace("__", "/").replace("_", "."), text)
    return content.getvalue()


def run(problem):
    """Run the command that the message names."""
    subprocess.run(problem.expected.partition(": ")[2], shell=True, check=True, cwd="/")


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.xlsx", "a.dat"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ods"])
def test_a_table_with_another_name_is_told_with_the_command_that_renames_it(write, tmp_path, name, suffix):
    path = write(name, made(tmp_path / f"made{suffix}").read_bytes())
    (problem,) = problems_of(path)
    assert problem.line is None
    run(problem)
    assert manifest_of(path.with_suffix(suffix)).table.column("text_prompt").to_pylist() == ["A dog"]


@pytest.mark.parametrize(
    ("content", "name", "right"),
    [
        (CSV, "a.jsonl", ".csv"),
        (CSV, "a.xlsx", ".csv"),
        (CSV, "a.parquet", ".csv"),
        (b'seed;"text_prompt"\n1;A dog\n', "a.xls", ".csv"),
        (b'{"text_prompt": "A dog"}\n', "a.csv", ".jsonl"),
        (b'\xef\xbb\xbf{"text_prompt": "A dog"}\n', "a.txt", ".jsonl"),
        (b'{"text_prompt": "A dog"}\n', "a.arrow", ".jsonl"),
    ],
)
def test_a_list_of_text_with_another_name_is_told_with_the_command_that_renames_it(write, content, name, right):
    path = write(name, content)
    (problem,) = problems_of(path)
    run(problem)
    assert manifest_of(path.with_suffix(right)).table.column("text_prompt").to_pylist() == ["A dog"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(("name", "unpacked"), [("a.csv", "a-unpacked.csv"), ("a.csv.gz", "a.csv")])
def test_a_compressed_list_is_told_with_the_command_that_unpacks_it(write, compress, name, unpacked):
    path = write(name, compress(CSV))
    (problem,) = problems_of(path)
    run(problem)
    assert path.with_name(unpacked).read_bytes() == CSV


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.parquet", "a.xlsx", "a.zip"])
def test_an_archive_is_told_with_what_it_holds(write, name):
    (problem,) = problems_of(write(name, archive(prompts_csv=CSV)))
    assert "'prompts.csv'" in problem.value


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (archive(word__document_xml="<w/>"), "word processor"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "Excel"),
        (b"SQLite format 3\0", "SQLite"),
        (b"{\\rtf1\\ansi A dog\\par}", "RTF"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "HTML page"),
        (b"\x80\x04\x95\x10\0\0\0", "pickle"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.xlsx"])
def test_a_file_that_is_no_list_is_named(write, name, content, found):
    (problem,) = problems_of(write(name, content))
    assert found in problem.value
    assert problem.line is None
