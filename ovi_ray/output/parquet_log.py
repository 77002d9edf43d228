"""An append-only table: Parquet files of one schema in a folder, read in the order in which they were written.

Tools that read the folder while it grows list it first and open the files later, perhaps twice each. So while rows are
appended no file is renamed, removed or changed: whatever a tool has listed is there, and no row is in two files. A file is
complete or absent, and is written in another folder until it is complete. Rows are dropped, and many files merged into one,
only when a run starts.
"""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ovi_ray.errors import ResultsDamaged, ResultsTooNew
from ovi_ray.storage.paths import BATCH_ROWS, Location, atomic_write, list_files

FORMAT = 2  # of the files; 1 had no number
FORMAT_KEY = b"ovi_ray.format"
_SUFFIX = ".parquet"
_log = logging.getLogger(__name__)
_READ_AHEAD = 16  # files of a store that are fetched at a time: most of it is waiting
_READ_BYTES = 8 << 20


class ParquetLog:
    """The files of one table. One process writes at a time; any number read.

    Files are named after the run that wrote them and their number in it, so that their order does not depend on a clock. A
    name has a part of its own for each writer: one that was taken for dead never replaces a file of its successor.
    """

    def __init__(self, folder: Location, schema: pa.Schema, *, aside: Location | None = None) -> None:
        """`aside` is the folder of files that are not complete, by default `folder`."""
        self.folder = folder
        self.schema = schema.with_metadata({FORMAT_KEY: str(FORMAT).encode()})
        self._aside = aside
        self._numbers = itertools.count(1)
        paths = self.paths()
        self._prefix = f"part-r{1 + max(map(_run, paths), default=0):06d}-{uuid4().hex[:6]}"
        self.files = len(paths)
        """Number of files, as far as this process knows."""

    def paths(self) -> list[Location]:
        """Files of the table, oldest first."""
        names = list_files(self.folder, _SUFFIX).column("name").to_pylist()
        return [self.folder / name for name in sorted(names) if name.startswith("part-")]

    def append(self, table: pa.Table) -> None:
        """Add rows as a file of their own, which is on disk when this returns. Raises OSError."""
        self._write(self.folder / f"{self._prefix}-{next(self._numbers):06d}{_SUFFIX}", table.to_batches())
        self.files += 1

    def read(self, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[int], list[ResultsDamaged]]:
        """All rows in order, the number of rows in each of `paths()`, and what is wrong with the files that are left out.

        Columns that a file lacks are null. Raises ResultsTooNew, and OSError for a file that cannot be read.
        """
        schema = self._schema_of(columns)
        found: list[pa.RecordBatch] = []
        counts, corrupt = [], []
        for path, source in _sources(self.paths()):
            batches: list[pa.RecordBatch] = []
            try:
                batches = list(self._batches(path, source, schema.names))
            except FileNotFoundError:  # a run has started and merged the files: its rows are in another one now
                return self.read(columns)
            except ResultsDamaged as error:
                corrupt.append(error)
            counts.append(sum(map(len, batches)))
            found += batches
        return pa.Table.from_batches([batch.cast(schema) for batch in found], schema), counts, corrupt

    def select(
        self, keep: pa.BooleanArray, counts: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that `keep` marks, at most `BATCH_ROWS` at a time.

        `keep` has a value for each row that `read` returned, and `counts` are those of `read`. The rest of a file whose content
        is damaged is left out. Raises what `read` does, and ValueError where the number of files has changed since.
        """
        lengths = zip(self.paths(), counts, strict=True)
        with_rows = {path: count for path, count in lengths if count}  # a file without may be damaged
        start = 0
        for path, source in _sources(list(with_rows)):
            try:
                yield from self._kept(path, source, keep.slice(start, with_rows[path]), columns)
            except ResultsDamaged as error:
                _log.warning("%s: its rows are left out", error)
            start += with_rows[path]

    # -- when a run starts -----------------------------------------------------------------------------------------

    def retain(self, keep: pa.BooleanArray, counts: Sequence[int]) -> None:
        """Drop the rows that `keep` does not mark. For `keep` and `counts` see `select`. Raises ResultsDamaged.

        Each file is replaced as a whole, so that a reader sees a dropped row or not, and every other row once.
        """
        start = 0
        for path, count in zip(self.paths(), counts, strict=True):
            marks = keep.slice(start, count)
            if not pc.all(marks, min_count=0).as_py():
                self._write(path, self._kept(path, _source(path), marks, None))
            start += count

    def merge(self) -> None:
        """Leave one file with all rows, under the name of the last one.

        Until it returns a reader may find rows twice, or a file gone: it is for moments at which a run starts. A crash leaves
        rows twice, never less than once. Raises ResultsDamaged.
        """
        *others, last = self.paths()
        names = self.schema.names
        sources = _sources([*others, last])
        self._write(last, (batch for path, source in sources for batch in self._batches(path, source, names)))
        for path in others:
            path.unlink(missing_ok=True)
        self.files = 1

    # -- files -----------------------------------------------------------------------------------------------------

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in (self.schema.names if columns is None else columns)])

    def _kept(
        self, path: Location, source: "_Source", keep: pa.BooleanArray, columns: Sequence[str] | None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a file that `keep` marks."""
        schema = self._schema_of(columns)
        start = 0
        for batch in self._batches(path, source, schema.names):
            yield batch.filter(keep.slice(start, len(batch))).cast(schema)
            start += len(batch)

    def _batches(self, path: Location, source: "_Source", names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pa.parquet.ParquetFile(source) as file:
                _check_format(path, file.schema_arrow)
                present = [name for name in names if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=present):
                    yield self._completed(batch, names)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            _check_readable(path)
            raise ResultsDamaged(path, path.name, str(error).partition("\n")[0]) from error

    def _completed(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        columns = [
            batch.column(name) if name in batch.schema.names else pa.nulls(len(batch), self.schema.field(name).type)
            for name in names
        ]
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _write(self, path: Location, batches: Iterable[pa.RecordBatch]) -> None:
        with atomic_write(path, self._aside) as local, pa.parquet.ParquetWriter(local, self.schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(self.schema))


def _run(path: Location) -> int:
    """The run that wrote a file; 0 for the files of older versions, which sort before all others."""
    name = path.stem.split("-")[1]
    return int(name[1:]) if name.startswith("r") and name[1:].isdigit() else 0


# -- reading -----------------------------------------------------------------------------------------------------------

_Source: TypeAlias = Path | pa.BufferReader
"""What a file is read from: its path on a disk, or the content of one in a store."""


def _source(path: Location) -> _Source:
    return path.local_path or pa.BufferReader(path.read_bytes())


def _sources(paths: Sequence[Location]) -> Iterator[tuple[Location, _Source]]:
    """Each path with its source, in order; files of a store are fetched ahead. Raises OSError."""
    waiting: deque[tuple[Location, Future[_Source]]] = deque()
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for path in paths:
            waiting.append((path, pool.submit(_source, path)))
            if len(waiting) > _READ_AHEAD:
                first, source = waiting.popleft()
                yield first, source.result()
        for path, source in waiting:
            yield path, source.result()


def _check_readable(path: Location) -> None:
    """Read a file to its end: raises OSError where it cannot be read, so that this is not taken for damaged content."""
    if (local := path.local_path) is None:
        return  # it was fetched as a whole
    with local.open("rb", buffering=0) as file:
        while file.read(_READ_BYTES):
            pass


def _check_format(path: Location, schema: pa.Schema) -> None:
    version = int((schema.metadata or {}).get(FORMAT_KEY, b"1"))
    if version > FORMAT:
        raise ResultsTooNew(
            f"{path} has format {version} and this version of ovi-ray reads up to {FORMAT}: update ovi-ray, or give"
            " another --out"
        )
