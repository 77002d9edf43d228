"""The results of a job: a Parquet dataset with a row for each clip, readable with any Parquet tool while it grows.

The row follows the file: a clip is done when its video is complete under its name, and then its row is written. A clip
that failed and is rendered again has both rows until the run ends; the later one counts.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.inputs.columns import is_meta
from ovi_ray.output.parquet_log import MERGE_FILES, CorruptFile, ParquetLog
from ovi_ray.output.result_row import RESULTS_SCHEMA, VIDEOS, with_rows_from_one
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location, PathOrUri, list_files, remove_unfinished, to_location

RESULTS = "results"
POSTERS = "posters"
_RESUME_COLUMNS = ("clip_id", "status", "video_bytes")


@dataclass(kw_only=True, slots=True, frozen=True)
class ResultsConfig:
    """When rows are written and files are merged."""

    flush_rows: int = 1000
    """Rows that may wait in memory."""
    flush_s: float = 2.0
    """Seconds that a row may wait in memory: what a killed driver loses is read from the videos again."""
    merge_files: int = MERGE_FILES
    """Files of one size class that are merged into one of the next."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ResumeState:
    """What earlier runs left in an output folder."""

    finished: pa.StringArray
    """Ids of the clips that are done: their row says so, and their video exists with the size in the row."""
    failed: pa.StringArray
    """Ids of the wanted clips that failed."""
    videos: pa.StringArray
    """Ids of the videos without a valid row: it was lost, or the video has another size."""
    notes: tuple[str, ...]
    """Messages for the user."""


