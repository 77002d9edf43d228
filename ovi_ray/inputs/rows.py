"""Rows of a prompt list: every cell checked, blank ones filled from the job, and all problems reported at once."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from ovi.config import Architecture
from ovi.geometry import image_size, snap_size
from ovi.prompts import clean
from ovi.quality import Quality
from ovi_ray.errors import InputError, Problem, show, show_path
from ovi_ray.inputs.columns import (
    INPUT_COLUMNS,
    KEY_ALIAS,
    KEY_COLUMN,
    META_PREFIX,
    OVERRIDES,
    PROMPT_COLUMN,
    SIDE_COLUMNS,
    SIZE_COLUMN,
    clean_name,
    is_blank,
    is_meta,
)
from ovi_ray.inputs.first_frames import ImageFacts, ImageRefusal, inspect_images
from ovi_ray.inputs.job_spec import NOT_LOSSY, BatchSpec, Mode
from ovi_ray.inputs.notes import rows_have
from ovi_ray.inputs.param_limits import limit_notes
from ovi_ray.inputs.params import NEGATIVE_PROMPTS, NOT_TEXT, TEXT_EXPECTED, did_you_mean, parse_param
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.inputs.prompt_texts import prepare_texts
from ovi_ray.inputs.seeds import resolve_keys
from ovi_ray.printing import counted
from ovi_ray.storage.paths import Location, resolve_path

DERIVED_COLUMNS = (
    "clip_id",
    "row",
    "repeat",
    "prompt",
    "image_sha256",
    "height",
    "width",
    "video_latent_length",
    "audio_latent_length",
)
"""Columns by which a manifest of any version is recognised as a prompt list."""
MANIFEST_COLUMNS = (*DERIVED_COLUMNS, "line", "varies", *SIDE_COLUMNS)
"""Columns that a manifest has beside the input columns; ignored, but for the sides, when it is read as a prompt list."""
IMAGE_READING = 2
"""Enters the id of a clip whose image is converted: version 1, which ids do not name, took the file's values as they were."""


@dataclass(kw_only=True, slots=True)
class Rows:
    """Checked rows in columns of equal length: the manifest's columns that do not differ between repeats."""

    columns: dict[str, list[Any]]
    cleaned: dict[str, str]
    """Each distinct prompt and negative prompt, and the text that is tokenized for it."""
    notes: list[str] = field(default_factory=list)


def resolve_rows(prompts: PromptList, job: BatchSpec, arch: Architecture) -> Rows:
    """Check every cell and fill the blank ones. Raises InputError with every problem of every row."""
    join_sides(prompts)
    meta, problems = _meta_columns(prompts)
    columns: dict[str, list[Any]] = {}
    defaults = {name: getattr(job, name) for name in OVERRIDES} | {"seed": None, PROMPT_COLUMN: _Refusal("a prompt")}
    for name in (PROMPT_COLUMN, *OVERRIDES):
        columns[name], refused = _resolve(prompts, name, defaults[name], _PARSERS[name])
        problems += refused
    columns[KEY_COLUMN], refused = resolve_keys(prompts, KEY_ALIAS if KEY_ALIAS in prompts.columns else KEY_COLUMN)
    problems += refused
    problems += _lossy_problems(prompts, columns["quality"], job)
    images, refused = _resolve_images(prompts, job)
    problems += refused
    unread = {(problem.row, problem.field) for problem in prompts.problems}  # cells and columns that stand empty now
    problems = [p for p in problems if (p.row, p.field) not in unread and (None, p.field) not in unread]
    problems += [*_column_problems(prompts), *prompts.problems]
    if problems:
        distinct = dict.fromkeys(problems)  # a sweep repeats rows
        raise InputError(sorted(distinct, key=lambda problem: problem.row or 0))

    rows = Rows(columns=columns | meta, cleaned={}, notes=list(prompts.notes))
    rows.notes += limit_notes(prompts, columns, arch)
    _add_image_notes(rows, prompts, images, job)
    _complete_images(rows, images)
    texts = prepare_texts(prompts, rows.columns, arch)
    rows.columns["prompt"] = texts.prompts
    rows.cleaned.update(texts.cleaned)
    rows.notes += texts.notes
    _complete_sizes(rows, images, arch)
    return rows


