"""The state of an output folder, read without changing anything, and its comparison with the clips that a job asks for.

A folder belongs to every list that has a prompt or a key in common with it: lists grow, shrink, and are swept again with
other parameters. Finished clips that the list of the last run does not ask for are *superseded*: they keep their files, and
stand apart.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi.prompts import clean
from ovi_ray.errors import InputError, OutputOfOtherJob, ResultsTooNew, SeedsDiffer, show
from ovi_ray.inputs.columns import KEY_COLUMN, OVERRIDES, PROMPT_COLUMN, SIDE_COLUMNS, SIZE_COLUMN, in_words
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.output.job_files import MANIFEST, read_failed, read_job_file
from ovi_ray.output.parquet_log import FORMAT
from ovi_ray.output.results import read_resume_state, read_rows
from ovi_ray.printing import counted
from ovi_ray.storage.paths import Location

_LAST_FORMAT_WITH_ROW_SEEDS = 3
_PARAMS = (*(name for name in OVERRIDES if name != SIZE_COLUMN), *SIDE_COLUMNS)
_COMPARED = (PROMPT_COLUMN, "image_path", *(name for name in _PARAMS if name != "seed"))
_TEXTS = (PROMPT_COLUMN, "prompt", KEY_COLUMN)
_MAX_EXAMPLES = 4


@dataclass(kw_only=True, slots=True, frozen=True)
class FolderState:
    """The content of an output folder."""

    output_dir: Location
    job: Mapping[str, Any]
    """The job file; empty where no run has written it."""
    manifest: pa.Table | None
    """The clips of the last run; None where there is no manifest that can be read."""
    finished: pa.StringArray
    """Ids of the clips that are done, whoever asks for them."""
    videos: pa.StringArray
    """Ids of the videos without a row, which the next run reads."""
    failed: pa.StringArray
    """Ids of the clips that failed last."""

    @property
    def has_row_seeds(self) -> bool:
        """Whether a version of ovi-ray wrote it that derived seeds from the number of the row."""
        return bool(self.job) and int(self.job.get("format", 0)) <= _LAST_FORMAT_WITH_ROW_SEEDS


def read_folder(output_dir: Location) -> FolderState:
    """Raises ResultsTooNew and OSError."""
    found = read_resume_state(output_dir)
    listed = read_failed(output_dir).column("clip_id").combine_chunks()
    failed = pc.unique(pa.concat_arrays([found.failed, listed]))
    return FolderState(
        output_dir=output_dir,
        job=read_job_file(output_dir),
        manifest=manifest_in(output_dir),
        finished=found.finished,
        videos=found.videos,
        failed=failed.filter(pc.invert(pc.is_in(failed, value_set=found.finished))),
    )


def manifest_in(output_dir: Location) -> pa.Table | None:
    """The manifest of the last run; None where it is missing or broken."""
    try:
        return Manifest.read(output_dir / MANIFEST).table
    except (InputError, OSError, pa.ArrowException):
        return None


@dataclass(kw_only=True, slots=True, frozen=True)
class Comparison:
    """The clips of a job beside those of its output folder."""

    new: int
    """Clips of the job that are not finished."""
    finished: int
    """Clips of the job that are finished, or seem so: their video is there, and is yet to be read."""
    superseded: int
    """Finished clips of the folder that the job does not ask for."""
    changed: Mapping[tuple[str, ...], int]
    """Number of these that would be rendered anew with other values, by the columns that differ."""
    sweeps_seeds: bool = False
    """The job says which seeds its clips have, so that others cannot be kept."""

    @property
    def other_seeds(self) -> int:
        """Finished clips that differ from those of the job by their seed alone."""
        return self.changed.get(("seed",), 0)

    def notes(self, *, replaces: bool = False) -> Iterator[str]:
        """Notes for the user, before anything is rendered; `replaces`: that clips change is what was asked for."""
        for columns, count in () if replaces else self.changed.items():
            if columns == ("seed",):
                keep = "" if self.sweeps_seeds else f"; keep {'it' if count == 1 else 'them'} with --keep-seeds"
                yield f"{_with_other_seeds(count)}{keep}"
            else:
                other = in_words(columns) if columns else "weights, number format or combination of parameters"
                yield f"{_with_prompts(count)} with another {other}"
        if self.superseded:
            yield (
                f"{_clips(self.superseded)} {'is' if self.superseded == 1 else 'are'} not asked for by this list and set apart"
                " as superseded; ovi-ray prune removes such clips"
            )


def compare(manifest: pa.Table, folder: FolderState) -> Comparison:
    """The clips of a job's manifest beside those of its output folder."""
    ids = manifest.column("clip_id")
    is_done = pc.is_in(ids, value_set=pa.concat_arrays([folder.finished, folder.videos]))
    finished = int(pc.sum(is_done).as_py() or 0)
    superseded = folder.finished.filter(pc.invert(pc.is_in(folder.finished, value_set=ids)))
    return Comparison(
        new=len(manifest) - finished,
        finished=finished,
        superseded=len(superseded),
        changed=_changed(manifest.filter(pc.invert(is_done)), superseded, folder.manifest),
        sweeps_seeds=any("seed" in names.split(",") for names in _distinct(manifest, "varies")),
    )


