"""Where files lie: on a disk (`pathlib.Path`) or in a store (`RemotePath`), and how each is written whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from ovi_ray.storage.object_store import SCHEMES, TEMPORARY, RemotePath, is_uri

Location = Path | RemotePath

FILES = pa.schema([("name", pa.string()), ("size", pa.int64())])
BATCH_ROWS = 64 * 1024
_SCRATCH = "ovi-ray-scratch"


def to_location(given: str | Location) -> Location:
    """The path on a disk, or in a store, that a text names. Raises ValueError for a URI that cannot be used."""
    if isinstance(given, RemotePath):
        return given
    return RemotePath.parse(given) if isinstance(given, str) and is_uri(given) else Path(given)


@contextmanager
def written(target: Location) -> Iterator[Path]:
    """A local path to write a file at: complete and safe as `target` if the block ends well, else `target` is as before.

    Raises OSError, which StorageUnavailable is one of.
    """
    if isinstance(target, RemotePath):
        with uploaded(target) as local:
            yield local
        return
    aside = target.with_name(f"{TEMPORARY}{uuid4().hex[:8]}.{target.name}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())  # the name must not outlive a crash that the content does not
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def uploaded(target: Location) -> Iterator[Path]:
    """As `written`, for a writer whose files are whole or absent by themselves: on a disk it writes `target` itself."""
    if isinstance(target, Path):
        yield target
        return
    with _scratch() as folder:
        yield folder / target.name
        target.upload(folder / target.name)


def write_bytes(target: Location, content: bytes) -> None:
    """Write a small file, as `written` does."""
    if isinstance(target, RemotePath):
        target.write_bytes(content)
        return
    with written(target) as path:
        path.write_bytes(content)


def rename(source: Location, name: str) -> Location:
    """Give a file another name in its folder. Raises OSError."""
    if isinstance(source, RemotePath):
        return source.replace(source.with_name(name))
    return source.replace(source.with_name(name))


@contextmanager
def local_copy(source: Location) -> Iterator[Path]:
    """A local path to read a file at: its own, or that of a copy that is there for the time of the block.

    Raises FileNotFoundError and StorageUnavailable for a file of a store.
    """
    if isinstance(source, Path):
        yield source
        return
    with _scratch() as folder:
        source.download(folder / source.name)
        yield folder / source.name


def list_files(folder: Location, suffix: str) -> pa.Table:
    """Names and sizes (`FILES`) of the files in a folder that end so, hidden ones left out; none without the folder."""
    return pa.Table.from_batches(_batches(_entries(folder), suffix), FILES)


def remove_unfinished(folder: Location) -> None:
    """Remove what killed processes left half written. An object store never shows such files."""
    if isinstance(folder, Path) and folder.is_dir():
        with os.scandir(folder) as entries:  # `glob` would make a list of a million names
            unfinished = [entry.path for entry in entries if TEMPORARY in entry.name]
        for path in unfinished:
            Path(path).unlink(missing_ok=True)


def remove_old_scratch() -> None:
    """Remove the copies of processes that were killed on this machine."""
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}-{_process_namespace()}-*"):
        pid = path.name.split("-")[-2]
        if Path("/proc/self").exists() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    prefix = f"{_SCRATCH}-{_process_namespace()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)


def _process_namespace() -> int:
    """Tells containers apart that share a folder for temporary files and number their processes alike."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return 0


def _entries(folder: Location) -> Iterator[tuple[str, int]]:
    if isinstance(folder, RemotePath):
        yield from folder.files()
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())


def _batches(entries: Iterator[tuple[str, int]], suffix: str) -> Iterator[pa.RecordBatch]:
    """A bounded number of Python objects at a time."""
    names: list[str] = []
    sizes: list[int] = []
    for name, size in entries:
        if name.startswith(".") or not name.endswith(suffix):
            continue
        names.append(name)
        sizes.append(size)
        if len(names) == BATCH_ROWS:
            yield pa.record_batch([names, sizes], schema=FILES)
            names, sizes = [], []
    yield pa.record_batch([names, sizes], schema=FILES)


def resolve_path(given: str | Location, folder: Location) -> Location:
    """`given`, relative to `folder`; `~` is the user's home. Raises ValueError for a URI that cannot be used."""
    if isinstance(given, RemotePath) or is_uri(str(given)):
        return to_location(given)
    if scheme := re.match(r"\w[\w+.-]*://", str(given)):
        raise ValueError(f"a path, or a URI of a kind that can be read ({', '.join(SCHEMES)}), not {scheme[0]}")
    try:
        path = Path(given).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist: a file may be called so
        path = Path(given)
    found = path if path.is_absolute() else folder / str(path)
    if isinstance(found, RemotePath) and found.key.startswith(".."):
        raise ValueError("a path that stays in the bucket")
    return found
