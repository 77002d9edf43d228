"""The manifest: an Arrow table with one row per clip of a job, complete enough to render from it alone.

A clip's id is a hash of everything that determines its pixels and its sound, and of nothing else: the same clip has the same
id in every run, whatever list, row or folder it comes from.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from ovi.config import Architecture
from ovi.quality import COMBINATIONS, Quality
from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.columns import KEY_COLUMN, PROMPT_COLUMN, QUALITY_COLUMN, SIDE_COLUMNS, SIZE_COLUMN, is_meta
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.params import NEGATIVE_PROMPTS, PARAM_FIELDS, arrow_fields
from ovi_ray.inputs.prompt_lengths import TextLimit, length_notes
from ovi_ray.inputs.prompt_lists import ListOptions, PromptList, read_prompt_list, read_table
from ovi_ray.inputs.rows import Rows, resolve_rows
from ovi_ray.inputs.seeds import check_seeds, derived_seeds
from ovi_ray.inputs.sweep import MAX_COMBINATIONS, swept
from ovi_ray.printing import counted
from ovi_ray.storage.paths import PathOrUri, atomic_write, to_location


def _param_fields() -> Iterator[pa.Field]:
    """The sampling parameters; the size of the frames, as given, in two columns that any tool for tables can hold."""
    for field in arrow_fields():
        if field.name == SIZE_COLUMN:
            yield from (pa.field(name, pa.int32(), nullable=False) for name in SIDE_COLUMNS)
        else:
            yield field


MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # of the prompt list, from 1
        pa.field("line", pa.int64()),  # of the prompt list's file, or row of its sheet, where the row starts, from 1
        pa.field("repeat", pa.int32(), nullable=False),  # from 0, over all combinations of a sweep
        pa.field(KEY_COLUMN, pa.string()),  # of the row, as the list gives it
        pa.field("varies", pa.string()),  # names of the swept parameters, separated by commas
        pa.field("text_prompt", pa.string(), nullable=False),  # as given
        pa.field("prompt", pa.string(), nullable=False),  # with the model's form of audio tag: the text that is encoded
        pa.field("image_path", pa.string()),
        pa.field("image_sha256", pa.string()),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),  # of the frames, in pixels
        pa.field("width", pa.int32(), nullable=False),
        pa.field("video_latent_length", pa.int32(), nullable=False),
        pa.field("audio_latent_length", pa.int32(), nullable=False),
        *_param_fields(),
    ]
)
"""Columns of a manifest. The list's own `meta_` columns follow them, as text."""

