"""Checks of the paths that a job names. They only look: nothing is created, on a disk or in a store."""

import difflib
import errno
import os
import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ovi.files import dangling_link
from ovi_ray.errors import show, show_path
from ovi_ray.inputs.first_frames import ImageRefusal, inspect_image
from ovi_ray.inputs.lists.tables import PARQUET, folders_with_parts, names_of_parts
from ovi_ray.inputs.prompt_lists import READERS, is_folder_of_tables
from ovi_ray.inputs.text_files import MISSING, readable_problem
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location

_MAX_NEIGHBOURS = 3
_MAX_NAMES_READ = 10_000

PathCheck = Callable[[Location], tuple[str, str] | None]
"""None for a path that can be used; else what was found, to be read after the path, and what was expected."""


def readable_file(expected: str) -> PathCheck:
    """A check that a path names a file that can be read."""

    def check(path: Location) -> tuple[str, str] | None:
        found = readable_problem(path)
        return (f", {found}", expected) if found else None

    return check


def prompt_list_file(path: Location) -> tuple[str, str] | None:
    """Check that a path names a prompt list that can be read; the message names files that may have been meant."""
    expected = f"a prompt list that can be read ({', '.join(READERS)}, or a folder of {PARQUET} files)"
    try:
        is_folder = is_folder_of_tables(path)
        if is_folder and names_of_parts(path):
            return None
    except OSError as error:
        return f", which cannot be read ({plain_reason(error)})", expected
    found = readable_problem(path)
    if found is None:
        return None
    if is_folder:
        inside = [*map(show, _files_in(path, *READERS)), *folders_with_parts(path)][:_MAX_NEIGHBOURS]
        meant = f"; it holds {', '.join(inside)}" if inside else ""
    elif found == MISSING:
        meant = neighbours(path)
    else:
        return f", {found}", expected
    return (
        f", {found}",
        f"{expected}{meant}; a prompt itself is given as --prompt TEXT, or as prompt: TEXT in a job file",
    )


def neighbours(path: Location) -> str:
    """The end of a message on a missing file: files that are called alike, or that its folder is missing too."""
    if (folder := path.parent.local_path) is not None and not folder.is_dir():
        return f"; there is no folder {show_path(folder)}"
    names = _files_in(path.parent)
    by_lower = {name.lower(): name for name in names}
    same_stem = [name for name in names if Path(name).stem.lower() == path.stem.lower()]
    close = difflib.get_close_matches(path.name.lower(), by_lower, n=_MAX_NEIGHBOURS)
    near = list(dict.fromkeys([*same_stem, *(by_lower[name] for name in close)]))[:_MAX_NEIGHBOURS]
    return f"; near it is {', '.join(map(show, near))}" if near else ""


def _files_in(folder: Location, *suffixes: str) -> list[str]:
    """Names of files in a folder on a disk, sorted, of the first few thousand; hidden ones are left out."""
    if folder.local_path is None:
        return []
    try:
        with os.scandir(folder.local_path) as entries:
            names = [entry.name for entry in islice(entries, _MAX_NAMES_READ) if entry.is_file()]
    except (OSError, ValueError):  # missing, unreadable, or a NUL in the path
        return []
    return sorted(name for name in names if not name.startswith(".") and name.lower().endswith(suffixes or ""))


def existing_folder(path: Location) -> tuple[str, str] | None:
    """Check that a path names a folder."""
    expected = "a checkpoint folder that exists"
    try:
        if path.is_dir():
            return None
        link = path.local_path and dangling_link(path.local_path)
        return f", {link or 'which is not a folder'}", expected
    except OSError as error:
        return f", which cannot be read ({plain_reason(error)})", expected


def writable_folder(path: Location) -> tuple[str, str] | None:
    """Check that a folder exists or can be created, and that files can be created in it."""
    reason = write_obstacle(path)
    return (f" ({reason})", "a folder that can be written to") if reason else None


def usable_image(path: Location) -> tuple[str, str] | None:
    """Check that a path names an image that can be a first frame."""
    facts = inspect_image(path)
    return (f", {facts.found}", facts.expected) if isinstance(facts, ImageRefusal) else None


def write_obstacle(folder: Location) -> str | None:
    """Why files cannot be written to a folder, as far as permissions and file types show it; None if they can.

    In a store only the listing of the bucket is checked: a refusal to write shows when the job first writes.
    """
    try:
        if folder.local_path is not None:
            return _disk_obstacle(folder.local_path)
        next(iter(folder.files()), None)  # raises StorageUnavailable where the store refuses, or has no such bucket
    except OSError as error:
        return plain_reason(error)
    except ValueError as error:  # a NUL in the path
        return str(error)
    return None


def _disk_obstacle(folder: Path) -> str | None:
    ancestor = _nearest_existing(folder.absolute())
    if not stat.S_ISDIR(ancestor.stat().st_mode):
        return os.strerror(errno.ENOTDIR)
    if hasattr(os, "statvfs") and os.statvfs(ancestor).f_flag & os.ST_RDONLY:  # Windows has none
        return os.strerror(errno.EROFS)
    if not os.access(ancestor, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return os.strerror(errno.EACCES)
    return None


def _nearest_existing(path: Path) -> Path:
    """The path itself or the closest of its parents that exists. A dangling link counts as existing."""
    for candidate in (path, *path.parents):
        try:
            candidate.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return candidate
    return path
