"""Files of picked clips: `picks.csv`, as the report, `ovi-ray serve`, people and spreadsheet programs write it."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.columns import clean_name
from ovi_ray.inputs.lists.delimited import DELIMITERS
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.inputs.text_files import check_kind, readable
from ovi_ray.storage.paths import Location

PICKS = "picks.csv"
PICK_COLUMN = "clip_id"


@dataclass(kw_only=True, slots=True, frozen=True)
class Pick:
    """A row of the file."""

    line: int
    cells: Mapping[str, str]

    @property
    def clip_id(self) -> str:
        """The content of its column of ids: perhaps the beginning of one."""
        return self.cells[PICK_COLUMN]


@dataclass(kw_only=True, slots=True, frozen=True)
class Picks:
    """The rows of a file that name a clip, with what is needed to write it again in the same form."""

    columns: tuple[str, ...] = (PICK_COLUMN,)
    rows: tuple[Pick, ...] = ()
    delimiter: str = ","
    """Excel writes semicolons where the comma is the decimal sign."""
    encoding: str = field(default="utf-8", repr=False)

    @classmethod
    def read(cls, path: Location) -> Self:
        """The picks of a file. Raises InputError for one that is no CSV with a column of ids."""
        with readable(path, "a CSV of picked clips") as local:
            check_kind(path, local)
            text, encoding = _decoded(local.read_bytes())
        header = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = next((mark for mark in DELIMITERS.values() if PICK_COLUMN in _names(header, mark)), ",")
        columns = _names(header, delimiter)
        if PICK_COLUMN not in columns:
            found = f"the columns {', '.join(columns)}" if any(columns) else "empty"
            expected = f"a column {PICK_COLUMN}{did_you_mean(PICK_COLUMN, columns)}"
            raise InputError([Problem(file=str(path), line=1, value=found, expected=expected)])
        reader = csv.DictReader(io.StringIO(text, newline=""), columns, restval="", delimiter=delimiter, strict=True)
        try:
            next(reader)
            found_rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            problem = Problem(file=str(path), line=reader.line_num, value=f"unreadable ({error})", expected="a CSV")
            raise InputError([problem]) from None
        rows = (
            Pick(line=line, cells={name: row[name].strip() for name in columns if name}) for line, row in found_rows
        )
        return cls(
            columns=tuple(filter(None, columns)),
            rows=tuple(row for row in rows if row.clip_id),
            delimiter=delimiter,
            encoding=encoding,
        )

    @classmethod
    def starred(cls, output_dir: Location) -> Self:
        """The starred clips of an output folder. Raises what `read` does, and OSError."""
        path = output_dir / PICKS
        return cls.read(path) if path.exists() else cls()

    def with_star(self, clip_id: str, *, starred: bool) -> Self:
        """The same with a clip, or without it. The order and the other columns stay."""
        rows = tuple(row for row in self.rows if row.clip_id != clip_id or starred)
        if starred and all(row.clip_id != clip_id for row in rows):
            rows = (*rows, Pick(line=0, cells={PICK_COLUMN: clip_id}))
        return replace(self, rows=rows)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, delimiter=self.delimiter)
        writer.writeheader()
        writer.writerows(row.cells for row in self.rows)
        return text.getvalue().encode(self.encoding)


def _decoded(content: bytes) -> tuple[str, str]:
    """The text and its encoding. Ids are ASCII: in a file of an unknown encoding they are read, and the rest stays as it is."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace"), "utf-16"
    encoding = "utf-8-sig" if content.startswith(b"\xef\xbb\xbf") else "utf-8"
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1"


def _names(header: str, delimiter: str) -> list[str]:
    return [clean_name(name) for name in next(csv.reader([header], delimiter=delimiter), [])]
