"""The names of a prompt list's columns."""

import unicodedata
from collections.abc import Iterable, Sequence

from ovi_ray.inputs.params import PARAM_FIELDS

PROMPT_COLUMN = "text_prompt"
META_PREFIX = "meta_"
"""Start of the names of the user's own columns, which are carried along as text."""
KEY_COLUMN, KEY_ALIAS = "key", "id"
"""Column of names that tell rows apart, whatever becomes of their prompts, and another name for it in prompt lists."""
OVERRIDES = (*PARAM_FIELDS, "model_name")
"""Columns that override the job's value for their row."""
INPUT_COLUMNS = (PROMPT_COLUMN, "image_path", KEY_COLUMN, *OVERRIDES)
SIZE_COLUMN = "video_frame_height_width"
SIDE_COLUMNS = ("video_frame_height", "video_frame_width")
"""The columns of a manifest that hold the two sides of `SIZE_COLUMN`, so that any tool for tables opens it."""
QUALITY_COLUMN = "quality"
_LINE_ENDS = "\t\n\v\f\r\x85"


def is_meta(name: str) -> bool:
    """Whether a column is one of the user's own."""
    return name.startswith(META_PREFIX)


def is_blank(cell: object, keeps_empty: bool = False) -> bool:
    """Whether a cell gives no value: it is absent, or holds nothing but spaces where empty text is no value."""
    return cell is None or (isinstance(cell, str) and not keeps_empty and not cell.strip())


def is_known(name: str) -> bool:
    """Whether a prompt list may have a column of this name."""
    return name in INPUT_COLUMNS or name == KEY_ALIAS or is_meta(name)


def clean_name(name: str) -> str:
    """A column's name without invisible characters and without the spaces around it."""
    return "".join(map(_visible, name)).strip()


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category.startswith("Z") or character in _LINE_ENDS:
        return " "
    return "" if category in ("Cc", "Cf") else character


def clean_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The cleaned names, and a note for each that had more to it than spaces."""
    cleaned = [clean_name(name) for name in names]
    return cleaned, [
        f"the invisible characters in the column name {name!a} are ignored: it is read as {clean}"
        for name, clean in zip(names, cleaned, strict=True)
        if clean and clean != name.strip(" \t\r\n")
    ]


def place_in_list(row: int, line: int | None) -> str:
    """A row in words, with its line where it cannot be told from the row: "row 3", or "row 3 (line 7)".

    Without line breaks in cells, a row's line is its number, or one more where there is a header.
    """
    return f"row {row}" if line in (None, row, row + 1) else f"row {row} (line {line})"


def in_words(numbers: Iterable[object]) -> str:
    """ "3", "3 and 4", or "3, 4 and 7"."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
