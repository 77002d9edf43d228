"""Files of an output folder beside the results: the job and its manifest, and the list of failed clips."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ovi_ray.errors import InputError
from ovi_ray.inputs.bad_rows import BadRow, rejected_csv
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.output.parquet_log import FORMAT
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location

MANIFEST = "manifest.parquet"
JOB_FILE = "job.json"
FAILED = "failed.parquet"
REJECTED = "rejected.csv"
ERROR_COLUMN = "meta_error"
OVERWRITE = "overwrite.json"
FAILED_COLUMNS = ("clip_id", "status", "error")
_FAILURES = pa.schema([RESULTS_SCHEMA.field(name) for name in FAILED_COLUMNS])


def write_job(output_dir: Location, job: JobSpec, manifest: Manifest, *, keeps_seeds: bool = False) -> str:
    """Write the manifest and the job file. Returns the folder's token, by which it is known from then on.

    `keeps_seeds` tells later runs to take the seeds of clips from this manifest.
    """
    token = read_token(output_dir) or uuid4().hex
    manifest.write(output_dir / MANIFEST)
    content = {
        "format": FORMAT,
        "folder": token,
        "clips": len(manifest),
        "keeps_seeds": keeps_seeds,
        "job": job.model_dump(mode="json"),
    }
    (output_dir / JOB_FILE).write_bytes(json.dumps(content, indent=1).encode())
    return token


def read_token(output_dir: Location) -> str:
    """The token of the folder, which no other one has; "" where no run has written it. Raises OSError."""
    return str(read_job_file(output_dir).get("folder", ""))


def begin_overwrite(output_dir: Location) -> tuple[float, bool]:
    """The time, by the clock of the storage, since when videos count that replace others; and whether it is now.

    A run that was stopped has left it, so that the next one goes on. `end_overwrite` ends it. Raises OSError.
    """
    mark = output_dir / OVERWRITE
    is_new = not mark.exists()
    if is_new:
        mark.write_bytes(b"{}")
    return mark.stat().st_mtime, is_new


def end_overwrite(output_dir: Location) -> None:
    """Every clip has ended: the next `--overwrite` renders all of them again. Raises OSError."""
    (output_dir / OVERWRITE).unlink(missing_ok=True)


def read_job_file(output_dir: Location) -> Mapping[str, Any]:
    """The content of the job file; empty where there is none, or a broken one. Raises OSError."""
    try:
        content = json.loads((output_dir / JOB_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def only_failed(results: Iterable[pa.RecordBatch]) -> pa.Table:
    """The rows of failed clips, of results with `FAILED_COLUMNS`."""
    failed = (batch.filter(pc.equal(batch.column("status"), ClipStatus.FAILED)) for batch in results)
    return pa.Table.from_batches(failed, _FAILURES)


def write_rejected(output_dir: Location, bad_rows: Sequence[BadRow]) -> None:
    """Write the rows that were left out, with the reason of each. Without any, the list of an earlier run is removed."""
    path = output_dir / REJECTED
    if bad_rows:
        path.write_bytes(rejected_csv(bad_rows))
    else:
        path.unlink(missing_ok=True)


def read_failed(output_dir: Location) -> pa.Table:
    """`FAILED_COLUMNS` of the clips in the list of failed ones; none where it is missing or damaged. Raises OSError."""
    path = output_dir / FAILED
    if not path.exists():
        return _FAILURES.empty_table()
    try:
        table = Manifest.read(path).table
        ids, errors = table.column("clip_id"), table.column(ERROR_COLUMN).cast(pa.string())
    except (InputError, pa.ArrowException, KeyError):
        return _FAILURES.empty_table()
    status = pa.repeat(str(ClipStatus.FAILED), len(table))
    return pa.table([ids, status, errors], schema=_FAILURES)


def write_failed(output_dir: Location, manifest: Manifest, results: Iterable[pa.RecordBatch]) -> int:
    """Write the manifest's rows of the failed clips, with the reason, as a prompt list. Returns the number of rows.

    `results` have `FAILED_COLUMNS`, and each clip once. Without a failure, a list of an earlier run is removed.
    """
    path = output_dir / FAILED
    failed = only_failed(results)
    place = pc.index_in(manifest.table.column("clip_id"), value_set=failed.column("clip_id"))
    table = manifest.table.filter(pc.is_valid(place))
    if not len(table):
        path.unlink(missing_ok=True)
        return 0
    errors = failed.column("error").take(place.drop_null())
    if ERROR_COLUMN in table.column_names:
        table = table.drop_columns([ERROR_COLUMN])
    Manifest(table=table.append_column(ERROR_COLUMN, errors)).write(path)
    return len(table)
