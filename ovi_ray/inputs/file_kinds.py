"""Files of other kinds than their names promise, recognised by their first bytes: what they are, and how to open them."""

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovi.media.file_kinds import describe_unidentified
from ovi_ray.errors import show
from ovi_ray.printing import shell_command
from ovi_ray.storage.paths import Location

_LOOKED_AT = 4096  # bytes
_TABLES = {b"PAR1": ("a Parquet file", (".parquet",)), b"ARROW1": ("an Arrow file", (".arrow", ".feather", ".ipc"))}
"""Kinds of files that can be lists, by their first bytes, with their suffixes."""
_SHEETS = {".xlsx": "an Excel workbook", ".ods": "an OpenDocument spreadsheet"}
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip"),
    b"BZh": ("bzip2", "bzip2"),
    b"\xfd7zXZ\0": ("xz", "xz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd"),
}
"""Name of the compression and the program that undoes it, by the first bytes."""
_DOCUMENTS = {
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls), or one with a password",
    b"SQLite format 3\0": "an SQLite database",
    b"{\\rtf": "an RTF document",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"FEA1": "a Feather file of version 1",
    b"Obj\x01": "an Avro file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
}
_MEDIA = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF", b"RIFF", b"\x1aE\xdf\xa3", b"\x93NUMPY")
_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html[\s>])", re.IGNORECASE)
_CSV_HEADER = re.compile(r'\s*"?(\w+"?\s*[,;|\t]\s*"?)*text_prompt"?\s*([,;|\t]|$)', re.IGNORECASE)
_DELIMITED, _JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
_YAML = (".yaml", ".yml")
_TEXTS = (*_YAML, *_DELIMITED, *_JSON_LINES, ".txt")


@dataclass(kw_only=True, slots=True, frozen=True)
class ForeignKind:
    """A file of another kind than its name promises."""

    found: str
    """Such as "a Parquet file in spite of its name"."""
    expected: str


def foreign_kind(path: Location, local: Path) -> ForeignKind | None:
    """Look at a file, which is at `local` now: None if it is, for all that its first bytes show, what its suffix promises."""
    with local.open("rb") as file:
        start = file.read(_LOOKED_AT)
    suffix = path.suffix.lower()
    wanted = "a YAML file" if suffix in _YAML else "a prompt list"
    for magic, (name, suffixes) in _TABLES.items():
        if start.startswith(magic):
            return None if suffix in suffixes else _misnamed(path, name, suffixes[0])
    for magic, (name, program) in _COMPRESSED.items():
        if start.startswith(magic):
            return _compressed(path, name, program)
    if start.startswith(b"PK\x03\x04"):
        return _zip(path, local)
    for magic, name in _DOCUMENTS.items():
        if start.startswith(magic):
            return ForeignKind(found=name, expected="a list saved as .xlsx, or as CSV in UTF-8")
    if start.startswith(_MEDIA):
        return ForeignKind(found=describe_unidentified(start)[0].replace("damaged or truncated ", ""), expected=wanted)
    if _HTML.match(start):
        expected = f"{wanted}; web sites send a page in place of a file that needs a sign-in, or another address"
        return ForeignKind(found="an HTML page", expected=expected)
    return _foreign_text(path, start)


def _misnamed(path: Location, name: str, suffix: str) -> ForeignKind:
    target = path.with_name(f"{path.stem}{suffix}") if path.is_local else path.stem + suffix
    command = shell_command("mv", "-i", path, target) if path.is_local else f"the name {target}"
    return ForeignKind(found=f"{name} in spite of its name", expected=f"a name that ends in {suffix}: {command}")


def _compressed(path: Location, name: str, program: str) -> ForeignKind:
    unpacked = path.stem if Path(path.stem).suffix else f"{path.stem}-unpacked{path.suffix}"
    source, target = (path, path.with_name(unpacked)) if path.is_local else (path.name, unpacked)
    command = shell_command(program, "-dc", source, ">", target)
    return ForeignKind(found=f"a file compressed with {name}", expected=f"the list itself: {command}")


def _zip(path: Location, local: Path) -> ForeignKind | None:
    try:
        with zipfile.ZipFile(local) as archive:
            names = archive.namelist()
            kind = archive.read("mimetype")[:100].decode("ascii", "replace") if "mimetype" in names else ""
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        if path.suffix.lower() in _SHEETS:
            return None
        return ForeignKind(found="a damaged or truncated ZIP archive", expected="a file that was copied completely")
    if kind.endswith("opendocument.spreadsheet") or any(name.startswith("xl/") for name in names):
        suffix = ".ods" if kind else ".xlsx"
        return None if path.suffix.lower() == suffix else _misnamed(path, _SHEETS[suffix], suffix)
    if any(name.startswith("word/") for name in names) or "opendocument" in kind:
        return ForeignKind(
            found="a document of a word processor", expected="a list saved as plain text in UTF-8 (.txt)"
        )
    return ForeignKind(found=f"a ZIP archive {_holding(names)}", expected="the list itself, unpacked from it")


def _holding(names: Sequence[str]) -> str:
    return f"that holds {', '.join(map(show, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _foreign_text(path: Location, start: bytes) -> ForeignKind | None:
    """A list in another format of text, by its first line."""
    suffix = path.suffix.lower()
    first = next((line for line in start.decode("utf-8-sig", "replace").splitlines() if line.strip()), "")
    if suffix in _JSON_LINES:
        return _misnamed(path, "a list in CSV", ".csv") if _CSV_HEADER.match(first) else None
    if suffix in (*_DELIMITED, ".txt") and _is_json_row(first):
        return _misnamed(path, "a list in JSON Lines", ".jsonl")
    if suffix in _TEXTS or not first or b"\0" in start:
        return None
    if _CSV_HEADER.match(first):
        return _misnamed(path, "a list in CSV", ".csv")
    return _misnamed(path, "a list in JSON Lines", ".jsonl") if _is_json_row(first) else None


def _is_json_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "text_prompt" in row
