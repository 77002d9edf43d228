"""The operations that every kind of storage offers, and the promises they keep.

`tests/unit/storage/test_conformance.py` states the promises as tests and runs them against every implementation. Keys are
paths with forward slashes; outside a local disk they have no slash at either end, and "" is the root.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable


class FileKind(StrEnum):
    """Kind of entry under a key."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"
    """A socket, a device or a pipe on a local disk."""
    MISSING = "missing"


@dataclass(kw_only=True, slots=True, frozen=True)
class FileStat:
    """Size and time of change of a file, under the names that `os.stat_result` has for them."""

    st_size: int
    """Bytes."""
    st_mtime: float
    """Seconds since the epoch by the clock of the storage, in whole seconds for some stores."""


@dataclass(kw_only=True, slots=True, frozen=True)
class FileEntry:
    """A file in the listing of a folder."""

    name: str
    size: int
    """Bytes."""
    mtime: float
    """Time of change, as in `FileStat`."""


class PreconditionFailed(OSError):
    """A conditional write found a file that should not be there, or another version than the expected one."""


class Store(Protocol):
    """One file system or bucket.

    Every method raises FileNotFoundError for a file that is needed and missing, and otherwise OSError; stores that are
    reached over a network raise StorageUnavailable, which is an OSError, also after `Timeouts.answer_s` of silence.
    """

    def uri(self, key: str) -> str:
        """The text that names a key in messages and files; `to_location` reads it back."""

    def join(self, key: str, name: str) -> str:
        """The key of `name` relative to `key`, which may contain "..". Raises ValueError where that leaves the bucket."""

    def bucket(self) -> str:
        """The URI of the bucket or file system; "" for a local disk."""

    def local_path(self, key: str) -> Path | None:
        """Path of a file on this machine; None in a store that is reached over a network."""

    def kind(self, key: str) -> FileKind:
        """The kind of thing under a key. In object stores a folder exists while a file is in it; the root always does."""

    def stat(self, key: str) -> FileStat:
        """Size and time of change of a file."""

    def list(self, key: str) -> Iterator[FileEntry]:
        """The files directly in a folder, in no particular order; none for a missing folder."""

    def read(self, key: str) -> bytes:
        """The content of a file."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on; fewer where it ends before that, none at its end."""

    def download(self, key: str, target: Path) -> None:
        """Copy a file to a local path. An incomplete `target` may remain when it raises."""

    def write(self, key: str, content: bytes) -> None:
        """Create or replace a file. Readers see all of the old content or all of the new, never a part."""

    def upload(self, key: str, source: Path, aside: str | None = None) -> None:
        """Create or replace a file from a local one, as atomically as `write`.

        Stores that show incomplete files have them in the folder `aside`, by default beside the file.
        """

    def delete(self, key: str) -> None:
        """Remove a file; a missing one is no error."""

    def rename(self, key: str, new_key: str) -> None:
        """Give a file another key, replacing what is there. Not atomic in object stores, which copy and delete."""

    def make_folder(self, key: str) -> None:
        """Create a folder and its parents where folders exist; nothing happens in object stores."""

    def remove_unfinished(self, key: str) -> None:
        """Remove the incomplete files that killed writers left directly in a folder, which may be missing.

        Nothing happens in object stores, which never show such files.
        """


@runtime_checkable
class ConditionalStore(Store, Protocol):
    """A store with compare-and-swap: of any number of concurrent conditional writes, exactly one succeeds."""

    def create(self, key: str, content: bytes) -> str:
        """Write a file that does not exist and return its version. Raises PreconditionFailed when it exists."""

    def read_version(self, key: str) -> tuple[bytes, str]:
        """Content and version of a file; the version changes whenever the content does."""

    def replace(self, key: str, content: bytes, version: str) -> str:
        """Write a file whose version is still `version` and return the new one. Raises PreconditionFailed otherwise."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Timeouts:
    """Time limits after which a store that is reached over a network counts as unreachable."""

    answer_s: float = 30.0
    """Seconds for a request with little content."""
    slowest_bytes_per_s: int = 256 << 10
    """Throughput of the slowest acceptable connection."""
    list_s: float = 900.0
    """Seconds for listing a folder in one request (HDFS); object stores list by pages of `answer_s` each."""

    def transfer_s(self, size: int) -> float:
        """Seconds allowed for a request that carries `size` bytes."""
        return self.answer_s + size / self.slowest_bytes_per_s