CLIP_ID_DIGITS = 20
_NOTES = b"ovi_ray.notes"
_FORMAT_KEY = b"ovi_ray.manifest_format"
_FORMAT = 4
"""3 had no qualities, 2 no keys; 1, which was not written, counted rows from 0 and had the frames' size in one column."""
_HASHED_TEXTS = ("prompt", *NEGATIVE_PROMPTS)
"""Columns that enter the id as they are tokenized."""
_HASHED = (
    "model_name",
    "height",
    "width",
    "video_latent_length",
    "audio_latent_length",
    "image_sha256",
    *(name for name in PARAM_FIELDS if name not in (SIZE_COLUMN, QUALITY_COLUMN, *_HASHED_TEXTS)),
)
"""Columns that enter the id as they are."""
_HASHED_WHERE_GIVEN = ("image_reading",)
"""Columns that enter the ids of the rows that have a value, so that the ids of other rows stay what they were without them."""
_CANONICAL_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(kw_only=True, slots=True, frozen=True)
class Manifest:
    """The clips of a job, with notes for the user on how the input was interpreted."""

    table: pa.Table
    """`MANIFEST_SCHEMA`, then the `meta_` columns; one row per clip, each `clip_id` once."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def qualities(self) -> dict[Quality, int]:
        """Number of clips of each quality, in the order of `Quality`, without those of which there are none."""
        counts = Counter(self.table.column(QUALITY_COLUMN).to_pylist())
        return {quality: counts[quality] for quality in Quality if counts[quality]}

    def write(self, path: PathOrUri) -> None:
        """Write as Parquet, or as an Arrow IPC file for any other suffix. The file is complete or absent."""
        table = self.table.replace_schema_metadata({_NOTES: json.dumps(self.notes), _FORMAT_KEY: str(_FORMAT)})
        target = to_location(path)
        with atomic_write(target) as local:
            if target.suffix == ".parquet":
                pa.parquet.write_table(table, local)
            else:
                with pa.ipc.new_file(str(local), table.schema) as writer:
                    writer.write_table(table)

    @classmethod
    def read(cls, path: PathOrUri) -> Self:
        """Read a file that `write` wrote. Raises InputError for a file that is not a manifest."""
        table = _current_form(read_table(to_location(path)))
        if not set(MANIFEST_SCHEMA.names) <= set(table.column_names):
            raise InputError(
                [
                    Problem(
                        file=str(path),
                        value="a table without a manifest's columns",
                        expected="a manifest that ovi-ray wrote",
                    )
                ]
            )
        notes = json.loads((table.schema.metadata or {}).get(_NOTES, b"[]"))
        return cls(table=table.replace_schema_metadata(None), notes=tuple(notes))


def build_manifest(
    job: BatchSpec,
    arch: Architecture,
    *,
    weights: Callable[[str], str],
    numerics: str,
    limit: TextLimit | None = None,
    prompts: PromptList | None = None,
    kept: pa.Table | None = None,
) -> Manifest:
    """Check the prompts of a job, images included, before any model loads. Raises InputError with every problem.

    `weights` maps a model's name to the fingerprint of its weights; `numerics` names the form of the computation, such as
    the dtype. Both are part of every clip's id. Texts that are longer than `limit` are noted. `prompts` replaces the job's own
    list. `kept` is the table of a manifest, whose seeds are taken over by clips that are otherwise alike.
    """
    prompts = read_prompts(job) if prompts is None else prompts
    _check_count(prompts, job)
    if job.sweep is not None:
        prompts = swept(prompts, job.sweep)
    rows = resolve_rows(prompts, job, arch)
    columns = _repeat(rows, prompts, job)
    columns["seed"] = derived_seeds(
        columns, job.seed, times=job.each_example_n_times, is_list=prompts.may_grow, kept=kept
    )
    check_seeds(columns["seed"], prompts, rows.columns["seed"], job.seed)
    columns["clip_id"] = _clip_ids(columns, rows.cleaned, weights, numerics)
    fields = [*MANIFEST_SCHEMA, *(pa.field(name, pa.string()) for name in columns if is_meta(name))]
    table = pa.table([columns[field.name] for field in fields], schema=pa.schema(fields))
    notes = [*rows.notes, *_repeated_prompt_note(columns)]
    if limit is not None:
        notes += length_notes(columns, rows.cleaned, limit)
    first = _first_places(columns["clip_id"])
    if len(first) < len(table):
        notes.append(_same_clip_note(columns, first))
        table = table.take(pa.array(first.values()))
    return Manifest(table=table, notes=tuple(notes))


def _check_count(prompts: PromptList, job: BatchSpec) -> None:
    """Raises InputError where repeats or a sweep make more clips than a job may have."""
    combinations, times = 1 if job.sweep is None else job.sweep.size, job.each_example_n_times
    clips = len(prompts) * combinations * times
    if clips > MAX_COMBINATIONS and combinations * times > 1:
        parts = (counted(len(prompts), "row"), counted(combinations, "combination"), counted(times, "repeat"))
        found = f"{clips:,} clips ({' x '.join(parts)})"
        raise InputError(
            [Problem(file=prompts.file, value=found, expected=f"at most {MAX_COMBINATIONS:,} clips in a job")]
        )


def read_prompts(job: BatchSpec) -> PromptList:
    """The job's prompt list; a single prompt is a list of one row. Raises InputError."""
    if job.prompts is not None:
        return read_prompt_list(job.prompts, ListOptions(delimiter=job.delimiter, sheet=job.sheet))
    columns = {PROMPT_COLUMN: [job.text_prompt]}
    return PromptList(
        file="the job's prompt", folder=to_location(Path.cwd()), columns=columns, rows=range(1, 2), may_grow=False
    )


def _current_form(table: pa.Table) -> pa.Table:
    """A table as `Manifest.write` writes it today, from one of an earlier version; other tables are left as they are."""
    names = table.column_names
    if not {"clip_id", "row"}.issubset(names):
        return table
    if _FORMAT_KEY not in (table.schema.metadata or {}) and SIZE_COLUMN in names:
        table = _with_rows_from_one(table)
    place = table.schema.get_field_index("repeat") + 1
    for name in ("varies", KEY_COLUMN):
        if name not in table.column_names:
            table = table.add_column(place, MANIFEST_SCHEMA.field(name), pa.nulls(len(table), pa.string()))
    if QUALITY_COLUMN not in table.column_names:
        place = min(MANIFEST_SCHEMA.get_field_index(QUALITY_COLUMN), table.num_columns)
        exact = pa.repeat(str(Quality.EXACT), len(table))
        table = table.add_column(place, MANIFEST_SCHEMA.field(QUALITY_COLUMN), exact)
    return table


