"""An append-only table: Parquet files in a folder, read in the order in which they were written.

All files have the columns of one schema. They may have further columns, of names that the table accepts; these stay too.

Tools that read the folder while it grows list it first and open the files later, perhaps twice each. So while rows are
appended no file is renamed, removed or changed: whatever a tool has listed is there, and no row is in two files. A file is
complete or absent, and is written in another folder until it is complete. Rows are dropped, and many files merged into one,
only when a run starts.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ovi_ray.errors import ResultsDamaged, ResultsTooNew
from ovi_ray.storage.local_store import named_errors
from ovi_ray.storage.paths import BATCH_ROWS, Location, atomic_write, list_files

FORMAT = (
    4  # of the files; 1 had no number, up to 2 rows of the prompt list were counted from 0, up to 3 seeds followed rows
)
FORMAT_KEY = b"ovi_ray.format"
_SUFFIX = ".parquet"
_log = logging.getLogger(__name__)
_READ_AHEAD = 16  # files of a store that are fetched at a time: most of it is waiting
_READ_BYTES = 8 << 20
_SMALL_ROWS = 1000  # of a file whose rows may be held in memory: a run's files have no more


@dataclass(kw_only=True, slots=True, frozen=True)
class ColumnChange:
    """New values of a column, and where they differ from the ones that are written."""

    name: str
    values: pa.Array
    differs: pa.BooleanArray

    @property
    def is_change(self) -> bool:
        """Whether any value differs."""
        return bool(pc.any(self.differs, min_count=0).as_py())

    def slice(self, start: int, length: int) -> "ColumnChange":
        """The values of some rows."""
        return replace(self, values=self.values.slice(start, length), differs=self.differs.slice(start, length))

    def applied(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with the new values."""
        place = batch.schema.get_field_index(self.name)
        return batch.set_column(place, batch.schema.field(place), self.values)


