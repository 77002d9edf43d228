"""A table that grows on disk: Parquet files of one schema in a folder, read in the order in which they were written.

A file is complete or absent. Many small files are merged into few large ones, always neighbours, so the order stays. A
crash while files are replaced leaves rows twice, never less than once: whoever needs each row once takes the last.
"""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet

from ovi_ray.errors import ResultsTooNew
from ovi_ray.storage.diagnostics import storage_error
from ovi_ray.storage.paths import BATCH_ROWS, Location, list_files, local_copy, remove_unfinished, rename, written

FORMAT = 2  # of the files; 1 had no number
FORMAT_KEY = b"ovi_ray.format"
MERGE_FILES = 32  # neighbours of one size class that are merged into one of the next
REWRITTEN = 9  # size class of a file that holds all that there was
_SUFFIX = ".parquet"


@dataclass(kw_only=True, slots=True, frozen=True)
class Corrupt:
    """A file that cannot be read."""

    path: Location
    reason: str


class Fragments:
    """The files of one table. One process writes at a time; any number read."""

    def __init__(self, folder: Location, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema.with_metadata({FORMAT_KEY: str(FORMAT).encode()})
        self._last_stamp = max((_stamp(path) for path in self.paths()), default=0)
        self._merging: threading.Thread | None = None

    def paths(self) -> list[Location]:
        """Files of the table, oldest first."""
        names = list_files(self.folder, _SUFFIX).column("name").to_pylist()
        return [self.folder / name for name in sorted(names) if name.startswith("part-")]

    def append(self, table: pa.Table) -> None:
        """Add rows as a file of their own, which is on disk when this returns. Raises OSError."""
        self._write(self._next_path(), table.to_batches())

    def batches(self, path: Location, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of a file, a bounded number at a time; columns that it lacks are null.

        Raises ResultsTooNew, or pa.ArrowException and OSError for a file that is corrupt or unreadable.
        """
        names = self.schema.names if columns is None else list(columns)
        with local_copy(path) as local, pa.parquet.ParquetFile(local) as file:
            _check_format(path, file.schema_arrow)
            there = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH_ROWS, columns=there):
                yield self._completed(batch, names)

    def read(self, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[int], list[Corrupt]]:
        """All rows in order, how many of them each of `paths()` holds, and the files that cannot be read.

        Raises ResultsTooNew, and OSError where storage cannot be reached: such a file is not corrupt.
        """
        names = self.schema.names if columns is None else list(columns)
        found: list[pa.RecordBatch] = []
        counts, corrupt = [], []
        for path in self.paths():
            try:
                batches = list(self.batches(path, names))
            except FileNotFoundError:  # merged away meanwhile: its rows are in another file now
                return self.read(columns)
            except (pa.ArrowException, OSError) as error:
                if storage_error(error):
                    raise
                batches = []
                corrupt.append(Corrupt(path=path, reason=str(error)))
            counts.append(sum(map(len, batches)))
            found += batches
        schema = self._schema_of(names)
        return pa.Table.from_batches([batch.cast(schema) for batch in found], schema), counts, corrupt

    def kept(
        self, keep: pa.BooleanArray, counts: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that `keep` marks, a bounded number at a time; `keep` and `counts` go by what `read` gave.

        Raises what `batches` does, and ValueError where there are more or fewer files by now.
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
        """Leave one file with the rows that `keep` marks, streamed; `keep` and `counts` go by what `read` gave."""
        old = self.paths()
        self._write(self._next_path(level=REWRITTEN), self.kept(keep, counts))
        for path in old:  # only now: a crash in between leaves rows twice
            path.unlink()

    def set_aside(self, corrupt: Corrupt) -> Location:
        """Hide a file that cannot be read from every reader, and keep it for whoever wants to look at it."""
        return rename(corrupt.path, f".corrupt-{corrupt.path.name}")

    def sweep(self) -> None:
        """Remove what a killed process left half written."""
        remove_unfinished(self.folder)

    # -- merging ---------------------------------------------------------------------------------------------------

    def merge_in_background(self) -> None:
        """Start merging small files if there are many and no merge is under way."""
        if self._merging is not None and self._merging.is_alive():
            return
        group = self._next_merge()
        if group:
            self._merging = threading.Thread(target=self._merge, args=(group,), name="ledger-merge", daemon=True)
            self._merging.start()

    def wait(self) -> None:
        """Wait until no merge is under way."""
        if self._merging is not None:
            self._merging.join()

    def _next_merge(self) -> list[Location]:
        """Neighbours of one size class, when there are enough."""
        groups = (list(group) for _, group in itertools.groupby(self.paths(), key=_level))
        return next((group for group in groups if len(group) >= MERGE_FILES), [])

    def _merge(self, group: Sequence[Location]) -> None:
        last = group[-1]
        merged = self._path(_stamp(last), _level(last) + 1)
        try:
            self._write(merged, (batch for path in group for batch in self.batches(path)))
        except (pa.ArrowException, OSError):  # a full disk or a broken file: nothing is lost by not merging
            return
        for path in group:
            path.unlink(missing_ok=True)

    # -- files -----------------------------------------------------------------------------------------------------

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in (self.schema.names if columns is None else columns)])

    def _completed(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        columns = [
            batch.column(name) if name in batch.schema.names else pa.nulls(len(batch), self.schema.field(name).type)
            for name in names
        ]
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    def _write(self, path: Location, batches: Iterable[pa.RecordBatch]) -> None:
        with written(path) as local, pa.parquet.ParquetWriter(local, self.schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(self.schema))

    def _next_path(self, level: int = 0) -> Location:
        self._last_stamp = max(
            time.time_ns(), self._last_stamp + 1
        )  # a clock that runs backwards must not reorder rows
        return self._path(self._last_stamp, level)

    def _path(self, stamp: int, level: int) -> Location:
        return self.folder / f"part-{stamp:020d}{f'-{level}' if level else ''}.parquet"


def _stamp(path: Location) -> int:
    digits = path.stem.split("-")[1]
    return int(digits) if digits.isdigit() else 0


def _level(path: Location) -> int:
    """How often its rows were merged."""
    parts = path.stem.split("-")
    return int(parts[2]) if len(parts) > 2 else 0


def _check_format(path: Location, schema: pa.Schema) -> None:
    version = int((schema.metadata or {}).get(FORMAT_KEY, b"1"))
    if version > FORMAT:
        raise ResultsTooNew(
            f"{path} has format {version} and this version of ovi-ray reads up to {FORMAT}: update ovi-ray, or give"
            " another --out"
        )
