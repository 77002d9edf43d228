"""Prompt lists (CSV, TSV, JSON Lines, plain text, spreadsheets, Arrow and Parquet) read into columns.

Rows are counted from 1, without the header and without blank lines. Problems of single rows are collected, to be reported
together with those of the cells; a file that cannot be read as a list at all raises InputError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ovi_ray.errors import InputError, show_path
from ovi_ray.inputs.columns import PROMPT_COLUMN, in_words
from ovi_ray.inputs.lists.delimited import read_delimited
from ovi_ray.inputs.lists.json_lines import read_json_lines
from ovi_ray.inputs.lists.plain_text import read_text
from ovi_ray.inputs.lists.prompt_list import PromptList, file_problem
from ovi_ray.inputs.lists.spreadsheets import read_spreadsheet
from ovi_ray.inputs.lists.tables import PARQUET, read_columns, read_folder, read_table
from ovi_ray.inputs.text_files import check_kind, readable
from ovi_ray.storage.paths import Location

__all__ = [
    "PROMPT_COLUMN",
    "READERS",
    "ListOptions",
    "PromptList",
    "is_folder_of_tables",
    "read_prompt_list",
    "read_table",
]


@dataclass(kw_only=True, slots=True, frozen=True)
class ListOptions:
    """The user's choices on the format of a list, each for the files of `OPTION_SUFFIXES`; others are read without it."""

    delimiter: str | None = None
    """Separator of the columns of a CSV or TSV; None to find it by looking."""
    sheet: str | None = None
    """Sheet of a spreadsheet; None for the first one."""


Reader = Callable[[Location, ListOptions], PromptList]

READERS: dict[str, Reader] = {
    ".csv": lambda path, options: read_delimited(path, ",", options.delimiter),
    ".tsv": lambda path, options: read_delimited(path, "\t", options.delimiter),
    ".jsonl": lambda path, options: read_json_lines(path),
    ".ndjson": lambda path, options: read_json_lines(path),
    ".txt": lambda path, options: read_text(path),
    ".xlsx": lambda path, options: read_spreadsheet(path, options.sheet),
    ".ods": lambda path, options: read_spreadsheet(path, options.sheet),
    ".arrow": lambda path, options: read_columns(path),
    ".feather": lambda path, options: read_columns(path),
    ".ipc": lambda path, options: read_columns(path),
    PARQUET: lambda path, options: read_columns(path),
}
"""The reader of each file suffix."""
OPTION_SUFFIXES = {"delimiter": (".csv", ".tsv"), "sheet": (".xlsx", ".ods")}
"""The suffixes of the files that each of the `ListOptions` is for."""


def read_prompt_list(path: Location, options: ListOptions = ListOptions()) -> PromptList:
    """Read a prompt list by its suffix, or a folder of Parquet files.

    Raises InputError for one that cannot be read as a list at all.
    """
    if is_folder_of_tables(path):
        prompts = read_folder(path)
        if others := [name for name in sorted(entry.name for entry in path.files()) if _is_other_list(name)]:
            prompts.notes.append(f"of a folder only the Parquet files are read, not {in_words(map(show_path, others))}")
    elif path.suffix.lower() in READERS:
        prompts = READERS[path.suffix.lower()](path, options)
    else:
        with readable(path) as local:
            check_kind(path, local)
        expected = f"a prompt list that ends in {', '.join(READERS)}, or a folder of Parquet files"
        raise InputError([file_problem(path, f"a file of type {path.suffix!r}", expected)])
    if not len(prompts) and not prompts.problems:
        expected = "; ".join(["at least one prompt", *prompts.notes])
        raise InputError([file_problem(path, "no rows", expected)])
    return prompts


def _is_other_list(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in READERS and suffix != PARQUET and not name.startswith((".", "_"))


def is_folder_of_tables(path: Location) -> bool:
    """Whether a path is a folder, which can only be a list of Parquet files. Raises OSError."""
    suffix = path.suffix.lower()
    return (suffix == PARQUET or suffix not in READERS) and path.is_dir()
