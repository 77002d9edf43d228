"""The results of a job: a Parquet dataset with a row for each clip, readable with any Parquet tool while it grows.

The row follows the file: a clip is done when its video is complete under its name, and then its row is written. When a
run starts, the rows of the clips that it renders again are dropped, so that no clip has two.

A clip may still have two rows where two drivers wrote, because one was taken for dead. One that says done counts more than
one that says failed, however late that came: a clip's id is a hash of its content, so its video is right. Of two that say
the same, the one of the later run counts.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import ResultsDamaged
from ovi_ray.inputs.columns import is_meta
from ovi_ray.output.broken_files import set_aside
from ovi_ray.output.parquet_log import ColumnChange, ParquetLog
from ovi_ray.output.result_row import RESULTS_SCHEMA, VIDEOS, in_current_form
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location, PathOrUri, list_files, remove_unfinished, to_location

T = TypeVar("T")
_log = logging.getLogger(__name__)

RESULTS = "results"
POSTERS = "posters"
UNFINISHED = ".unfinished"
"""Files of rows that are not complete: beside the results, where no pattern for them finds it."""
_RESUME_COLUMNS = ("clip_id", "status", "video_bytes", "current")
_LISTED_COLUMNS = ("row", "line", "repeat", "key", "varies", "image_path")
"""Columns that the list of the last run decides, whatever an earlier one said of the same clip; its `meta_` columns too."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ResultsConfig:
    """When rows are written, and when files are merged."""

    flush_rows: int = 1000
    """Rows that may wait in memory."""
    flush_s: float = 2.0
    """Seconds that a row may wait in memory: what a killed driver loses is read from the videos again."""
    max_flush_s: float = 300.0
    """The same in a folder of many files."""
    many_files: int = 100
    """From so many files on, rows wait longer: four times as long where there are twice as many files."""
    merge_files: int = 1000
    """A run that starts merges the files where there are more."""

    def flush_interval_s(self, files: int) -> float:
        """Seconds that a row may wait in a folder of so many files: ten days of work make a few thousand."""
        return min(self.flush_s * max(1.0, files / self.many_files) ** 2, max(self.flush_s, self.max_flush_s))


@dataclass(kw_only=True, slots=True, frozen=True)
class ResumeState:
    """The results that earlier runs left in an output folder."""

    finished: pa.StringArray
    """Ids of the clips that are done: their row says so, and their video exists with the size in the row."""
    failed: pa.StringArray
    """Ids of the wanted clips that failed."""
    videos: pa.StringArray
    """Ids of the videos without a valid row: it was lost, or the video has another size."""
    notes: tuple[str, ...]
    """Messages for the user."""


def read_rows(output_dir: Location, columns: Sequence[str]) -> pa.Table:
    """Columns of all rows on disk, of which a clip may have several. Raises ResultsTooNew and OSError."""
    log = ParquetLog(output_dir / RESULTS, RESULTS_SCHEMA, accepts=is_meta, upgrade=in_current_form)
    return log.read(columns)[0]


def measured_passes(output_dir: Location) -> dict[tuple[str, int], float]:
    """Mean passes of the transformer of the lossy clips in a folder, by quality and steps. Raises as `read_rows`."""
    rows = read_rows(output_dir, ["quality", "sample_steps", "passes"])
    rows = rows.filter(pc.is_valid(rows.column("passes")))
    means = rows.group_by(["quality", "sample_steps"]).aggregate([("passes", "mean")]).to_pylist()
    return {(line["quality"], line["sample_steps"]): line["passes_mean"] for line in means}


def read_resume_state(output_dir: Location) -> ResumeState:
    """The result of `Results.resume` for all clips, without changing anything. Raises ResultsTooNew and OSError.

    Rows of damaged files are left out: their videos are among those without a row.
    """
    table = read_rows(output_dir, _RESUME_COLUMNS)
    videos = _videos(output_dir / VIDEOS, None, 0.0)
    is_done = _is_done(table, videos)
    ids = table.column("clip_id")
    counts = _deciding(table, is_done)
    finished = ids.filter(pc.and_(counts, is_done)).combine_chunks()
    is_left = pc.invert(pc.is_in(videos.column("clip_id"), value_set=finished))
    return ResumeState(
        finished=finished,
        failed=ids.filter(pc.and_(counts, _says(table, ClipStatus.FAILED))).combine_chunks(),
        videos=videos.column("clip_id").filter(is_left).combine_chunks(),
        notes=(),
    )


