"""Checks of the paths that a job names. They only look: nothing is created, on a disk or in a store."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ovi.files import dangling_link
from ovi_ray.inputs.first_frames import ImageRefusal, inspect_image
from ovi_ray.inputs.lists.tables import NO_PARTS, names_of_parts
from ovi_ray.inputs.prompt_lists import is_folder_of_tables
from ovi_ray.inputs.text_files import readable_problem
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location

PathCheck = Callable[[Location], tuple[str, str] | None]
"""None for a path that can be used; else what was found, to be read after the path, and what was expected."""


def readable_file(expected: str) -> PathCheck:
    """A check that a path names a file that can be read."""

    def check(path: Location) -> tuple[str, str] | None:
        found = readable_problem(path)
        return (f", {found}", expected) if found else None

    return check


def readable_list(path: Location) -> tuple[str, str] | None:
    """Check that a path names a prompt list: a file that can be read, or a folder of Parquet files."""
    expected = "a prompt list that can be read"
    try:
        if is_folder_of_tables(path):
            return None if names_of_parts(path) else (f", {NO_PARTS}", expected)
    except OSError as error:
        return f", which cannot be read ({plain_reason(error)})", expected
    return readable_file(expected)(path)


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
    if os.statvfs(ancestor).f_flag & os.ST_RDONLY:
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