def _lossy_problems(prompts: PromptList, qualities: list[Any], job: BatchSpec) -> list[Problem]:
    """A problem for each row with a quality that the job does not allow."""
    if job.allow_lossy:
        return []
    expected = f"{Quality.EXACT}: {NOT_LOSSY}"
    lossy = set(Quality) - {Quality.EXACT}
    return [
        prompts.problem(index, "quality", show(str(quality)), expected)
        for index, quality in enumerate(qualities)
        if isinstance(quality, Quality) and quality in lossy
    ]


def _column_problems(prompts: PromptList) -> list[Problem]:
    names = set(prompts.columns)
    if not names and prompts.problems:  # no row could be read: nothing is known of the columns
        return []
    is_manifest = names.issuperset(DERIVED_COLUMNS)
    known = {*INPUT_COLUMNS, KEY_ALIAS, *(MANIFEST_COLUMNS if is_manifest else ())}
    unknown = [name for name in prompts.columns if name not in known and not is_meta(name)]
    problems = [
        Problem(
            file=prompts.file,
            field=name,
            value=f"an unknown column{'' if name.isascii() else f' ({name!a})'}",
            expected=f"one of {', '.join(INPUT_COLUMNS)}, or a column of your own whose name starts with {META_PREFIX}"
            f"{did_you_mean(name, INPUT_COLUMNS)}",
        )
        for name in unknown
    ]
    if {KEY_COLUMN, KEY_ALIAS} <= names:
        found = f"a list with a column {KEY_COLUMN} and a column {KEY_ALIAS}"
        expected = f"one of them: {KEY_ALIAS} is another name for {KEY_COLUMN}"
        problems.append(Problem(file=prompts.file, value=found, expected=expected))
    if PROMPT_COLUMN not in names:
        found = f"no column {PROMPT_COLUMN} among {', '.join(map(show, prompts.columns)) or 'none'}"
        expected = "; ".join([f"a column {PROMPT_COLUMN}", *prompts.notes])
        problems.append(Problem(file=prompts.file, value=found, expected=expected))
    return problems


# -- cells ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Refusal:
    """Takes the place of the value of a cell that is refused."""

    expected: str
    """The values that are accepted."""


def _resolve(
    prompts: PromptList, name: str, default: Any, parse: Callable[[Any], Any]
) -> tuple[list[Any], list[Problem]]:
    """The value of each row, `default` where the cell is blank, and a problem for each cell that is refused.

    Equal cells are parsed once.
    """
    cells = prompts.columns.get(name)
    if cells is None:
        return [default] * len(prompts), []
    keys = [_key(cell) for cell in cells]
    distinct = dict(zip(keys, cells, strict=True))
    keeps_empty = prompts.has_types and name in NEGATIVE_PROMPTS
    parsed = {key: default if is_blank(cell, keeps_empty) else _attempt(parse, cell) for key, cell in distinct.items()}
    values = [parsed[key] for key in keys]
    if not any(isinstance(value, _Refusal) for value in parsed.values()):
        return values, []
    return values, [
        prompts.problem(index, name, "empty" if is_blank(cells[index]) else show(cells[index]), value.expected)
        for index, value in enumerate(values)
        if isinstance(value, _Refusal)
    ]


def _key(cell: Any) -> Hashable:
    """A key that differs for 1, 1.0 and True, which Python takes for equal."""
    return cell if type(cell) is str else (type(cell), repr(cell))


def _attempt(parse: Callable[[Any], Any], cell: Any) -> Any:
    if isinstance(cell, str) and NOT_TEXT.search(cell):
        return _Refusal(TEXT_EXPECTED)
    try:
        return parse(cell)
    except ValueError as error:
        return _Refusal(str(error))


def _parse_text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError("text")
    return cell


def _parse_prompt(cell: Any) -> str:
    if not any(map(clean_name, clean(_parse_text(cell)))):
        raise ValueError(
            "a prompt with text in it: this one is empty without HTML entities, spaces and invisible characters"
        )
    return str(cell)


_PARSERS: dict[str, Callable[[Any], Any]] = {name: functools.partial(parse_param, name) for name in OVERRIDES}
_PARSERS[PROMPT_COLUMN] = _parse_prompt