def check_owner(manifest: pa.Table, folder: FolderState, comparison: Comparison) -> None:
    """Raises OutputOfOtherJob where a folder has finished clips that have nothing to do with the job; see the module."""
    if not len(folder.finished) or comparison.finished:
        return
    ours, known = _texts(manifest), folder.manifest
    if (known is None or ours.isdisjoint(_texts(known))) and ours.isdisjoint(
        _texts(read_rows(folder.output_dir, _TEXTS))
    ):
        raise OutputOfOtherJob(
            f"{folder.output_dir} holds {_clips(len(folder.finished))} of another job{_named(folder.job)}, and this one has"
            f" nothing to do with it{_differences(manifest, known)}: give another --out, or move that folder away"
        )


def check_seeds(folder: FolderState, comparison: Comparison, *, keep_seeds: bool | None) -> None:
    """Raises SeedsDiffer where clips of an earlier version would be made anew, unless `keep_seeds` says what is wanted."""
    if keep_seeds is None and folder.has_row_seeds and comparison.other_seeds:
        raise SeedsDiffer(
            f"{folder.output_dir}: {_with_other_seeds(comparison.other_seeds)}, which an earlier version derived from the"
            " number of the row: keep them with --keep-seeds, or render with the seeds of today with --no-keep-seeds"
        )


def check_format(folder: FolderState) -> None:
    """Raises ResultsTooNew for a folder that a newer version of ovi-ray wrote."""
    if int(folder.job.get("format", 0)) > FORMAT:
        raise ResultsTooNew(
            f"{folder.output_dir} has format {folder.job['format']}: update ovi-ray, or give another --out"
        )


def _changed(new: pa.Table, superseded: pa.Array, known: pa.Table | None) -> Mapping[tuple[str, ...], int]:
    """See `Comparison.changed`; `known` is the folder's manifest."""
    if known is None or not len(superseded) or not len(new):
        return {}
    values: defaultdict[Hashable, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for subject, clip in _subjects(new):
        for name in _PARAMS:
            values[subject][name].add(clip[name])
    old = known.filter(pc.is_in(known.column("clip_id"), value_set=superseded))
    return Counter(
        tuple(name for name in _PARAMS if clip[name] not in values[subject][name])
        for subject, clip in _subjects(old)
        if subject in values
    )


def _subjects(clips: pa.Table) -> Iterator[tuple[Hashable, dict[str, Any]]]:
    """Each clip's parameters, with its prompt and image."""
    for batch in clips.select(["prompt", "image_sha256", *_PARAMS]).to_batches(max_chunksize=10_000):
        for clip in batch.to_pylist():
            yield (clean(clip["prompt"]), clip["image_sha256"]), clip


def _texts(clips: pa.Table) -> set[tuple[str, str]]:
    """The prompts and the keys of clips."""
    prompts = {("prompt", clean(text)) for name in (PROMPT_COLUMN, "prompt") for text in _distinct(clips, name)}
    return prompts | {("key", key) for key in _distinct(clips, KEY_COLUMN)}


def _distinct(clips: pa.Table, name: str) -> list[Any]:
    return list(clips.column(name).unique().drop_null().to_pylist())


def _differences(here: pa.Table, there: pa.Table | None) -> str:
    """The columns that have no value in common, with an example of each."""
    if there is None:
        return ""
    values = {name: (_distinct(here, name), _distinct(there, name)) for name in _COMPARED}
    differing = [
        f"{name} is {_example(ours)} here and {_example(theirs)} there"
        for name, (ours, theirs) in values.items()
        if set(ours).isdisjoint(theirs) and (ours or theirs)
    ]
    return f" ({'; '.join(differing[:_MAX_EXAMPLES])})" if differing else ""


def _example(values: list[Any]) -> str:
    if not values:
        return "empty"
    more = f" and {len(values) - 1:,} more" if len(values) > 1 else ""
    return f"{show(values[0])}{more}"


def _named(job: Mapping[str, Any]) -> str:
    source = job.get("job", {}).get("prompts")
    return f" ({source})" if source else ""


def _with_other_seeds(count: int) -> str:
    return f"{_with_prompts(count)} with {'another seed' if count == 1 else 'other seeds'}"


def _with_prompts(count: int) -> str:
    return f"{_clips(count)} {'has a prompt' if count == 1 else 'have prompts'} of this list"


def _clips(count: int) -> str:
    return counted(count, "finished clip")
