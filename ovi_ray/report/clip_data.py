"""The clips of a job as data in its report: columns in JSON, compressed, so that ten thousand clips are a small page.

A chunk is `{"rows": n, "columns": {name: {"values": [...], "codes": [...]}}}`: each value once, and its number for each row; a
column with one value has no codes. Names and values are data: the page shows them as text, never as markup.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi.stages import TIME_GROUPS
from ovi_ray.inputs.columns import QUALITY_COLUMN, is_meta
from ovi_ray.inputs.manifest import MANIFEST_SCHEMA
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.output.result_row import LOSS_FIELDS, RESULTS_SCHEMA
from ovi_ray.report.overview import ClipCounts
from ovi_ray.report.result_queries import Batches, read_columns, with_status
from ovi_ray.scheduling.task import ClipStatus

WAITING = "waiting"
"""Status of a clip that has not ended."""
CHUNK_ROWS = 5_000
SHOWN = (
    "clip_id",
    "row",
    "line",
    "repeat",
    "text_prompt",
    "image_path",
    "seed",
    "model_name",
    "sample_steps",
    "solver_name",
    "height",
    "width",
    "status",
    "error",
    "video_path",
    "video_bytes",
    "worker",
    "paired_with",
    "decode_worker",
    "node",
    "device",
    "attention_backend",
    "dtype",
    QUALITY_COLUMN,
    *(field.name for field in LOSS_FIELDS),
    "attempts",
    *(f"{group}_s" for group in TIME_GROUPS),
    "finished_at",
    "notes",
)
"""Columns of the results that the page holds; tracebacks are in the table of failures and in the results."""
_DIGITS = 2  # after the point, of seconds
_DIGITS_OF_LOSS = 4
_ORDER = [("row", "ascending"), ("repeat", "ascending"), ("clip_id", "ascending")]


def clip_table(
    results: Batches, manifest: pa.Table | None, meta_columns: Sequence[str], limit: int
) -> tuple[pa.Table, int]:
    """The first `limit` clips and the number of all: ended ones, and those of the list that wait, in the order of the list;
    after them the superseded ones.

    Beside `SHOWN` and the `meta_` columns they have the parameters that differ within the list, and `current`: whether the
    clip is in the list. Without a manifest every clip is.
    """
    names = [*SHOWN, *(name for name in meta_columns if name not in SHOWN)]
    schema = pa.schema(
        [RESULTS_SCHEMA.field(name) if name in RESULTS_SCHEMA.names else pa.field(name, pa.string()) for name in names]
    )
    schema = pa.schema([field.with_nullable(True) for field in schema])
    keys = pa.Table.from_batches((batch.cast(_KEYS) for batch in results(_KEYS.names)), _KEYS)
    waiting = _waiting(manifest, keys.column("clip_id"))
    order = _sorted(pa.concat_tables([keys, waiting.select(_KEYS.names).cast(_KEYS)]), manifest)
    wanted = order.column("clip_id").slice(0, limit).combine_chunks()
    found = (batch.filter(pc.is_in(batch.column("clip_id"), value_set=wanted)) for batch in results(names))
    ended = pa.Table.from_batches((batch.cast(schema) for batch in found), schema)
    waiting = waiting.filter(pc.is_in(waiting.column("clip_id"), value_set=wanted))
    table = _sorted(pa.concat_tables([ended, waiting], promote_options="permissive"), manifest)
    return _with_manifest(table, manifest), len(order)


def chunks(table: pa.Table) -> Iterator[str]:
    """The rows, `CHUNK_ROWS` at a time, as base64 of compressed JSON."""
    for start in range(0, len(table), CHUNK_ROWS):
        yield packed(_columns(table.slice(start, CHUNK_ROWS)))


def packed(value: object) -> str:
    """Any value as base64 of compressed JSON; the same value gives the same text."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), compresslevel=6, mtime=0)).decode()


_KEYS = pa.schema([("row", pa.int64()), ("repeat", pa.int32()), ("clip_id", pa.string())])


def _waiting(manifest: pa.Table | None, ended: pa.ChunkedArray) -> pa.Table:
    """The clips of the list that have not ended."""
    if manifest is None:
        return pa.table({name: pa.array([], _KEYS.field(name).type) for name in _KEYS.names})
    missing = manifest.filter(pc.invert(pc.is_in(manifest.column("clip_id"), value_set=ended)))
    names = [name for name in missing.column_names if name in SHOWN or is_meta(name)]
    return missing.select(names).append_column("status", pa.repeat(WAITING, len(missing)))


def _sorted(clips: pa.Table, manifest: pa.Table | None) -> pa.Table:
    """The clips of the list in its order, then the others."""
    if manifest is None:
        return clips.sort_by(_ORDER)
    is_superseded = pc.invert(pc.is_in(clips.column("clip_id"), value_set=manifest.column("clip_id")))
    ordered = clips.append_column("superseded", is_superseded).sort_by([("superseded", "ascending"), *_ORDER])
    return ordered.drop_columns(["superseded"])


def _with_manifest(table: pa.Table, manifest: pa.Table | None) -> pa.Table:
    if manifest is None:
        return table.append_column("current", pa.repeat(True, len(table)))
    place = pc.index_in(table.column("clip_id"), value_set=manifest.column("clip_id"))
    table = table.append_column("current", pc.is_valid(place))
    for name in varying_parameters(manifest):
        if name not in table.column_names:
            table = table.append_column(name, manifest.column(name).take(place))
    return table


def varying_parameters(manifest: pa.Table) -> list[str]:
    """The sampling parameters that differ within a list; the seed, which nearly always does, is one of the columns shown."""
    names = [name for name in PARAM_FIELDS if name in manifest.column_names and name in MANIFEST_SCHEMA.names]
    return [name for name in names if len(pc.unique(manifest.column(name))) > 1]


def _columns(table: pa.Table) -> dict[str, Any]:
    return {"rows": len(table), "columns": {name: _column(name, table.column(name)) for name in table.column_names}}


def _column(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.int64())
    elif pa.types.is_floating(column.type):
        column = pc.round(column, _DIGITS_OF_LOSS if name.endswith("_loss") else _DIGITS)
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    return {"values": values} if len(values) == 1 else {"values": values, "codes": encoded.indices.to_pylist()}


def count_clips(results: Batches, manifest: pa.Table | None) -> ClipCounts:
    """The clips of the list by how they ended, and those that are not in it any more."""
    ended = read_columns(results, ["clip_id", "status"])
    if manifest is None:
        current = ended
    else:
        current = ended.filter(pc.is_in(ended.column("clip_id"), value_set=manifest.column("clip_id")))
    done = len(with_status(current, ClipStatus.DONE))
    return ClipCounts(done=done, failed=len(current) - done, superseded=len(ended) - len(current))
