"""The seeds of clips whose row sets none: derived from what a clip is, so that its place in the list has no part in them.

Rows may be inserted, sorted and deleted, and every other clip keeps its seed. Where rows have a *key*, their seeds are derived
from it, and their prompts may be rewritten. Images count by their content, as in ids, so that they may be renamed, moved, and
shipped to a cluster.

Rows that are alike in everything that is rendered are counted, and differ by that number: they are variations of each other,
and it makes no difference which of them is which.
"""

import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ovi.config import MAX_SEED
from ovi.prompts import clean
from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import KEY_COLUMN, OVERRIDES, PROMPT_COLUMN, SIDE_COLUMNS, SIZE_COLUMN
from ovi_ray.inputs.notes import name_rows
from ovi_ray.inputs.params import NEGATIVE_PROMPTS, NOT_TEXT, TEXT_EXPECTED
from ovi_ray.inputs.prompt_lists import PromptList

OFFSET_BITS = 40  # seeds of at most 13 digits, which spreadsheets keep; equal ones among a million prompts are no loss
_CONTENT = ("prompt", "image_sha256", *(name for name in OVERRIDES if name not in ("seed", SIZE_COLUMN)), *SIDE_COLUMNS)
"""Columns of a manifest that determine a clip, but for its seed."""


def derived_seeds(
    columns: Mapping[str, list[Any]], job_seed: int, *, times: int, is_list: bool, kept: pa.Table | None = None
) -> list[int]:
    """The seed of each clip. `columns` are a manifest's, in which `seed` holds the row's own one or None.

    The repeats of a row, `times` for each combination of a sweep, have consecutive seeds. The prompt of a job without a list
    has the job's seed itself. `kept` is a manifest: clips that are alike in all but the seed take those of its clips.
    """
    contents = list(_contents(columns))
    repeats = [repeat % times for repeat in columns["repeat"]]
    starts = columns["seed"] if is_list else [job_seed if own is None else own for own in columns["seed"]]
    given = [None if own is None else own + repeat for own, repeat in zip(starts, repeats, strict=True)]
    known = _known_seeds(contents, given, kept)
    numbers: Counter[tuple[Hashable, int]] = Counter()
    seeds = []
    for index, (seed, content, repeat) in enumerate(zip(given, contents, repeats, strict=True)):
        if seed is None:
            number = numbers[content, repeat]
            numbers[content, repeat] += 1
            offset = seed_offset(*_identity(columns, index, number))
            seed = known[content].popleft() if known.get(content) else job_seed + offset + repeat
        seeds.append(seed)
    return seeds


def seed_offset(*identity: str | int | None) -> int:
    """The number that is added to a job's seed for a clip, from what identifies it. It never changes between releases."""
    content = json.dumps(identity, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(content.encode()).digest(), "big") >> (256 - OFFSET_BITS)


def check_seeds(seeds: Sequence[int], prompts: PromptList, own: Sequence[int | None], job_seed: int) -> None:
    """Raises InputError with every row of which a seed is too large. `own` are the seeds that the rows of `prompts` set."""
    expected = f"a smaller seed, of the row or of the job: with what is added for the clip it exceeds {MAX_SEED}"
    times = len(seeds) // len(prompts)
    problems = [
        prompts.problem(row, "seed", show(job_seed if own[row] is None else own[row]), expected)
        for row in range(len(prompts))
        if max(seeds[row * times : (row + 1) * times]) > MAX_SEED
    ]
    if problems:
        raise InputError(problems)


def _identity(columns: Mapping[str, list[Any]], index: int, number: int) -> tuple[str | int | None, ...]:
    key = columns[KEY_COLUMN][index]
    if key is not None:
        return "key", key
    return "prompt", clean(columns[PROMPT_COLUMN][index]), columns["image_sha256"][index], number


def _contents(columns: Mapping[str, list[Any]]) -> Iterator[tuple[Hashable, ...]]:
    """For each clip everything that determines it but its seed."""
    texts = {name: {text: clean(text) for text in set(columns[name])} for name in ("prompt", *NEGATIVE_PROMPTS)}
    cleaned = {name: [texts[name][text] for text in columns[name]] for name in texts}
    return zip(*({**columns, **cleaned}[name] for name in _CONTENT), strict=True)


def _known_seeds(
    contents: Sequence[Hashable], given: Sequence[int | None], kept: pa.Table | None
) -> dict[Hashable, deque[int]]:
    """The seeds that a manifest has for each content, in the order of its rows, without those that rows set themselves."""
    if kept is None:
        return {}
    kept = kept.sort_by([("row", "ascending"), ("repeat", "ascending")])
    columns = {name: kept.column(name).to_pylist() for name in _CONTENT}
    taken: defaultdict[Hashable, set[int]] = defaultdict(set)
    for content, seed in zip(contents, given, strict=True):
        if seed is not None:
            taken[content].add(seed)
    known: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    for content, seed in zip(_contents(columns), kept.column("seed").to_pylist(), strict=True):
        if seed not in taken[content]:
            known[content].append(seed)
    return known


# -- keys --------------------------------------------------------------------------------------------------------------


def resolve_keys(prompts: PromptList, column: str) -> tuple[list[str | None], list[Problem]]:
    """The key of each row as text, None where it has none, and a problem for each that is not the key of one row alone.

    `column` is the name that the list has for them. A row with a seed of its own may have the key of another.
    """
    keys = [_key_text(cell) for cell in prompts.columns.get(column, [None] * len(prompts))]
    own = prompts.columns.get("seed", [None] * len(prompts))
    rows: dict[str, dict[int, int]] = {}  # key -> row -> index; a sweep repeats rows
    for index, key in enumerate(keys):
        if key is not None and _key_text(own[index]) is None:
            rows.setdefault(key, {}).setdefault(prompts.rows[index], index)
    problems = [
        prompts.problem(index, column, show(key), TEXT_EXPECTED)
        for index, key in enumerate(keys)
        if key is not None and NOT_TEXT.search(key)
    ]
    for key, places in rows.items():
        (first, _), *others = places.items()
        problems += [
            prompts.problem(index, column, show(key), f"a key of its own: {name_rows([first])} has this one")
            for _, index in others
        ]
    return keys, problems


def _key_text(cell: Any) -> str | None:
    """A key as text: spreadsheets store the number 7 as 7.0."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return None if cell is None else str(cell).strip() or None
