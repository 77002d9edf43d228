"""Prepare the failed clips of a job for another attempt, with the same or with changed parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.columns import OVERRIDES, PROMPT_COLUMN, SIDE_COLUMNS, SIZE_COLUMN, is_meta
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.output.job_files import ERROR_COLUMN, FAILED, JOB_FILE, MANIFEST, read_job_file
from ovi_ray.preparation import PreparedJob, prepare
from ovi_ray.storage.paths import Location, PathOrUri, to_location

_ROW_COLUMNS = ("row", "line", "repeat")


@dataclass(kw_only=True, slots=True, frozen=True)
class Retry:
    """The job of an output folder, with its failed clips checked again for another attempt."""

    prepared: PreparedJob
    clips: int
    """Number of clips that failed."""


def prepare_retry(output_dir: PathOrUri, changes: Mapping[str, Any]) -> Retry:
    """Check the failed clips of an output folder for another attempt. Nothing is written.

    `changes`, by field of the job (None: not given), apply to every failed clip, whatever its row said; the changed clip
    takes the row of the one that failed. Raises InputError, also where no clip has failed.
    """
    folder = to_location(output_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    manifest, failed = _read(folder, MANIFEST), _read(folder, FAILED)
    saved = _saved_job(folder)
    job = _retry_job(folder, saved, given)
    checked = prepare(job, prompts=_prompt_list(folder, failed, given))
    retried = checked.manifest
    is_failed = pc.is_in(manifest.column("clip_id"), value_set=failed.column("clip_id"))
    kept = manifest.filter(pc.invert(is_failed))
    table = pa.concat_tables([kept, _with_rows_of(failed, retried.table)], promote_options="default")
    return Retry(
        prepared=replace(checked, job=_with_source(job, saved), manifest=Manifest(table=table, notes=retried.notes)),
        clips=failed.num_rows,
    )


def _read(output_dir: Location, name: str) -> pa.Table:
    path = output_dir / name
    if not path.exists():
        expected = "a folder that `ovi-ray render` wrote and in which clips failed"
        raise InputError([Problem(file=str(path), value="missing", expected=expected)])
    return Manifest.read(path).table


def _saved_job(output_dir: Location) -> dict[str, Any]:
    """The job as the folder was rendered with, by field."""
    saved = read_job_file(output_dir).get("job")
    if not isinstance(saved, dict):
        expected = "the job that `ovi-ray render` saved when it started"
        raise InputError([Problem(file=str(output_dir / JOB_FILE), value="without a job", expected=expected)])
    return saved


def _retry_job(output_dir: Location, saved: Mapping[str, Any], given: Mapping[str, Any]) -> JobSpec:
    """The saved job with the failed clips as its prompt list: their rows hold images, repeats and swept values already."""
    own = {
        "prompts": output_dir / FAILED,
        "text_prompt": None,
        "image_path": None,
        "mode": None,
        "each_example_n_times": None,
        "delimiter": None,
        "sheet": None,
        "sweep": None,
        "output_dir": output_dir,
    }
    return JobSpec.from_options(**{**saved, **own, **given})


def _prompt_list(output_dir: Location, failed: pa.Table, given: Mapping[str, Any]) -> PromptList:
    """The failed clips as a prompt list whose rows set everything but the given changes."""
    inputs = {PROMPT_COLUMN, "image_path", *OVERRIDES} - given.keys()
    names = [name for name in failed.column_names if name in inputs or (is_meta(name) and name != ERROR_COLUMN)]
    columns = {name: failed.column(name).to_pylist() for name in names}
    if SIZE_COLUMN in inputs:
        columns[SIZE_COLUMN] = list(zip(*(failed.column(name).to_pylist() for name in SIDE_COLUMNS), strict=True))
    return PromptList(
        file=str(output_dir / FAILED),
        folder=output_dir,
        columns=columns,
        rows=range(1, failed.num_rows + 1),
        has_types=True,
    )


def _with_rows_of(failed: pa.Table, clips: pa.Table) -> pa.Table:
    """The clips, numbered by row of the failed list, with the place that the failed clip had in its own list."""
    indices = pc.subtract(clips.column("row"), 1)
    for name in _ROW_COLUMNS:
        index = clips.schema.get_field_index(name)
        clips = clips.set_column(index, clips.schema.field(name), failed.column(name).take(indices))
    return clips


def _with_source(job: JobSpec, saved: Mapping[str, Any]) -> JobSpec:
    """The job with the prompts that were rendered first, to be shown and saved."""
    prompts = saved.get("prompts")
    source = {"prompts": to_location(prompts) if prompts else None, "text_prompt": saved.get("text_prompt")}
    return job.model_copy(update=source)
