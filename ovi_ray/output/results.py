"""The durable results of a job: a Parquet dataset with a row for each clip, readable with any Parquet tool while it grows.

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

from ovi_ray.output.parquet_log import Corrupt, Fragments
from ovi_ray.output.result_row import RESULTS_SCHEMA, VIDEOS
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location, list_files, remove_unfinished

RESULTS = "results"
POSTERS = "posters"
FLUSH_ROWS = 1000
FLUSH_S = 2.0
_JUDGED = ("clip_id", "status", "video_bytes")


@dataclass(kw_only=True, slots=True, frozen=True)
class Found:
    """What a run finds in its output folder."""

    finished: pa.StringArray
    """Ids of the clips that are done: their row says so and their video is there with the size that it says."""
    failed: pa.StringArray
    """Ids of the clips that failed, of those that are wanted."""
    videos: pa.StringArray
    """Ids of the other videos that are there: of a row that was lost, or broken."""
    notes: tuple[str, ...]
    """What the user should know."""


class Results:
    """A job's results in its output folder. One process writes at a time."""

    def __init__(self, output_dir: Location) -> None:
        self.output_dir = output_dir
        self.results = output_dir / RESULTS
        self.videos = output_dir / VIDEOS
        self.posters = output_dir / POSTERS
        for folder in (self.results, self.videos, self.posters):
            folder.mkdir(parents=True, exist_ok=True)
        self._fragments = Fragments(self.results, RESULTS_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def video_path(self, clip_id: str) -> Location:
        """Where a clip's video lies."""
        return self.videos / f"{clip_id}.mp4"

    def poster_path(self, clip_id: str) -> Location:
        """Where a clip's still lies."""
        return self.posters / f"{clip_id}.jpg"

    def read(self) -> pa.Table:
        """All rows that are written, the last one of each clip. Raises ResultsTooNew."""
        return pa.Table.from_batches(self.batches(RESULTS_SCHEMA.names), RESULTS_SCHEMA)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows that are written, the last one of each clip, a bounded number at a time.

        Raises ResultsTooNew.
        """
        ids, counts, _ = self._fragments.read(["clip_id"])
        yield from self._fragments.kept(_marks(len(ids), _last_places(ids.column("clip_id"))), counts, columns)

    def done_ids(self) -> pa.StringArray:
        """Ids of the clips whose last row says done. Raises ResultsTooNew."""
        table, _, _ = self._fragments.read(["clip_id", "status"])
        table = table.take(_last_places(table.column("clip_id")))
        done = pc.equal(table.column("status"), ClipStatus.DONE)
        return table.column("clip_id").filter(done).combine_chunks()

    def resume(self, wanted: pa.Array | pa.ChunkedArray | None = None) -> Found:
        """What is finished, for a run that renders the rest of the clips `wanted` (ids; None for all). Raises ResultsTooNew.

        Leaves one row for each clip: none that says done where the video is gone or has another size, and none that says
        failed of a clip that is not wanted. A file of rows that cannot be read is set aside; the videos of its clips are
        told like any without a row.
        """
        self._sweep()
        table, counts, corrupt = self._fragments.read(_JUDGED)
        notes = [self._set_aside(file) for file in corrupt]
        if corrupt:
            table, counts, _ = self._fragments.read(_JUDGED)
        videos = self._videos()
        is_done = _is_done(table, videos)
        keep = _marks(len(table), _last_places(table.column("clip_id")))
        is_failed = _is_failed(table, wanted)
        keep = pc.and_(keep, pc.or_(is_done, is_failed)).combine_chunks()
        if len(counts) > 1 or not pc.all(keep, min_count=0).as_py():
            self._fragments.rewrite(keep, counts)
        finished = table.column("clip_id").filter(pc.and_(keep, is_done)).combine_chunks()
        others = pc.invert(pc.is_in(videos.column("clip_id"), value_set=finished))
        return Found(
            finished=finished,
            failed=table.column("clip_id").filter(pc.and_(keep, is_failed)).combine_chunks(),
            videos=videos.column("clip_id").filter(others).combine_chunks(),
            notes=tuple(notes),
        )

    def append(self, row: dict[str, Any]) -> None:
        """Add a clip's row; it is on disk after at most a few seconds of further appends, or `flush`.

        Raises OSError where it cannot be written; the row waits for the next flush.
        """
        self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush_if_due(self) -> None:
        """Write what has waited for long enough. Raises OSError; the rows wait for the next flush."""
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write every row that was appended. Raises OSError; the rows wait for the next flush."""
        self._flushed_at = time.monotonic()
        if self._rows:
            self._fragments.append(pa.Table.from_pylist(self._rows, schema=RESULTS_SCHEMA))
            self._rows.clear()
            self._fragments.merge_in_background()

    def close(self) -> None:
        """Write what waits, end the work in the background and leave one row for each clip. Raises OSError."""
        self.flush()
        self._fragments.wait()
        ids, counts, corrupt = self._fragments.read(["clip_id"])
        last = _last_places(ids.column("clip_id"))
        if len(last) < len(ids) and not corrupt:
            self._fragments.rewrite(_marks(len(ids), last), counts)

    def _set_aside(self, corrupt: Corrupt) -> str:
        hidden = self._fragments.set_aside(corrupt)
        return (
            f"{corrupt.path} cannot be read ({corrupt.reason}): it is kept as {hidden.name}, and the clips that it held are"
            " taken from their videos, or rendered again"
        )

    def _videos(self) -> pa.Table:
        """clip_id, size: the videos that are there."""
        files = list_files(self.videos, ".mp4")
        ids = pc.utf8_slice_codeunits(files.column("name"), 0, -len(".mp4"))
        return files.set_column(0, "clip_id", ids)

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        self._fragments.sweep()
        for folder in (self.output_dir, self.videos, self.posters):
            remove_unfinished(folder)


def _is_done(table: pa.Table, videos: pa.Table) -> pa.ChunkedArray:
    """Whether each row says done and its video is there with the size that it says (any, where it says none)."""
    place = pc.index_in(table.column("clip_id"), value_set=videos.column("clip_id"))
    size = videos.column("size").take(place)
    fits = pc.fill_null(pc.equal(size, table.column("video_bytes")), True)
    return pc.and_(pc.and_(pc.equal(table.column("status"), ClipStatus.DONE), pc.is_valid(place)), fits)


def _is_failed(table: pa.Table, wanted: pa.Array | pa.ChunkedArray | None) -> pa.ChunkedArray:
    failed = pc.equal(table.column("status"), ClipStatus.FAILED)
    return failed if wanted is None else pc.and_(failed, pc.is_in(table.column("clip_id"), value_set=wanted))


def _last_places(ids: pa.ChunkedArray) -> pa.Array:
    """Where each distinct id is for the last time, in order."""
    places = pa.table({"id": ids, "place": pa.array(np.arange(len(ids)))})
    last = places.group_by("id").aggregate([("place", "max")]).column("place_max")
    return pa.array(np.sort(last.to_numpy()))


def _marks(length: int, places: pa.Array) -> pa.BooleanArray:
    marks = np.zeros(length, np.bool_)
    marks[places.to_numpy()] = True
    return pa.array(marks)
