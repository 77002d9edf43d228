"""Room in the cache of weights: the files that were not used for longest go, and never one that a process uses now.

A process says that it uses a file by a shared lock on the file's record, which ends with the process at the latest. The time
of the record is that of the last use.
"""

import os
import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.storage.file_locks import lock_exclusively, lock_shared

VARIABLE = "OVI_RAY_CACHE_GB"
FREE_BYTES = 1 << 30
"""Bytes that a download leaves free on the disk, by default."""
LOCK = ".lock"
"""Name of the lock of a checkpoint folder's cache."""
_RECORD = ".source"
_GB = 1e9


def cache_bound() -> float:
    """Bytes that the caches of all checkpoint folders of this machine may have together, as set by OVI_RAY_CACHE_GB.

    Infinite where it is not set. Raises InputError.
    """
    given = os.environ.get(VARIABLE, "")
    if not given:
        return float("inf")
    with suppress(ValueError):
        if 0 < (gigabytes := float(given)) < float("inf"):
            return gigabytes * _GB
    expected = "a positive number of GB for the cache of weights"
    raise InputError([Problem(file="environment", field=VARIABLE, value=show(given), expected=expected)])


class FilesInUse:
    """The files of the cache that this process uses."""

    def __init__(self) -> None:
        self._locks = ExitStack()

    def replace(self, files: Sequence[Path]) -> None:
        """From now on these are used, and no others. The caller holds the lock of their folder."""
        before, self._locks = self._locks, ExitStack()
        for file in files:
            with suppress(FileNotFoundError):  # missing in the store
                record = self._locks.enter_context(record_of(file).open("rb"))
                lock_shared(record)
                os.utime(record_of(file))
        before.close()

    def release(self) -> None:
        """None is used."""
        self.replace([])


@dataclass(kw_only=True, slots=True, frozen=True)
class _Cached:
    """A file that is there."""

    path: Path
    size: int
    used_at: float


@dataclass(kw_only=True, slots=True, frozen=True)
class Room:
    """Room for the files of one checkpoint folder. The caller holds the lock of its cache."""

    folder: Path
    """The cache of the checkpoint folder; those of others are beside it."""
    max_bytes: float
    """Of all caches together."""
    free_bytes: int
    """That stay free on the disk."""

    def make(self, needed: float, *, keep: Set[Path], in_use: FilesInUse) -> None:
        """Remove files until `needed` more bytes have room, those that this process uses last, and those in `keep` never.

        Raises NoRoom.
        """
        for may_give_up_own in (False, True):
            if may_give_up_own:
                in_use.release()
            for cached in sorted(self._all_cached(), key=lambda cached: cached.used_at):
                if not self._lacking(needed):
                    return
                if cached.path not in keep:
                    _remove(cached.path, is_locked=self.folder in cached.path.parents)
        if (lacking := self._lacking(needed)) is not None:
            raise lacking

    def _lacking(self, needed: float) -> "NoRoom | None":
        """The limit that leaves no room for `needed` more bytes; None if they have room."""
        if not needed:
            return None
        fetching = f"{needed / _GB:.1f} GB of weights to fetch"
        if needed + self.free_bytes > (free := shutil.disk_usage(self.folder).free):
            expected = "room for them: set XDG_CACHE_HOME to a folder on a larger disk"
            return NoRoom(f"{fetching}, and {free / _GB:.1f} GB are free in {self.folder}", expected)
        if needed + (cached := sum(file.size for file in self._all_cached())) > self.max_bytes:
            found = (
                f"{fetching} beside {cached / _GB:.1f} GB in use, and {VARIABLE} allows {self.max_bytes / _GB:.1f} GB"
            )
            return NoRoom(found, f"room for all weights that are used at a time: set {VARIABLE} to more")
        return None

    def _all_cached(self) -> Iterator[_Cached]:
        for record in self.folder.parent.rglob(f".*{_RECORD}"):
            file = record.with_name(record.name.removeprefix(".").removesuffix(_RECORD))
            with suppress(FileNotFoundError):  # another process removes it just now
                yield _Cached(path=file, size=file.stat().st_size, used_at=record.stat().st_mtime)


class NoRoom(Exception):
    """Files have no room in the cache, whatever is removed."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected


def record_of(file: Path) -> Path:
    """The record of a cached file: what the store said of it when it was fetched."""
    return file.with_name(f".{file.name}{_RECORD}")


def _remove(file: Path, *, is_locked: bool) -> None:
    """Remove a file, unless a process uses it, or fetches files of its folder. `is_locked`: the caller holds the folder."""
    folder = next((parent for parent in file.parents if (parent / LOCK).exists()), None)
    if folder is None:
        return
    with ExitStack() as held:
        try:
            if not is_locked:
                held.enter_context(_locked_at_once(folder / LOCK))
            held.enter_context(_locked_at_once(record_of(file)))
        except OSError:  # taken by another process, or gone
            return
        with suppress(
            PermissionError
        ):  # Windows keeps a file that is open, as the record is here: it is not used any more
            file.unlink(missing_ok=True)
            record_of(file).unlink(missing_ok=True)


@contextmanager
def _locked_at_once(path: Path) -> Iterator[None]:
    with path.open("rb") as file:
        lock_exclusively(file)
        yield
