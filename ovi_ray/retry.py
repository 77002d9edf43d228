"""Prepare clips of an output folder for another attempt, with the same or with changed parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.inputs.columns import INPUT_COLUMNS, META_PREFIX, OVERRIDES, SIDE_COLUMNS, SIZE_COLUMN, is_meta
from ovi_ray.inputs.job_spec import JobSpec, Mode
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.params import parse_param
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.inputs.seeds import seed_offset
from ovi_ray.inputs.sweep import DeclaredSweep
from ovi_ray.output.folder_state import FolderState, check_format, read_folder
from ovi_ray.output.job_files import JOB_FILE, MANIFEST
from ovi_ray.preparation import PreparedJob, prepare
from ovi_ray.storage.paths import Location, PathOrUri, to_location

_PLACE_COLUMNS = ("row", "line", "repeat", "varies")
_INDEX_COLUMN = f"{META_PREFIX}ovi_ray_index"
"""Carries the number of each clip among those that are checked; no column of the manifest that is made of them."""
_OF_ALL_CLIPS = frozenset(
    {"ckpt_dir", "dtype", "weights", "qint8", "fp8", "compile", "kernels", "attention", "allow_inexact"}
)
"""Fields that are part of every clip's id: with other ones, clips that were never begun are other clips too."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Retry:
    """The job of an output folder, with some of its clips checked again for another attempt."""

    prepared: PreparedJob | None
    """None where there is nothing to render."""
    total: int
    """Clips of the job."""
    finished: int
    """Clips of the job that are finished."""
    clips: int
    """Clips that are tried again: those that failed, or of the rows that were named."""
    missing: int
    """Other clips of the job that were not rendered, and are now."""