class Results:
    """A job's results in its output folder. One process writes at a time."""

    def __init__(self, output_dir: PathOrUri, config: ResultsConfig | None = None) -> None:
        self.output_dir = to_location(output_dir)
        self.results = self.output_dir / RESULTS
        self.videos = self.output_dir / VIDEOS
        self.posters = self.output_dir / POSTERS
        for folder in (self.results, self.videos, self.posters):
            folder.mkdir()
        self._config = config or ResultsConfig()
        self._log = ParquetLog(
            self.results,
            RESULTS_SCHEMA,
            merge_files=self._config.merge_files,
            accepts=is_meta,
            upgrade=with_rows_from_one,
        )
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    @property
    def meta_columns(self) -> list[str]:
        """The lists' own columns, as far as rows with them were read or written."""
        return list(filter(is_meta, self._log.schema.names))

    def video_path(self, clip_id: str) -> Location:
        """The file of a clip's video."""
        return self.videos / f"{clip_id}.mp4"

    def poster_path(self, clip_id: str) -> Location:
        """The file of a clip's still."""
        return self.posters / f"{clip_id}.jpg"

    def read(self) -> pa.Table:
        """All rows on disk, the last one of each clip. Raises ResultsTooNew."""
        ids, counts, _ = self._log.read(["clip_id"])
        keep = _marks(len(ids), _last_places(ids.column("clip_id")))
        return pa.Table.from_batches(self._log.select(keep, counts), self._log.schema).replace_schema_metadata(None)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows on disk, the last one of each clip, at most `BATCH_ROWS` at a time.

        Raises ResultsTooNew.
        """
        ids, counts, _ = self._log.read(["clip_id"])
        yield from self._log.select(_marks(len(ids), _last_places(ids.column("clip_id"))), counts, columns)

    def done_ids(self) -> pa.StringArray:
        """Ids of the clips whose last row says done. Raises ResultsTooNew."""
        table, _, _ = self._log.read(["clip_id", "status"])
        table = table.take(_last_places(table.column("clip_id")))
        done = pc.equal(table.column("status"), ClipStatus.DONE)
        return table.column("clip_id").filter(done).combine_chunks()

    def resume(self, wanted: pa.Array | pa.ChunkedArray | None = None) -> ResumeState:
        """What is finished, for a run that renders the other clips of `wanted` (ids; None for all). Raises ResultsTooNew.

        Leaves at most one row for each clip. Rows are removed that say done where the video is missing or has another size,
        and that say failed for a clip that is not wanted. A corrupt file of rows is set aside, and the videos of its clips
        are returned as `videos`.
        """
        self._remove_unfinished()
        table, counts, corrupt = self._log.read(_RESUME_COLUMNS)
        notes = [self._set_aside(file) for file in corrupt]
        if corrupt:
            table, counts, _ = self._log.read(_RESUME_COLUMNS)
        videos = self._videos()
        is_done = _is_done(table, videos)
        keep = _marks(len(table), _last_places(table.column("clip_id")))
        is_failed = _is_failed(table, wanted)
        keep = pc.and_(keep, pc.or_(is_done, is_failed)).combine_chunks()
        if len(counts) > 1 or not pc.all(keep, min_count=0).as_py():
            self._log.rewrite(keep, counts)
        finished = table.column("clip_id").filter(pc.and_(keep, is_done)).combine_chunks()
        others = pc.invert(pc.is_in(videos.column("clip_id"), value_set=finished))
        return ResumeState(
            finished=finished,
            failed=table.column("clip_id").filter(pc.and_(keep, is_failed)).combine_chunks(),
            videos=videos.column("clip_id").filter(others).combine_chunks(),
            notes=tuple(notes),
        )

    def append(self, row: dict[str, Any]) -> None:
        """Add a clip's row. It is written by a later `append`, `flush_if_due` or `flush`.

        Raises OSError where it cannot be written; the row waits for the next flush.
        """
        self._rows.append(row)
        if len(self._rows) >= self._config.flush_rows:
            self.flush()

    def flush_if_due(self) -> None:
        """Write rows that have waited for `flush_s`. Raises OSError; the rows wait for the next flush."""
        if time.monotonic() - self._flushed_at >= self._config.flush_s:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait. Raises OSError; they wait for the next flush then."""
        self._flushed_at = time.monotonic()
        if self._rows:
            meta = dict.fromkeys(name for row in self._rows for name in row if is_meta(name))
            schema = pa.schema([*RESULTS_SCHEMA, *(pa.field(name, pa.string()) for name in meta)])
            self._log.append(pa.Table.from_pylist(self._rows, schema=schema))
            self._rows.clear()
            self._log.merge_in_background()

    def close(self) -> None:
        """Write all rows that wait, wait for the merge in the background and leave one row for each clip. Raises OSError."""
        self.flush()
        self._log.wait()
        ids, counts, corrupt = self._log.read(["clip_id"])
        last = _last_places(ids.column("clip_id"))
        if len(last) < len(ids) and not corrupt:
            self._log.rewrite(_marks(len(ids), last), counts)

    def _set_aside(self, corrupt: CorruptFile) -> str:
        hidden = self._log.set_aside(corrupt)
        return (
            f"{corrupt.path} cannot be read ({corrupt.reason}): it is kept as {hidden.name}, and its rows are rebuilt from"
            " the videos; clips without a video are rendered again"
        )

    def _videos(self) -> pa.Table:
        """Columns clip_id and size of the videos on disk."""
        files = list_files(self.videos, ".mp4")
        ids = pc.utf8_slice_codeunits(files.column("name"), 0, -len(".mp4"))
        return files.set_column(0, "clip_id", ids)

    def _remove_unfinished(self) -> None:
        """Remove what killed processes left half written."""
        self._log.remove_unfinished()
        for folder in (self.output_dir, self.videos, self.posters):
            remove_unfinished(folder)


def _is_done(table: pa.Table, videos: pa.Table) -> pa.ChunkedArray:
    """Whether each row says done and its video exists with the size in the row (any size where the row has none)."""
    place = pc.index_in(table.column("clip_id"), value_set=videos.column("clip_id"))
    size = videos.column("size").take(place)
    fits = pc.fill_null(pc.equal(size, table.column("video_bytes")), True)
    return pc.and_(pc.and_(pc.equal(table.column("status"), ClipStatus.DONE), pc.is_valid(place)), fits)


def _is_failed(table: pa.Table, wanted: pa.Array | pa.ChunkedArray | None) -> pa.ChunkedArray:
    """Whether each row says failed, for a clip that is wanted."""
    failed = pc.equal(table.column("status"), ClipStatus.FAILED)
    return failed if wanted is None else pc.and_(failed, pc.is_in(table.column("clip_id"), value_set=wanted))


def _last_places(ids: pa.ChunkedArray) -> pa.Array:
    """Index of the last occurrence of each distinct id, ascending."""
    places = pa.table({"id": ids, "place": pa.array(np.arange(len(ids)))})
    last = places.group_by("id").aggregate([("place", "max")]).column("place_max")
    return pa.array(np.sort(last.to_numpy()))


def _marks(length: int, places: pa.Array) -> pa.BooleanArray:
    """`length` values, true at `places`."""
    marks = np.zeros(length, np.bool_)
    marks[places.to_numpy()] = True
    return pa.array(marks)
