"""Queries on a job's results for the report: counts, filters and the first rows, with bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute

from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.scheduling.task import ClipStatus

Batches = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Column names -> these columns of all results, a bounded number of rows at a time: `Results.batches`."""

_ORDER = [("row", "ascending"), ("repeat", "ascending"), ("clip_id", "ascending")]


def of_list(results: Batches, manifest: pa.Table | None) -> Batches:
    """The results of the clips of a list; all of them where there is no manifest of it."""
    if manifest is None:
        return results

    def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in results(list(dict.fromkeys([*names, "clip_id"]))):
            is_listed = pa.compute.is_in(batch.column("clip_id"), value_set=manifest.column("clip_id"))
            yield batch.filter(is_listed).select(list(names))

    return batches


def read_columns(results: Batches, names: Sequence[str]) -> pa.Table:
    """The named columns of all results, in any order of rows."""
    return pa.Table.from_batches(results(names), pa.schema([RESULTS_SCHEMA.field(name) for name in names]))


def count_status(results: Batches, status: ClipStatus) -> int:
    """Number of results with a status."""
    return len(with_status(read_columns(results, ["status"]), status))


def count_noted(results: Batches) -> int:
    """Number of finished results with a note."""
    rows = with_status(read_columns(results, ["status", "notes"]), ClipStatus.DONE)
    return len(rows) - rows.column("notes").null_count


def first_rows(results: Batches, status: ClipStatus, limit: int, meta_columns: Sequence[str] = ()) -> pa.Table:
    """The first `limit` results with a status, complete and in the order of the prompt list.

    Of the other results only four columns are held in memory.
    """
    keys = with_status(read_columns(results, ["status", "row", "repeat", "clip_id"]), status).sort_by(_ORDER)
    ids = keys.column("clip_id").slice(0, limit)
    schema = pa.schema([*RESULTS_SCHEMA, *(pa.field(name, pa.string()) for name in meta_columns)])
    batches = results(schema.names)
    found = (batch.filter(pa.compute.is_in(batch.column("clip_id"), value_set=ids)) for batch in batches)
    return pa.Table.from_batches(found, schema).sort_by(_ORDER)


def with_status(rows: pa.Table, status: ClipStatus) -> pa.Table:
    """The rows with a status."""
    return rows.filter(pa.compute.equal(rows.column("status"), str(status)))


def finished_since(rows: pa.Table, time: datetime) -> pa.Table:
    """The rows that finished at or after `time`, compared in milliseconds, the resolution of the results."""
    since = pa.scalar(time.replace(microsecond=time.microsecond // 1000 * 1000), pa.timestamp("ms", tz="UTC"))
    return rows.filter(pa.compute.greater_equal(rows.column("finished_at"), since))
