"""The clips to export: the finished ones of a job's list, or of these the picked ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import in_words, is_meta
from ovi_ray.inputs.manifest import MANIFEST_SCHEMA, Manifest
from ovi_ray.output.finished import finished_rows
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.job_files import MANIFEST, read_job_file
from ovi_ray.output.picks import PICK_COLUMN, Picks
from ovi_ray.printing import counted, noun
from ovi_ray.storage.paths import Location

_MAX_ROWS_SHOWN = 20
_FACTS = ("num_frames", "notes", "video_bytes")


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportClip:
    """A finished clip."""

    row: Mapping[str, Any]
    """Its columns in the manifest, the list's own `meta_` columns too, with `num_frames` and `notes` of its result."""
    video: Location
    video_bytes: int | None
    latents: Location | None
    """Its kept latents; None where none were kept."""

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return str(self.row["clip_id"])


@dataclass(kw_only=True, slots=True, frozen=True)
class Selection:
    """The clips of an output folder that are exported, in the order of the list."""

    out: Location
    clips: tuple[ExportClip, ...]
    columns: tuple[str, ...]
    """Names that a clip's row has, and that names of files may use."""
    job: Mapping[str, Any]
    """The job as it was rendered, by field; empty where the folder does not tell."""


def select_clips(out: Location, picks: Location | None, tell: Callable[[str], None]) -> Selection:
    """Read which clips of an output folder are finished. Raises InputError, ResultsTooNew and OSError.

    `picks` is a CSV with a column clip_id. Clips that are not finished are told, and left out.
    """
    if not (out / MANIFEST).exists():
        expected = "an output folder of `ovi-ray render`"
        raise InputError([Problem(file=str(out), value=f"no {MANIFEST}", expected=expected)])
    table = Manifest.read(out / MANIFEST).table
    finished = finished_rows(out, _FACTS)
    rows = [_with_facts(row, finished.get(row["clip_id"])) for row in table.to_pylist()]
    if picks is not None:
        rows = _picked(rows, picks)
    unfinished = [row["row"] for row in rows if row["clip_id"] not in finished]
    if unfinished:
        are = "is" if len(unfinished) == 1 else "are"
        tell(f"{counted(len(unfinished), 'clip')} {are} not finished and left out: {_of_rows(unfinished)}")
    with_latents = set(Intermediates(output_dir=out).with_latents().to_pylist())
    clips = tuple(
        ExportClip(
            row=row,
            video=out / "videos" / f"{row['clip_id']}.mp4",
            video_bytes=finished[row["clip_id"]]["video_bytes"],
            latents=Intermediates(output_dir=out).latents_path(row["clip_id"])
            if row["clip_id"] in with_latents
            else None,
        )
        for row in rows
        if row["clip_id"] in finished
    )
    saved = read_job_file(out).get("job")
    return Selection(out=out, clips=clips, columns=_columns(table), job=saved if isinstance(saved, dict) else {})


def _columns(table: pa.Table) -> tuple[str, ...]:
    return (*MANIFEST_SCHEMA.names, *filter(is_meta, table.column_names))


def _with_facts(row: dict[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return row | {name: None if facts is None else facts[name] for name in ("num_frames", "notes")}


def _of_rows(rows: Sequence[int]) -> str:
    numbers = list(dict.fromkeys(rows))
    if len(numbers) > _MAX_ROWS_SHOWN:
        return f"rows {', '.join(map(str, numbers[:_MAX_ROWS_SHOWN]))}, ..."
    return f"{noun(len(numbers), 'row')} {in_words(numbers)}"


# -- picks ---------------------------------------------------------------------------------------------------------


def _picked(rows: list[dict[str, Any]], picks: Location) -> list[dict[str, Any]]:
    """The rows of the picked clips, each once. Raises InputError."""
    chosen: set[str] = set()
    problems = []
    known = [str(row["clip_id"]) for row in rows]
    is_known = set(known)
    for pick in Picks.read(picks).rows:
        given = pick.clip_id
        found = [given] if given in is_known else [name for name in known if name.startswith(given)]
        if len(found) == 1:
            chosen.add(found[0])
            continue
        expected = "more of the id, which several clips begin with" if found else "the id of a clip of the job's list"
        value = show(given)
        problems.append(Problem(file=str(picks), line=pick.line, field=PICK_COLUMN, value=value, expected=expected))
    if problems:
        raise InputError(problems)
    return [row for row in rows if row["clip_id"] in chosen]
