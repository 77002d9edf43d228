"""Rendering again what failed, as it was or with other parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.prompt_lists import PROMPT_COLUMN
from ovi_ray.inputs.rows import META_PREFIX, OVERRIDES
from ovi_ray.output.job_files import ERROR_COLUMN, FAILED, JOB_FILE, MANIFEST, read_job_file
from ovi_ray.prepare import PreparedJob, prepare
from ovi_ray.storage.paths import Location, PathOrUri, atomic_write, to_location

_LIST = ".retry.parquet"
_PLACE = ("row", "repeat")


@dataclass(kw_only=True, slots=True, frozen=True)
class Retry:
    """The job of an output folder with the clips that failed checked again, in the places that they had."""

    prepared: PreparedJob
    clips: int
    """That failed."""


def prepare_retry(output_dir: PathOrUri, changes: Mapping[str, Any]) -> Retry:
    """Check the clips that failed in an output folder for another try.

    `changes`, by field of the job (None: not given), hold for all of these clips, whatever their rows said; a changed clip
    takes the place of the one that failed. Raises InputError, also where nothing has failed.
    """
    folder = to_location(output_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    manifest, failed = _read(folder, MANIFEST), _read(folder, FAILED)
    job = _job(folder, failed, given)
    tried = prepare(job).manifest
    is_failed = pc.is_in(manifest.column("clip_id"), value_set=failed.column("clip_id"))
    clips = _in_place(tried.table, failed)
    table = pa.concat_tables([manifest.filter(pc.invert(is_failed)), clips], promote_options="default")
    asked = job.model_copy(update=_source(folder))
    return Retry(
        prepared=PreparedJob(job=asked, manifest=Manifest(table=table, notes=tried.notes)), clips=failed.num_rows
    )


def _read(output_dir: Location, name: str) -> pa.Table:
    path = output_dir / name
    if not path.exists():
        expected = "a folder that `ovi-ray render` wrote and in which clips failed"
        raise InputError([Problem(file=str(path), value="missing", expected=expected)])
    return Manifest.read(path).table


def _job(output_dir: Location, failed: pa.Table, given: Mapping[str, Any]) -> JobSpec:
    """The job that the folder was rendered with, of the failed clips alone."""
    saved = read_job_file(output_dir).get("job")
    if not isinstance(saved, dict):
        raise InputError(
            [Problem(file=str(output_dir / JOB_FILE), value="no job", expected="the job as it was started")]
        )
    own = {
        "prompts": _write_list(output_dir, failed, given),
        "text_prompt": None,
        "image_path": None,
        "mode": None,
        "each_example_n_times": None,
        "output_dir": output_dir,
    }
    return JobSpec.from_options(**saved | own | dict(given))


def _write_list(output_dir: Location, failed: pa.Table, given: Mapping[str, Any]) -> Location:
    """The failed clips as a prompt list whose rows say everything but what was changed."""
    inputs = {PROMPT_COLUMN, "image_path", *OVERRIDES} - given.keys()
    names = [
        name
        for name in failed.column_names
        if name in inputs or (name.startswith(META_PREFIX) and name != ERROR_COLUMN)
    ]
    path = output_dir / _LIST
    with atomic_write(path) as local:
        pa.parquet.write_table(failed.select(names), local)
    return path


def _in_place(clips: pa.Table, failed: pa.Table) -> pa.Table:
    """The clips with the rows of the prompt list that the failed ones had."""
    places = clips.column("row")
    for name in _PLACE:
        index = clips.schema.get_field_index(name)
        clips = clips.set_column(index, clips.schema.field(name), failed.column(name).take(places))
    return clips


def _source(output_dir: Location) -> dict[str, Any]:
    """Where the job's prompts came from, for what is shown and saved of it."""
    saved = read_job_file(output_dir)["job"]
    prompts = saved.get("prompts")
    return {"prompts": to_location(prompts) if prompts else None, "text_prompt": saved.get("text_prompt")}
