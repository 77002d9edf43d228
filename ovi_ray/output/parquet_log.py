"""An append-only table: Parquet files in a folder, read in the order in which they were written.

All files have the columns of one schema. They may have further columns, of names that the table accepts; these stay too.

A file is complete or absent. Many small files are merged into few large ones, always neighbours, so the order stays. A
crash while files are replaced leaves rows twice, never less than once: readers that need each row once take the last.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet

from ovi_ray.errors import ResultsTooNew
from ovi_ray.storage.diagnostics import storage_error
from ovi_ray.storage.paths import BATCH_ROWS, Location, atomic_write, list_files, local_copy, remove_unfinished

FORMAT = 3  # of the files; 1 had no number, and up to 2 rows of the prompt list were counted from 0
FORMAT_KEY = b"ovi_ray.format"
MERGE_FILES = 32
"""Neighbours of one level that are merged into one file of the next."""
REWRITTEN_LEVEL = 9
"""Level of a file that holds all rows there were."""
_SUFFIX = ".parquet"
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class CorruptFile:
    """A file that cannot be read."""

    path: Location
    reason: str


class ParquetLog:
    """The files of one table. One process writes at a time; any number read."""

    def __init__(
        self,
        folder: Location,
        schema: pa.Schema,
        *,
        merge_files: int = MERGE_FILES,
        accepts: Callable[[str], bool] = lambda name: False,
        upgrade: Callable[[pa.RecordBatch, int], pa.RecordBatch] = lambda batch, version: batch,
    ) -> None:
        """`accepts` tells by name which further columns files may have; `upgrade` makes rows of an older format current."""
        self.folder = folder
        self.schema = schema.with_metadata({FORMAT_KEY: str(FORMAT).encode()})
        self._accepts = accepts
        self._upgrade = upgrade
        self._merge_files = merge_files
        self._last_stamp = max((_stamp(path) for path in self.paths()), default=0)
        self._merge: Future[None] | None = None

    def paths(self) -> list[Location]:
        """Files of the table, oldest first."""
        names = list_files(self.folder, _SUFFIX).column("name").to_pylist()
        return [self.folder / name for name in sorted(names) if name.startswith("part-")]

    def append(self, table: pa.Table) -> None:
        """Add rows as a file of their own, which is on disk when this returns. Raises OSError."""
        self._learn(table.schema)
        names = self.schema.names
        self._write(self._next_path(), (self._completed(batch, names) for batch in table.to_batches()))

    def batches(self, path: Location, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of a file, at most `BATCH_ROWS` at a time; columns that it lacks are null.

        Raises ResultsTooNew, or pa.ArrowException and OSError for a file that is corrupt or unreadable.
        """
        with local_copy(path) as local, pa.parquet.ParquetFile(local) as file:
            version = _format_of(path, file.schema_arrow)
            self._learn(file.schema_arrow)
            names = self.schema.names if columns is None else list(columns)
            present = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH_ROWS, columns=present):
                yield self._completed(self._upgrade(batch, version), names)

    def read(self, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[int], list[CorruptFile]]:
        """All rows in order, the number of rows in each of `paths()`, and the files that cannot be read.

        Raises ResultsTooNew, and OSError where storage cannot be reached: such a file is not corrupt.
        """
        names = self.schema.names if columns is None else list(columns)
        found: list[pa.RecordBatch] = []
        counts, corrupt = [], []
        for path in self.paths():
            try:
                batches = list(self.batches(path, names))
            except FileNotFoundError:  # merged meanwhile: its rows are in another file now
                return self.read(columns)
            except (pa.ArrowException, OSError) as error:
                if storage_error(error):
                    raise
                batches = []
                corrupt.append(CorruptFile(path=path, reason=str(error)))
            counts.append(sum(map(len, batches)))
            found += batches
        schema = self._schema_of(names)
        return pa.Table.from_batches([batch.cast(schema) for batch in found], schema), counts, corrupt

    def select(
        self, keep: pa.BooleanArray, counts: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that `keep` marks, at most `BATCH_ROWS` at a time.

        `keep` has a value for each row that `read` returned, and `counts` are those of `read`. Raises what `batches` does,
        and ValueError where the number of files has changed since.
        """
        schema = self._schema_of(columns)
        start = 0
        for path, count in zip(self.paths(), counts, strict=True):
            if not count:  # perhaps corrupt
                continue
            for batch in self.batches(path, schema.names):
                yield batch.filter(keep.slice(start, len(batch))).cast(schema)
                start += len(batch)

    def rewrite(self, keep: pa.BooleanArray, counts: Sequence[int]) -> None:
        """Leave one file with the rows that `keep` marks, streamed. For `keep` and `counts` see `select`."""
        old = self.paths()
        self._write(self._next_path(level=REWRITTEN_LEVEL), self.select(keep, counts))
        for path in old:  # only now: a crash in between leaves rows twice
            path.unlink(missing_ok=True)

    def set_aside(self, corrupt: CorruptFile) -> Location:
        """Hide a corrupt file from every reader, but keep it for inspection. Returns its new path."""
        return corrupt.path.rename(f".corrupt-{corrupt.path.name}")

    def remove_unfinished(self) -> None:
        """Remove what a killed process left half written."""
        remove_unfinished(self.folder)

    # -- merging ---------------------------------------------------------------------------------------------------

    def merge_in_background(self) -> None:
        """Start merging small files if there are enough and no merge is under way.

        A merge that storage or a corrupt file prevents is logged and tried again with the next call: no row depends on it.
        Any other exception of the last merge is raised here, or by `wait`.
        """
        if self._merge is not None and not self._merge.done():
            return
        self._settle_merge()
        group = self._next_merge()
        if not group:
            return
        self._merge = Future()
        threading.Thread(target=self._run_merge, args=(group, self._merge), name="results-merge", daemon=True).start()

    def wait(self) -> None:
        """Wait until no merge is under way. Raises as `merge_in_background` does."""
        self._settle_merge()

    def _settle_merge(self) -> None:
        merge, self._merge = self._merge, None
        error = merge.exception() if merge is not None else None
        if isinstance(error, pa.ArrowException | OSError):
            _log.warning("Small files in %s could not be merged and stay as they are: %s", self.folder, error)
        elif error is not None:
            raise error

    def _next_merge(self) -> list[Location]:
        """Neighbours of one level, when there are enough."""
        groups = (list(group) for _, group in itertools.groupby(self.paths(), key=_level))
        return next((group for group in groups if len(group) >= self._merge_files), [])

    def _run_merge(self, group: Sequence[Location], outcome: Future[None]) -> None:
        try:
            self._merge_files_of(group)
            outcome.set_result(None)
        except BaseException as error:  # `_settle_merge` decides
            outcome.set_exception(error)

    def _merge_files_of(self, group: Sequence[Location]) -> None:
        last = group[-1]
        merged = self._path(_stamp(last), _level(last) + 1)
        for path in group:  # the file to write needs the columns of all of them
            next(self.batches(path, []), None)
        self._write(merged, (batch for path in group for batch in self.batches(path)))
        for path in group:
            path.unlink(missing_ok=True)

    # -- files -----------------------------------------------------------------------------------------------------

    def _learn(self, schema: pa.Schema) -> None:
        """Take over the further columns of a file."""
        for field in schema:
            if field.name not in self.schema.names and self._accepts(field.name):
                self.schema = self.schema.append(field)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in (self.schema.names if columns is None else columns)])

    def _completed(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        columns = [
            batch.column(name) if name in batch.schema.names else pa.nulls(len(batch), self.schema.field(name).type)
            for name in names
        ]
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _write(self, path: Location, batches: Iterable[pa.RecordBatch]) -> None:
        schema = self.schema
        with atomic_write(path) as local, pa.parquet.ParquetWriter(local, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema))

    def _next_path(self, level: int = 0) -> Location:
        """A path after all others, even when the clock went back."""
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        return self._path(self._last_stamp, level)

    def _path(self, stamp: int, level: int) -> Location:
        return self.folder / f"part-{stamp:020d}{f'-{level}' if level else ''}.parquet"


def _stamp(path: Location) -> int:
    """Nanoseconds since the epoch at which the last rows of a file were written."""
    digits = path.stem.split("-")[1]
    return int(digits) if digits.isdigit() else 0


def _level(path: Location) -> int:
    """How often the rows of a file were merged."""
    parts = path.stem.split("-")
    return int(parts[2]) if len(parts) > 2 else 0


def _format_of(path: Location, schema: pa.Schema) -> int:
    """The format of a file. Raises ResultsTooNew."""
    version = int((schema.metadata or {}).get(FORMAT_KEY, b"1"))
    if version > FORMAT:
        raise ResultsTooNew(
            f"{path} has format {version} and this version of ovi-ray reads up to {FORMAT}: update ovi-ray, or give"
            " another --out"
        )
    return version