def _meta_columns(prompts: PromptList) -> tuple[dict[str, list[str | None]], list[Problem]]:
    """The user's own columns as text, and a problem for each cell that no text column can hold."""
    columns = {
        name: [None if cell is None else str(cell) for cell in cells]
        for name, cells in prompts.columns.items()
        if is_meta(name)
    }
    return columns, [
        prompts.problem(index, name, show(text), TEXT_EXPECTED)
        for name, texts in columns.items()
        for index, text in enumerate(texts)
        if text and NOT_TEXT.search(text)
    ]


def join_sides(prompts: PromptList) -> None:
    """Replace the two columns of a manifest that hold a frame's sides by the one that a prompt list has."""
    if set(prompts.columns).issuperset(DERIVED_COLUMNS + SIDE_COLUMNS) and SIZE_COLUMN not in prompts.columns:
        sides = zip(*(prompts.columns.pop(name) for name in SIDE_COLUMNS), strict=True)
        prompts.columns[SIZE_COLUMN] = [None if all(map(is_blank, pair)) else list(pair) for pair in sides]


# -- images --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class _Image:
    path: Location
    facts: ImageFacts


def _resolve_images(prompts: PromptList, job: BatchSpec) -> tuple[list[_Image | None], list[Problem]]:
    if job.mode is Mode.T2V:
        return [None] * len(prompts), []
    folder = prompts.folder.absolute()
    cells, problems = _resolve(
        prompts, "image_path", job.image_path, lambda cell: resolve_path(_parse_text(cell).strip(), folder)
    )
    seen = inspect_images(path for path in cells if isinstance(path, Location))
    images: list[_Image | None] = []
    for index, path in enumerate(cells):
        facts = seen.get(path)
        images.append(_Image(path=path, facts=facts) if isinstance(facts, ImageFacts) else None)
        if isinstance(facts, ImageRefusal):
            found = f"{show_path(prompts.columns.get('image_path', cells)[index] or path)}, {facts.found}"
            problems.append(prompts.problem(index, "image_path", found, facts.expected))
        elif path is None and job.mode is Mode.I2V:
            problems.append(
                prompts.problem(index, "image_path", "empty", "an image in every row, as mode i2v requires")
            )
    return images, problems


def _complete_images(rows: Rows, images: list[_Image | None]) -> None:
    rows.columns["image_path"] = [None if image is None else str(image.path) for image in images]
    rows.columns["image_sha256"] = [None if image is None else image.facts.sha256 for image in images]
    rows.columns["image_reading"] = [
        IMAGE_READING if image is not None and image.facts.is_converted else None for image in images
    ]


def _add_image_notes(rows: Rows, prompts: PromptList, images: list[_Image | None], job: BatchSpec) -> None:
    cells = zip(prompts.rows, prompts.columns.get("image_path", ()), strict=False)
    named = len({row for row, cell in cells if not is_blank(cell)})
    if job.mode is Mode.T2V and (named or job.image_path):
        rows.notes.append(f"mode t2v ignores the image of {counted(named, 'row') if named else 'all rows'}")
    with_remark: dict[str, list[int]] = {}
    for row, image in zip(prompts.rows, images, strict=True):
        for remark in image.facts.remarks if image is not None else ():
            with_remark.setdefault(remark, []).append(row)
    rows.notes += [f"{rows_have(numbers)} an image {remark}" for remark, numbers in with_remark.items()]


# -- sizes -----------------------------------------------------------------------------------------------------------


def _complete_sizes(rows: Rows, images: list[_Image | None], arch: Architecture) -> None:
    columns = rows.columns
    specs = {name: arch.spec(name) for name in set(columns["model_name"])}
    names = columns["model_name"]
    sizes = [
        _fit(wanted, image.facts if image else None, specs[name].video_area)
        for wanted, image, name in zip(columns["video_frame_height_width"], images, names, strict=True)
    ]
    columns["height"] = [height for height, _ in sizes]
    columns["width"] = [width for _, width in sizes]
    columns["video_latent_length"] = [specs[name].video_latent_length for name in names]
    columns["audio_latent_length"] = [specs[name].audio_latent_length for name in names]


@functools.cache
def _fit(wanted: tuple[int, int], image: ImageFacts | None, area: int) -> tuple[int, int]:
    return snap_size(*wanted, area) if image is None else image_size(image.height, image.width, area)