def prepare_retry(
    output_dir: PathOrUri,
    changes: Mapping[str, Any],
    *,
    rows: RowRanges | None = None,
    new_seed: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
) -> Retry:
    """Check clips of an output folder for another attempt. Nothing is written. Raises InputError, ResultsTooNew and OSError.

    The clips are those that failed, and with `rows` those of these rows alone; with a change, also finished ones of these rows.
    `changes`, by field of the job (None: not given), and `new_seed` apply to all of them, whatever their rows said; a changed
    clip takes the row of the one that it replaces. Clips that were not rendered stay part of the job, and so do all others.
    `on_message` receives what is being done.
    """
    folder = to_location(output_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    if new_seed and "seed" in given:
        problem = Problem(
            file=COMMAND_LINE, field="--seed", value=show(given["seed"]), expected="either --seed or --new-seed"
        )
        raise InputError([problem])
    manifest = _manifest(folder)
    state = read_folder(folder)
    check_format(state)
    chosen, missing = _choose(manifest, state, rows, given, new_seed)
    finished = pc.sum(_is_finished(manifest, state)).as_py() or 0
    counts = {"total": len(manifest), "finished": finished, "clips": len(chosen), "missing": len(missing)}
    if not len(chosen) and not len(missing):
        return Retry(prepared=None, **counts)
    job = _retry_job(folder, _saved_job(state), given)
    if len(chosen):
        renewed = chosen
        prompts = _prompt_list(folder, chosen, given, job, new_seed)
    else:
        renewed = missing
        prompts = _prompt_list(folder, missing, {}, job, new_seed=False)
    checked = prepare(job, prompts=prompts, on_message=on_message)
    kept = manifest.filter(pc.invert(_is_among(manifest, renewed)))
    clips = _in_place_of(renewed, checked.manifest.table)
    clips = clips.filter(pc.invert(_is_among(clips, kept)))  # a change may make a clip of another one that is there
    table = pa.concat_tables([kept, clips], promote_options="default")
    keeps_seeds = new_seed or "seed" in given or state.job.get("keeps_seeds") is True
    prepared = replace(
        checked,
        job=_with_source(job, _saved_job(state)),
        manifest=Manifest(table=table, notes=checked.manifest.notes),
        keeps_seeds=keeps_seeds,
    )
    return Retry(prepared=prepared, **counts)


def _choose(
    manifest: pa.Table, state: FolderState, rows: RowRanges | None, given: Mapping[str, Any], new_seed: bool
) -> tuple[pa.Table, pa.Table]:
    """The clips that are tried again, and the others that were not rendered."""
    ids = manifest.column("clip_id")
    is_open = pc.invert(_is_finished(manifest, state))
    is_chosen = is_open if given.keys() & _OF_ALL_CLIPS else pc.is_in(ids, value_set=state.failed)
    if rows is not None:
        rows.check(manifest.column("row"))
        among = rows.among(manifest.column("row"))
        is_changed = new_seed or bool(given.keys() & {*INPUT_COLUMNS, "mode"})
        is_chosen = among if is_changed else pc.and_(among, is_chosen)
        is_open = pc.and_(among, is_open)
    return manifest.filter(is_chosen), manifest.filter(pc.and_not(is_open, is_chosen))


def _is_finished(clips: pa.Table, state: FolderState) -> pa.ChunkedArray:
    return pc.is_in(clips.column("clip_id"), value_set=pa.concat_arrays([state.finished, state.videos]))


def _is_among(clips: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(clips.column("clip_id"), value_set=others.column("clip_id"))


def _manifest(output_dir: Location) -> pa.Table:
    path = output_dir / MANIFEST
    if not path.exists():
        expected = "a folder that `ovi-ray render` wrote"
        raise InputError([Problem(file=str(path), value="missing", expected=expected)])
    return Manifest.read(path).table


def _saved_job(state: FolderState) -> dict[str, Any]:
    """The job as the folder was rendered with, by field."""
    saved = state.job.get("job")
    if not isinstance(saved, dict):
        expected = "the job that `ovi-ray render` saved when it started"
        raise InputError([Problem(file=str(state.output_dir / JOB_FILE), value="without a job", expected=expected)])
    return saved


def _retry_job(output_dir: Location, saved: Mapping[str, Any], given: Mapping[str, Any]) -> JobSpec:
    """The saved job with its own clips as the prompt list: their rows hold images, repeats and swept values already."""
    own = {
        "prompts": output_dir / MANIFEST,
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


def _prompt_list(
    output_dir: Location, clips: pa.Table, given: Mapping[str, Any], job: JobSpec, new_seed: bool
) -> PromptList:
    """The clips as a prompt list, at their places in their own list, whose rows set everything but the given changes."""
    inputs = set(INPUT_COLUMNS) - given.keys()
    names = [name for name in clips.column_names if name in inputs or is_meta(name)]
    columns = {name: clips.column(name).to_pylist() for name in names}
    if SIZE_COLUMN in inputs:
        columns[SIZE_COLUMN] = list(zip(*(clips.column(name).to_pylist() for name in SIDE_COLUMNS), strict=True))
    if new_seed:
        columns["seed"] = [seed_offset("again", clip_id) for clip_id in clips.column("clip_id").to_pylist()]
    elif "seed" in given:
        columns["seed"] = [job.seed + repeat for repeat in clips.column("repeat").to_pylist()]
    columns[_INDEX_COLUMN] = list(range(clips.num_rows))
    lines = clips.column("line")
    return PromptList(
        file=str(output_dir / MANIFEST),
        folder=output_dir,
        columns=columns,
        rows=clips.column("row").to_pylist(),
        lines=None if lines.null_count else lines.to_pylist(),
        has_types=True,
    )


def _in_place_of(replaced: pa.Table, clips: pa.Table) -> pa.Table:
    """The clips, each with the place in its list of the one of `replaced` that it was made of."""
    indices = clips.column(_INDEX_COLUMN).cast(pa.int64())
    clips = clips.drop_columns([_INDEX_COLUMN])
    for name in _PLACE_COLUMNS:
        index = clips.schema.get_field_index(name)
        clips = clips.set_column(index, clips.schema.field(name), replaced.column(name).take(indices))
    return clips


def _with_source(job: JobSpec, saved: Mapping[str, Any]) -> JobSpec:
    """The job with the list and the parameters that the folder was rendered with: `retry` changes single clips."""
    source: dict[str, Any] = {name: parse_param(name, saved[name]) for name in OVERRIDES if name in saved}
    for name in ("prompts", "image_path"):
        source[name] = to_location(saved[name]) if saved.get(name) else None
    for name in ("text_prompt", "delimiter", "sheet"):
        source[name] = saved.get(name)
    source["mode"] = Mode(saved.get("mode", Mode.AUTO))
    source["each_example_n_times"] = saved.get("each_example_n_times", 1)
    source["sweep"] = DeclaredSweep.model_validate(saved["sweep"]) if saved.get("sweep") else None
    return job.model_copy(update=source)
