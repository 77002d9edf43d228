"""`Location`, the path of a file or folder on a disk or in a store, and what is done with one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import pyarrow as pa

from ovi.files import atomic_writer
from ovi_ray.printing import is_utf8
from ovi_ray.storage.local_store import LocalStore
from ovi_ray.storage.scratch import scratch_folder
from ovi_ray.storage.store import ConditionalStore, FileEntry, FileKind, FileStat, Store
from ovi_ray.storage.uris import SCHEMES, is_uri, open_uri

FILES = pa.schema([("name", pa.string()), ("size", pa.int64()), ("mtime", pa.float64())])
BATCH_ROWS = 64 * 1024
_LOCAL = LocalStore()
_SCHEME = re.compile(r"\w[\w+.-]*://")


@dataclass(slots=True, frozen=True, repr=False)
class Location:
    """A file or folder: a store and a key in it. Methods have the names and the meaning that they have in `pathlib`.

    Those that ask the store raise FileNotFoundError where a file that is needed is missing, and OSError; StorageUnavailable
    is the OSError of stores that cannot be reached or refuse.
    """

    store: Store
    key: str

    def __str__(self) -> str:
        return self.store.uri(self.key)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __truediv__(self, name: object) -> Self:
        return type(self)(self.store, self.store.join(self.key, str(name)))

    def __reduce__(self) -> tuple[Any, ...]:
        return to_location, (str(self),)  # a store holds connections

    # -- the name --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.key).suffix

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return PurePosixPath(self.key).stem

    @property
    def parent(self) -> Self:
        """The folder that it is in."""
        parent = str(PurePosixPath(self.key).parent)
        return type(self)(self.store, "" if parent == "." and not self.is_local else parent)

    def with_name(self, name: str) -> Self:
        """The neighbour of that name."""
        return self.parent / name

    def absolute(self) -> Self:
        """The same file, whatever the working directory becomes, in the words of `simplified`."""
        local = self.local_path
        return self if local is None else type(self)(self.store, str(local.absolute())).simplified()

    def simplified(self) -> Self:
        """The same file without `..`, unless these lead back out of a linked folder: two spellings become one."""
        local = self.local_path
        if local is None or ".." not in local.parts:
            return self
        short = Path(os.path.normpath(local))
        return type(self)(self.store, str(short)) if short.resolve() == local.resolve() else self

    # -- where it is -----------------------------------------------------------------------------------------------

    @property
    def local_path(self) -> Path | None:
        """The path on a disk of this machine; None for a file in a store, which `local_copy` fetches."""
        return self.store.local_path(self.key)

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return self.local_path is not None

    @property
    def bucket(self) -> str:
        """The URI of the bucket or file system that it is in; "" for a local disk."""
        return self.store.bucket()

    @property
    def conditional_store(self) -> ConditionalStore | None:
        """The store, if it has conditional writes."""
        return self.store if isinstance(self.store, ConditionalStore) else None

    # -- what is there ---------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self.store.kind(self.key) is not FileKind.MISSING

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self.store.kind(self.key) is FileKind.FILE

    def is_dir(self) -> bool:
        """Whether there is such a folder; in an object store, whether a file is in it."""
        return self.store.kind(self.key) is FileKind.FOLDER

    def stat(self) -> FileStat:
        """Size and time of change of a file."""
        return self.store.stat(self.key)

    def files(self) -> Iterator[FileEntry]:
        """The files directly in a folder, in no particular order; none for a missing folder."""
        return self.store.list(self.key)

    # -- content ---------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The content of a file."""
        return self.store.read(self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content of a text file."""
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on; fewer where it ends before that, none at its end."""
        return self.store.read_range(self.key, start, length)

    def write_bytes(self, content: bytes) -> None:
        """Create or replace a file, atomically."""
        self.store.write(self.key, content)

    def download(self, target: Path) -> None:
        """Copy a file to a local path. An incomplete `target` may remain when it raises."""
        self.store.download(self.key, target)

    def upload(self, source: Path, aside: Self | None = None) -> None:
        """Create or replace a file from a local one, atomically. `aside` is a folder for it while it is incomplete."""
        self.store.upload(self.key, source, None if aside is None else aside.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        if not missing_ok:
            self.stat()
        self.store.delete(self.key)

    def rename(self, name: str) -> Self:
        """Give a file another name in its folder, and return the new path."""
        return self.move(self.with_name(name))

    def move(self, target: Self) -> Self:
        """Give a file another path in its store, and return that."""
        self.store.rename(self.key, target.key)
        return target

    def mkdir(self) -> None:
        """Create the folder and its parents, unless they exist or the store has no folders."""
        self.store.make_folder(self.key)


PathOrUri = str | Path | Location
"""The type that public functions take; `to_location` makes a `Location` of it."""


def to_location(given: PathOrUri) -> Location:
    """The location that a path or URI names. Raises ValueError, which says what would be right."""
    if isinstance(given, Location):
        return given
    if not is_utf8(str(given)):
        raise ValueError("a path whose name is UTF-8: rename the file or the folder")
    if isinstance(given, str) and is_uri(given):
        return Location(*open_uri(given))
    if isinstance(given, str) and (scheme := _SCHEME.match(given)):
        raise ValueError(f"a path, or a URI of a kind that can be read ({', '.join(SCHEMES)}), not {scheme[0]}")
    return Location(_LOCAL, str(Path(given)))


def resolve_path(given: PathOrUri, folder: Location) -> Location:
    """`given`, relative to `folder`; `~` is the user's home. Raises ValueError, which says what would be right."""
    if isinstance(given, Location) or _SCHEME.match(str(given)):
        return to_location(given)
    try:
        path = Path(given).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist: a file may be called so
        path = Path(given)
    return to_location(path if path.is_absolute() else str(folder / path))


@contextmanager
def local_copy(source: Location) -> Iterator[Path]:
    """A local path to read a file at: its own, or that of a copy that exists for the time of the block.

    Raises FileNotFoundError and StorageUnavailable for a file in a store; nothing is checked of a local one.
    """
    if (local := source.local_path) is not None:
        yield local
        return
    with scratch_folder() as folder:
        copy = folder / (source.name or "copy")
        source.download(copy)
        yield copy


@contextmanager
def atomic_write(target: Location, aside: Location | None = None) -> Iterator[Path]:
    """Yield a local path to write to; when the block succeeds, the file is complete as `target`. Raises OSError.

    Until then it has a temporary name beside `target`, or in the folder `aside` of the same file system.
    """
    if (local := target.local_path) is None:
        with staged_file(target, aside) as staged:
            yield staged
        return
    with atomic_writer(local, None if aside is None else aside.local_path) as unfinished:
        yield unfinished


@contextmanager
def staged_file(target: Location, aside: Location | None = None) -> Iterator[Path]:
    """As `atomic_write`, for writers that are atomic themselves: on a disk they write `target` directly."""
    if (local := target.local_path) is not None:
        yield local
        return
    with scratch_folder() as folder:
        yield folder / target.name
        target.upload(folder / target.name, aside)


def list_files(folder: Location, suffix: str) -> pa.Table:
    """Names and sizes (`FILES`) of the files in a folder with a suffix; none without the folder.

    Hidden files are left out, and those whose names are not UTF-8, which this program never writes.
    """
    return pa.Table.from_batches(_batches(folder.files(), suffix), FILES)


def remove_unfinished(folder: Location) -> None:
    """Remove what killed processes left half written in a folder. Raises OSError."""
    folder.store.remove_unfinished(folder.key)


def _batches(entries: Iterator[FileEntry], suffix: str) -> Iterator[pa.RecordBatch]:
    """A bounded number of Python objects at a time."""
    names: list[str] = []
    sizes: list[int] = []
    times: list[float] = []
    for entry in entries:
        if entry.name.startswith(".") or not entry.name.endswith(suffix) or not is_utf8(entry.name):
            continue
        names.append(entry.name)
        sizes.append(entry.size)
        times.append(entry.mtime)
        if len(names) == BATCH_ROWS:
            yield pa.record_batch([names, sizes, times], schema=FILES)
            names, sizes, times = [], [], []
    yield pa.record_batch([names, sizes, times], schema=FILES)