class Results:
    """A job's results in its output folder. One process writes at a time."""

    def __init__(self, output_dir: PathOrUri, config: ResultsConfig | None = None, *, remembers_bytes: int = 0) -> None:
        """`remembers_bytes` is as in ParquetLog."""
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
            aside=self._aside(),
            accepts=is_meta,
            upgrade=in_current_form,
            remembers_bytes=remembers_bytes,
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
        """All rows on disk, the one that counts of each clip. Raises ResultsTooNew and OSError."""
        rows = list(self.batches())
        return pa.Table.from_batches(rows, self._log.schema).replace_schema_metadata(None)

    def batches(self, columns: Sequence[str] | None = None, *, current: bool | None = None) -> Iterator[pa.RecordBatch]:
        """Some or all columns of all rows on disk, the one that counts of each clip, at most `BATCH_ROWS` at a time.

        `current` chooses the clips that the list of the last run asks for, or the superseded ones; None both. Raises
        ResultsTooNew and OSError. Rows of a damaged file are left out; the next run sets it aside.
        """
        table, counts, _ = self._log.read(["clip_id", "status", "current"])
        chosen = _deciding(table, _says(table, ClipStatus.DONE))
        if current is not None:
            chosen = pc.and_(chosen, pc.equal(_is_current(table), current)).combine_chunks()
        yield from self._log.select(chosen, counts, columns)

    def current(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """`batches` of the clips that the list of the last run asks for."""
        return self.batches(columns, current=True)

    def resume(
        self,
        wanted: pa.Array | pa.ChunkedArray | None = None,
        *,
        newer_than: float = 0.0,
        listed: pa.Table | None = None,
    ) -> ResumeState:
        """The finished clips, for a run that renders the other clips of `wanted` (ids; None for all).

        `listed` is the manifest of this run's list, whose places and `meta_` columns the rows of its clips take over.

        Leaves at most one row for each clip, which says whether the clip is wanted. Rows are dropped that say done where the
        video is missing, has another size or, for a wanted clip, is not newer than `newer_than`, and that say failed for a
        clip that is not wanted. A damaged file of rows is set aside, and the videos of its clips are returned as `videos`.
        Raises ResultsTooNew, and OSError for rows that cannot be read: nothing was changed then.
        """
        self.remove_unfinished()
        names = [] if listed is None else [name for name in listed.column_names if is_meta(name)]
        self._log.learn(_own_schema(names))
        notes: list[str] = []
        return self._with_intact_files(lambda: self._resume(wanted, newer_than, listed, notes), notes.append)

    def _with_intact_files(self, work: Callable[[], T], tell: Callable[[str], None]) -> T:
        """The result of `work`, which is done again each time that it finds a damaged file, once that is set aside."""
        while True:
            try:
                return work()
            except ResultsDamaged as damaged:
                kept = set_aside(self.results / damaged.name)
                tell(
                    f"{damaged}: it is kept as {kept}, and its rows are rebuilt from the videos; clips without a video are"
                    " rendered again"
                )

    def _resume(
        self,
        wanted: pa.Array | pa.ChunkedArray | None,
        newer_than: float,
        listed: pa.Table | None,
        notes: Sequence[str],
    ) -> ResumeState:
        """See `resume`. Raises ResultsDamaged."""
        names = [] if listed is None else [n for n in listed.column_names if n in _LISTED_COLUMNS or is_meta(n)]
        table, counts, corrupt = self._log.read([*_RESUME_COLUMNS, *names])
        if corrupt:
            raise corrupt[0]
        if len(counts) > self._config.merge_files or not self._log.is_uniform:
            self._log.merge()
            counts = [sum(counts)]
        videos = _videos(self.videos, wanted, newer_than)
        is_done = _is_done(table, videos)
        is_failed = _is_failed(table, wanted)
        keep = pc.and_(_deciding(table, is_done), pc.or_(is_done, is_failed)).combine_chunks()
        changes = [] if listed is None else _places(table, listed, names)
        self._log.retain(keep, counts, [*_current_marks(table, wanted), *changes])
        finished = table.column("clip_id").filter(pc.and_(keep, is_done)).combine_chunks()
        others = pc.invert(pc.is_in(videos.column("clip_id"), value_set=finished))
        return ResumeState(
            finished=finished,
            failed=table.column("clip_id").filter(pc.and_(keep, is_failed)).combine_chunks(),
            videos=videos.column("clip_id").filter(others).combine_chunks(),
            notes=tuple(notes),
        )

    def drop(self, clip_ids: pa.Array | pa.ChunkedArray) -> None:
        """Drop the rows of clips that are rendered again. Raises OSError."""

        def drop() -> None:
            table, counts, _ = self._log.read(["clip_id"])
            self._log.retain(pc.invert(pc.is_in(table.column("clip_id"), value_set=clip_ids)).combine_chunks(), counts)

        self._with_intact_files(drop, _log.warning)

    def append(self, row: dict[str, Any]) -> None:
        """Add a clip's row. It is written by a later `append`, `flush_if_due` or `flush`.

        Raises OSError where it cannot be written; the row waits for the next flush.
        """
        self._rows.append(row)
        if len(self._rows) >= self._config.flush_rows:
            self.flush()

    def flush_if_due(self) -> None:
        """Write rows that have waited for the interval. Raises OSError; the rows wait for the next flush."""
        if time.monotonic() - self._flushed_at >= self._config.flush_interval_s(self._log.files):
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait. Raises OSError; they wait for the next flush then."""
        self._flushed_at = time.monotonic()
        if self._rows:
            own = dict.fromkeys(name for row in self._rows for name in row if is_meta(name))
            schema = pa.schema([*RESULTS_SCHEMA, *_own_schema(own)])
            self._log.append(pa.Table.from_pylist(self._rows, schema=schema))
            self._rows.clear()

    def close(self) -> None:
        """Write all rows that wait, at the end of a run. Raises OSError."""
        self.flush()

    def remove_unfinished(self) -> None:
        """Remove what killed processes left half written; only while none writes. Raises OSError."""
        for folder in (self._aside(), self.output_dir, self.results, self.videos, self.posters):
            remove_unfinished(folder)

    def _aside(self) -> Location:
        """The folder of files of rows that are not complete, on the file system of the results."""
        aside = self.output_dir / UNFINISHED
        aside.mkdir()
        local, results = aside.local_path, self.results.local_path
        is_elsewhere = local and results and local.stat().st_dev != results.stat().st_dev
        return self.results if is_elsewhere else aside


def _videos(folder: Location, wanted: pa.Array | pa.ChunkedArray | None, newer_than: float) -> pa.Table:
    """Columns clip_id, size and mtime of the videos on disk, those of wanted clips only if they are newer."""
    files = list_files(folder, ".mp4")
    ids = pc.utf8_slice_codeunits(files.column("name"), 0, -len(".mp4"))
    videos = files.set_column(0, "clip_id", ids)
    counts = pc.greater(videos.column("mtime"), newer_than)
    if wanted is not None:
        counts = pc.or_(counts, pc.invert(pc.is_in(ids, value_set=wanted)))
    return videos.filter(counts)


def _own_schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string()) for name in columns])


def _is_done(table: pa.Table, videos: pa.Table) -> pa.ChunkedArray:
    """Whether each row says done and its video exists with the size in the row (any size where the row has none)."""
    place = pc.index_in(table.column("clip_id"), value_set=videos.column("clip_id"))
    size = videos.column("size").take(place)
    fits = pc.fill_null(pc.equal(size, table.column("video_bytes")), True)
    return pc.and_(pc.and_(pc.equal(table.column("status"), ClipStatus.DONE), pc.is_valid(place)), fits)


def _is_failed(table: pa.Table, wanted: pa.Array | pa.ChunkedArray | None) -> pa.ChunkedArray:
    """Whether each row says failed, for a clip that is wanted."""
    failed = _says(table, ClipStatus.FAILED)
    return failed if wanted is None else pc.and_(failed, pc.is_in(table.column("clip_id"), value_set=wanted))


def _current_marks(table: pa.Table, wanted: pa.Array | pa.ChunkedArray | None) -> Iterator[ColumnChange]:
    """A mask of the rows of wanted clips; nothing where all are."""
    if wanted is not None:
        is_wanted = pc.is_in(table.column("clip_id"), value_set=wanted).combine_chunks()
        differs = pc.not_equal(is_wanted, _is_current(table)).combine_chunks()
        yield ColumnChange(name="current", values=is_wanted, differs=differs)


def _places(table: pa.Table, listed: pa.Table, names: Sequence[str]) -> Iterator[ColumnChange]:
    """Columns of the rows as the list has them for its clips; the other rows keep theirs."""
    place = pc.index_in(table.column("clip_id"), value_set=listed.column("clip_id"))
    is_listed = pc.is_valid(place)
    for name in names:
        old = table.column(name)
        new = pc.if_else(is_listed, listed.column(name).take(place).cast(old.type), old)
        same = pc.or_(pc.fill_null(pc.equal(old, new), False), pc.and_(pc.is_null(old), pc.is_null(new)))
        yield ColumnChange(name=name, values=new.combine_chunks(), differs=pc.invert(same).combine_chunks())


def _is_current(table: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(table.column("current"), True)


def _says(table: pa.Table, status: ClipStatus) -> pa.ChunkedArray:
    return pc.equal(table.column("status"), status)


def _deciding(table: pa.Table, is_done: pa.ChunkedArray) -> pa.BooleanArray:
    """Whether each row is the one that counts of its clip: the last of those that are done, or of all if none is."""
    place = np.arange(len(table))
    rank = place + len(table) * np.asarray(is_done)
    ranks = pa.table({"id": table.column("clip_id"), "rank": rank})
    best = ranks.group_by("id").aggregate([("rank", "max")]).column("rank_max").to_numpy()
    marks = np.zeros(len(table), np.bool_)
    marks[best % max(1, len(table))] = True
    return pa.array(marks)
