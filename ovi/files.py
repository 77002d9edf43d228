"""Files on a local disk: the atomic writer, and the folder for cached data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import platformdirs

UNFINISHED_PREFIX = ".tmp-"
"""Starts the name of a file that is being written. A process that was killed may leave one; it is safe to delete."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Pointer:
    """A kind of small file that stands for a large one which a checkout did not fetch."""

    owner: str
    fetch: str
    """The arguments of git that fetch the content, in the folder of the file."""
    begins: bytes
    """The first bytes of such a file."""


_POINTERS = (
    Pointer(owner="Git LFS", fetch="lfs pull", begins=b"version https://git-lfs"),
    Pointer(owner="git-annex", fetch="annex get .", begins=b"/annex/objects/"),
)


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


def is_file(path: Path) -> bool:
    """Whether there is such a file. Unlike `Path.is_file`, it does not raise for a name that is too long for any file."""
    try:
        return path.is_file()
    except OSError:
        return False


def dangling_link(path: Path) -> str | None:
    """The link on the way to a file that leads nowhere, as in a cache that was cleared in part; None without one."""
    for place in (path, *path.parents):
        with suppress(OSError):  # of a name that is too long
            if place.is_symlink() and not place.exists():
                return f"a link to {place.readlink()}, which does not exist"
    return None


def pointer_in(content: bytes) -> Pointer | None:
    """The pointer that a file with this content is; None for any other file."""
    return next((pointer for pointer in _POINTERS if content.startswith(pointer.begins)), None)


def pointer_in_place_of(path: Path) -> Pointer | None:
    """The pointer that stands in place of a file; None for any other file. Raises OSError."""
    with path.open("rb") as file:
        return pointer_in(file.read(max(len(pointer.begins) for pointer in _POINTERS)))