class ParquetLog:
    """The files of one table. One process writes at a time; any number read.

    Files are named after the run that wrote them and their number in it, so that their order does not depend on a clock. A
    name has a part of its own for each writer: one that was taken for dead never replaces a file of its successor.
    """

    def __init__(
        self,
        folder: Location,
        schema: pa.Schema,
        *,
        aside: Location | None = None,
        accepts: Callable[[str], bool] = lambda name: False,
        upgrade: Callable[[pa.RecordBatch, int], pa.RecordBatch] = lambda batch, version: batch,
        remembers_bytes: int = 0,
    ) -> None:
        """`aside` is the folder of files that are not complete, by default `folder`.

        `accepts` tells by name which further columns files may have; `upgrade` makes rows of an older format current. The
        rows of files are held in memory, up to `remembers_bytes`, so that each is read once: for a reader whose own run
        holds the folder and renders, when files are only added.
        """
        self.folder = folder
        self.schema = schema.with_metadata({FORMAT_KEY: str(FORMAT).encode()})
        self._accepts = accepts
        self._upgrade = upgrade
        self._widths: dict[str, int] = {}  # number of columns of each file that was read
        self._remembered: dict[str, pa.RecordBatch] = {}  # name of a file -> all of its rows
        self._memory_left = remembers_bytes
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
        self.learn(table.schema)
        names = self.schema.names
        path = self.folder / f"{self._prefix}-{next(self._numbers):06d}{_SUFFIX}"
        self._write(path, (self._completed(batch, names) for batch in table.to_batches()))
        self.files += 1

    def read(self, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[int], list[ResultsDamaged]]:
        """All rows in order, the number of rows in each of `paths()`, and what is wrong with the files that are left out.

        Columns that a file lacks are null. Raises ResultsTooNew, and OSError for a file that cannot be read.
        """
        found: list[pa.RecordBatch] = []
        counts, corrupt = [], []
        for path, source in self._sources(self.paths()):
            rows: list[pa.RecordBatch] = []
            try:
                rows = list(self._batches(path, source, columns))
            except FileNotFoundError:  # a run has started and merged the files: its rows are in another one now
                return self.read(columns)
            except ResultsDamaged as error:
                corrupt.append(error)
            counts.append(sum(map(len, rows)))
            found += rows
        schema = self._schema_of(columns)  # only now: the last file may have had further columns
        batches = [self._completed(batch, schema.names).cast(schema) for batch in found]
        return pa.Table.from_batches(batches, schema), counts, corrupt

    def select(
        self, keep: pa.BooleanArray, counts: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that `keep` marks, at most `BATCH_ROWS` at a time.

        `keep` has a value for each row that `read` returned, and `counts` are those of `read`. The rest of a file whose content
        is damaged is left out, and so are rows that were added since. Raises what `read` does, and ValueError for files that
        are gone.
        """
        paths = self.paths()[: len(counts)]  # files that were added since sort after all others
        with_rows = {
            path: count for path, count in zip(paths, counts, strict=True) if count
        }  # one without may be damaged
        return _together(self._selected(keep, with_rows, columns))

    def _selected(
        self, keep: pa.BooleanArray, with_rows: Mapping[Location, int], columns: Sequence[str] | None
    ) -> Iterator[pa.RecordBatch]:
        start = 0
        for path, source in self._sources(list(with_rows)):
            try:
                yield from self._kept(path, source, keep.slice(start, with_rows[path]), columns)
            except ResultsDamaged as error:
                _log.warning("%s: its rows are left out", error)
            start += with_rows[path]

    # -- when a run starts -----------------------------------------------------------------------------------------

    def retain(self, keep: pa.BooleanArray, counts: Sequence[int], changes: Sequence[ColumnChange] = ()) -> None:
        """Drop the rows that `keep` does not mark. For `keep` and `counts` see `select`. Raises ResultsDamaged.

        `changes` are new values of columns. Each file is replaced as a whole, so that a reader sees a dropped row or not, and
        every other row once.
        """
        start = 0
        for path, count in zip(self.paths(), counts, strict=True):
            marks, new = keep.slice(start, count), [change.slice(start, count) for change in changes]
            if not pc.all(marks, min_count=0).as_py() or any(change.is_change for change in new):
                self._write(path, self._kept(path, _source(path), marks, None, new))
            start += count

    def merge(self) -> None:
        """Leave one file with all rows, under the name of the last one.

        Until it returns a reader may find rows twice, or a file gone: it is for moments at which a run starts. A crash leaves
        rows twice, never less than once. `read` was called before: it knows the columns of all files. Raises ResultsDamaged.
        """
        *others, last = self.paths()
        names = self.schema.names
        sources = self._sources([*others, last])
        self._write(last, (batch for path, source in sources for batch in self._batches(path, source, names)))
        for path in others:
            path.unlink(missing_ok=True)
        self.files = 1
        self._widths = {last.name: len(self.schema)}

    # -- files -----------------------------------------------------------------------------------------------------

    @property
    def is_uniform(self) -> bool:
        """Whether all files that were read have every known column: some tools refuse a folder where they differ."""
        return all(width == len(self.schema) for width in self._widths.values())

    def learn(self, schema: pa.Schema) -> None:
        """Take over the further columns of a schema, for all files that are written from now on."""
        for field in schema:
            if field.name not in self.schema.names and self._accepts(field.name):
                self.schema = self.schema.append(field)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in (self.schema.names if columns is None else columns)])

    def _kept(
        self,
        path: Location,
        source: "_Source",
        keep: pa.BooleanArray,
        columns: Sequence[str] | None,
        changes: Sequence[ColumnChange] = (),
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a file that `keep` marks."""
        start = 0
        for batch in self._batches(path, source, columns):
            for change in changes:
                batch = change.slice(start, len(batch)).applied(batch)
            yield batch.filter(keep.slice(start, len(batch))).cast(self._schema_of(columns))
            start += len(batch)

    def _sources(self, paths: Sequence[Location]) -> Iterator[tuple[Location, "_Source"]]:
        """Each path with its source, in order; one whose rows are remembered is not fetched. Raises OSError."""
        remembered = frozenset(self._remembered)
        fetched = _sources([path for path in paths if path.name not in remembered])
        for path in paths:
            yield (path, _NOT_FETCHED) if path.name in remembered else next(fetched)

    def _batches(self, path: Location, source: "_Source", columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        if (remembered := self._remembered.get(path.name)) is not None:
            yield self._completed(remembered, self.schema.names if columns is None else columns)
            return
        try:
            with pa.parquet.ParquetFile(source) as file:
                version = _format_of(path, file.schema_arrow)
                self.learn(file.schema_arrow)
                self._widths[path.name] = len(file.schema_arrow)
                names = self.schema.names if columns is None else list(columns)
                if 0 < file.metadata.num_rows <= _SMALL_ROWS and self._memory_left > 0:
                    rows = self._upgrade(file.read().combine_chunks().to_batches()[0], version)
                    yield self._completed(self._remember(path, rows), names)
                    return
                present = [name for name in names if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=present):
                    rows = self._completed(self._upgrade(batch, version), names)
                    yield rows.cast(self._schema_of(names))  # fails for a file of other columns
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            _check_readable(path)
            raise ResultsDamaged(path, path.name, str(error).partition("\n")[0]) from error

    def _remember(self, path: Location, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Hold the rows of a file, as long as there is room; the first for which there is none is the last that is tried."""
        self._memory_left -= rows.nbytes
        if self._memory_left >= 0:
            self._remembered[path.name] = rows
        return rows

    def _completed(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        present = set(batch.schema.names)
        columns = [
            batch.column(name) if name in present else pa.nulls(len(batch), self.schema.field(name).type)
            for name in names
        ]
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _write(self, path: Location, batches: Iterable[pa.RecordBatch]) -> None:
        schema = self.schema
        with atomic_write(path, self._aside) as local, pa.parquet.ParquetWriter(local, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema))
        self._remembered.pop(path.name, None)  # `batches` may have read the file just now


def _together(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows in few batches of at most `BATCH_ROWS`: a reader may do something costly for each, and files may be small."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if waiting and rows + len(batch) > BATCH_ROWS:
            yield from _joined(waiting)
            waiting, rows = [], 0
        waiting.append(batch)
        rows += len(batch)
    if waiting:
        yield from _joined(waiting)


def _joined(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch with all rows; none where there are no rows."""
    return pa.Table.from_batches(batches).combine_chunks().to_batches()


def _run(path: Location) -> int:
    """The run that wrote a file; 0 for the files of older versions, which sort before all others."""
    name = path.stem.split("-")[1]
    return int(name[1:]) if name.startswith("r") and name[1:].isdigit() else 0


# -- reading -----------------------------------------------------------------------------------------------------------

_Source: TypeAlias = Path | pa.BufferReader
"""The source of a file's content: its path on a disk, or the content of one in a store."""
_NOT_FETCHED = pa.BufferReader(b"")


def _source(path: Location) -> _Source:
    return path.local_path or pa.BufferReader(path.read_bytes())


def _sources(paths: Sequence[Location]) -> Iterator[tuple[Location, _Source]]:
    """Each path with its source, in order; files of a store are fetched ahead. Raises OSError."""
    if paths and paths[0].is_local:
        yield from ((path, _source(path)) for path in paths)
        return
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
    with named_errors(local), local.open("rb", buffering=0) as file:
        while file.read(_READ_BYTES):
            pass


def _format_of(path: Location, schema: pa.Schema) -> int:
    """The format of a file. Raises ResultsTooNew."""
    version = int((schema.metadata or {}).get(FORMAT_KEY, b"1"))
    if version > FORMAT:
        raise ResultsTooNew(
            f"{path} has format {version} and this version of ovi-ray reads up to {FORMAT}: update ovi-ray, or give"
            " another --out"
        )
    return version
