"""Files on a local disk: the atomic writer, and the folder for cached data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import platformdirs

_POINTERS = {b"version https://git-lfs.github.com/spec/": "Git LFS", b"/annex/objects/": "git-annex"}
"""How files begin that stand for the content of others, and whose they are."""
UNFINISHED_PREFIX = ".tmp-"
"""Starts the name of a file that is being written. A process that was killed may leave one; it is safe to delete."""


def unfinished_path(target: Path, folder: Path | None = None) -> Path:
    """A new name for a file that is renamed to `target` once it is complete: beside it, or in `folder`."""
    return (folder or target.parent) / f"{UNFINISHED_PREFIX}{uuid4().hex[:8]}.{target.name}"


@contextmanager
def atomic_writer(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; it replaces `target` when the block succeeds and is removed when it raises.

    The path is beside `target`, or in `folder`, which must be on the same file system.

    The content is flushed to the disk before the rename, so a crash never leaves an incomplete `target`. Raises OSError.
    """
    unfinished = unfinished_path(target, folder)
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        with suppress(OSError):  # of a disk that is away: must not hide why the write failed
            unfinished.unlink(missing_ok=True)


def user_cache_folder() -> Path:
    """The user's cache folder for this program: $XDG_CACHE_HOME/ovi-ray, or ~/.cache/ovi-ray, on Linux."""
    return platformdirs.user_cache_path("ovi-ray", appauthor=False)


def dangling_link(path: Path) -> str | None:
    """The link on the way to a file that leads nowhere, as in a cache that was cleared in part; None without one."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return f"a link to {place.readlink()}, which does not exist"
    return None


def pointer_in_place_of(path: Path) -> str | None:
    """What stands in place of a file's content, where a checkout did not fetch it; None for any other file."""
    with path.open("rb") as file:
        start = file.read(len(max(_POINTERS, key=len)))
    return next(
        (f"a {kind} pointer in place of the file" for mark, kind in _POINTERS.items() if start.startswith(mark)), None
    )