def _with_rows_from_one(table: pa.Table) -> pa.Table:
    """A table of format 2, from one of format 1."""
    sizes = table.column(SIZE_COLUMN)
    rows = table.schema.get_field_index("row")
    table = table.set_column(rows, MANIFEST_SCHEMA.field("row"), pc.add(table.column("row"), 1))
    table = table.add_column(rows + 1, MANIFEST_SCHEMA.field("line"), pa.nulls(len(table), pa.int64()))
    place = table.schema.get_field_index(SIZE_COLUMN)
    table = table.remove_column(place)
    for side, name in reversed(list(enumerate(SIDE_COLUMNS))):
        table = table.add_column(place, MANIFEST_SCHEMA.field(name), pc.list_element(sizes, side))
    return table


def clip_id(content: dict[str, Any]) -> str:
    """The first hex digits of a SHA-256 over the canonical JSON of everything that determines a clip."""
    return hashlib.sha256(_CANONICAL_JSON.encode(content).encode()).hexdigest()[:CLIP_ID_DIGITS]


def _repeat(rows: Rows, prompts: PromptList, job: BatchSpec) -> dict[str, list[Any]]:
    """The manifest's columns, but for the ids, with each row repeated `each_example_n_times`. `seed` is the row's own or None.

    The repeats of a row are numbered over all combinations of a sweep.
    """
    times, combinations = job.each_example_n_times, 1 if job.sweep is None else job.sweep.size
    columns = {**rows.columns, "row": list(prompts.rows)}
    columns["line"] = [None] * len(prompts) if prompts.lines is None else list(prompts.lines)
    columns["varies"] = [None if job.sweep is None else ",".join(job.sweep.values)] * len(prompts)
    columns |= {name: [size[side] for size in columns[SIZE_COLUMN]] for side, name in enumerate(SIDE_COLUMNS)}
    if times > 1:
        columns = {name: [value for value in values for _ in range(times)] for name, values in columns.items()}
    columns["repeat"] = list(range(times * combinations)) * (len(prompts) // combinations)
    return columns


def _clip_ids(
    columns: dict[str, list[Any]], cleaned: dict[str, str], weights: Callable[[str], str], numerics: str
) -> list[str]:
    fingerprints = {name: weights(name) for name in dict.fromkeys(columns["model_name"])}
    hashed = {name: columns[name] for name in _HASHED}
    hashed |= {name: [cleaned[text] for text in columns[name]] for name in _HASHED_TEXTS}
    hashed["weights"] = [fingerprints[name] for name in columns["model_name"]]
    hashed["numerics"] = [numerics] * len(columns["model_name"])
    contents = [dict(zip(hashed, row, strict=True)) for row in zip(*hashed.values(), strict=True)]
    hashed_where_given = {name: columns[name] for name in _HASHED_WHERE_GIVEN}
    hashed_where_given[QUALITY_COLUMN] = list(map(_identity_of_quality, columns[QUALITY_COLUMN]))
    for name, values in hashed_where_given.items():
        for content, value in zip(contents, values, strict=True):
            content |= {} if value is None else {name: value}
    return [clip_id(content) for content in contents]


def _identity_of_quality(quality: Quality) -> dict[str, str] | None:
    """Definition of a lossy quality, as part of a clip's id: a clip is another one when shortcuts or bounds change."""
    return None if quality is Quality.EXACT else {str(quality): COMBINATIONS[quality].identity}


# -- notes on repetition -------------------------------------------------------------------------------------------


def _first_places(values: list[Any]) -> dict[Any, int]:
    first: dict[Any, int] = {}
    for place, value in enumerate(values):
        first.setdefault(value, place)
    return first


def _same_clip_note(columns: dict[str, list[Any]], first: dict[str, int]) -> str:
    ids = columns["clip_id"]
    place = next(place for place, value in enumerate(ids) if first[value] != place)
    earlier, later = columns["row"][first[ids[place]]], columns["row"][place]
    extra = len(ids) - len(first)
    subject = f"{counted(extra, 'clip')} {'is' if extra == 1 else 'are'}"
    return f"{subject} identical to an earlier one and rendered once: row {later} equals row {earlier}"


def _repeated_prompt_note(columns: dict[str, list[Any]]) -> list[str]:
    """A note where rows share prompt and image but not the seed: they are rendered as variations."""
    starts = [place for place, repeat in enumerate(columns["repeat"]) if repeat == 0]
    pairs = [(columns["prompt"][place], columns["image_sha256"][place]) for place in starts]
    first = _first_places(pairs)
    again = [place for place, pair in enumerate(pairs) if first[pair] != place]
    if not again:
        return []
    rows = columns["row"]
    later, earlier = rows[starts[again[0]]], rows[starts[first[pairs[again[0]]]]]
    return [
        f"{counted(len(again), 'row')} {'repeats' if len(again) == 1 else 'repeat'} the prompt and image of an earlier row"
        f" (row {later} those of row {earlier}): rendered as variations where the seeds or parameters differ"
    ]
