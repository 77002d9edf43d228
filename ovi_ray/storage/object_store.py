"""Object stores (S3 and its compatibles, Google Cloud Storage, Azure) through obstore.

obstore retries, times out and sends large files in parts. An object appears when its last byte has arrived, so no write
needs a temporary name and a rename.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from ovi_ray.errors import StorageUnavailable
from ovi_ray.storage.keyed_store import KeyedStore
from ovi_ray.storage.store import FileEntry, FileKind, FileStat, PreconditionFailed, Timeouts

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore as Client

CHUNK_BYTES = 8 << 20
"""Largest object that is sent in one request, and the size of the parts of a larger one."""
_CONNECTIONS = 8  # that fetch parts of one file: one alone takes a quarter of an hour for 36 GB of weights
_LAST_CHARACTER = "\U0010ffff"


class Connect(Protocol):
    """Opens a client of one bucket."""

    def __call__(self, request_s: float) -> "Client":
        """A client that gives each request `request_s` seconds. Raises OSError for options that cannot be used."""


class ObjectStore(KeyedStore):
    """One bucket. It is a `ConditionalStore`. Connects with the first request.

    Lists must come in the order of the keys, which holds for all supported stores but the directory buckets of S3 Express.
    """

    def __init__(self, root: str, connect: Connect, *, options: str = "", timeouts: Timeouts | None = None) -> None:
        super().__init__(root, options=options, timeouts=timeouts)
        self._connect = connect

    def kind(self, key: str) -> FileKind:
        """See Store."""
        try:
            self.stat(key)
            return FileKind.FILE
        except FileNotFoundError:
            return FileKind.FOLDER if self._has_files(key) else FileKind.MISSING

    def stat(self, key: str) -> FileStat:
        """See Store."""
        if not key:
            raise FileNotFoundError(f"{self.uri(key)}: no such file")
        with self._errors(key):
            found = obstore.head(self._small, key)
        return FileStat(st_size=found["size"], st_mtime=found["last_modified"].timestamp())

    def list(self, key: str) -> Iterator[FileEntry]:
        """See Store. Streams by pages; the content of subfolders is skipped, not read."""
        prefix = f"{key}/" if key else ""
        offset: str | None = None
        while True:
            for found in self._objects_after(key, offset):
                name = found["path"].removeprefix(prefix)
                if "/" in name:
                    offset = f"{prefix}{name.partition('/')[0]}/{_LAST_CHARACTER}"
                    break
                yield FileEntry(name=name, size=found["size"], mtime=found["last_modified"].timestamp())
            else:
                return

    def read(self, key: str) -> bytes:
        """See Store. One request for a small file, parallel ones for the parts of a large one."""
        with self._errors(key):
            first = obstore.get(self._large, key)
            if first.meta["size"] <= CHUNK_BYTES:
                return bytes(first.bytes())
            return b"".join(content for _, content in self._parts(key, first.meta))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        with self._errors(key):
            size = obstore.head(self._small, key)["size"]
            end = min(start + length, size)
            return bytes(obstore.get_range(self._small, key, start=start, end=end)) if start < end else b""

    def download(self, key: str, target: Path) -> None:
        """See Store. As `read`, written to the disk part by part."""
        with target.open("wb", buffering=0) as file, self._errors(key):
            first = obstore.get(self._large, key)
            if first.meta["size"] <= CHUNK_BYTES:
                _write_at(file.fileno(), bytes(first.bytes()), 0)
                return
            for offset, content in self._parts(key, first.meta):
                _write_at(file.fileno(), content, offset)

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        with self._errors(key):
            obstore.put(self._large, key, content, chunk_size=CHUNK_BYTES)

    def upload(self, key: str, source: Path, aside: str | None = None) -> None:
        """See Store. Incomplete objects are never shown."""
        with self._errors(key):
            obstore.put(self._large, key, source, chunk_size=CHUNK_BYTES)

    def delete(self, key: str) -> None:
        """See Store."""
        try:
            with self._errors(key):
                obstore.delete(self._small, key)
        except FileNotFoundError:
            return

    def rename(self, key: str, new_key: str) -> None:
        """See Store."""
        with self._errors(key):
            obstore.rename(self._large, key, new_key)

    def make_folder(self, key: str) -> None:
        """See Store."""

    def remove_unfinished(self, key: str) -> None:
        """See Store."""

    # -- conditional writes ----------------------------------------------------------------------------------------

    def create(self, key: str, content: bytes) -> str:
        """See ConditionalStore."""
        with self._errors(key):
            return _version(obstore.put(self._small, key, content, mode="create", use_multipart=False))

    def read_version(self, key: str) -> tuple[bytes, str]:
        """See ConditionalStore."""
        with self._errors(key):
            found = obstore.get(self._small, key)
            return bytes(found.bytes()), _version(found.meta)

    def replace(self, key: str, content: bytes, version: str) -> str:
        """See ConditionalStore."""
        with self._errors(key):
            return _version(obstore.put(self._small, key, content, mode={"e_tag": version}, use_multipart=False))

    # -- requests --------------------------------------------------------------------------------------------------

    @cached_property
    def _small(self) -> "Client":
        """For requests with little content."""
        return self._connect(self._timeouts.answer_s)

    @cached_property
    def _large(self) -> "Client":
        """For requests that carry up to `CHUNK_BYTES`."""
        return self._connect(self._timeouts.transfer_s(CHUNK_BYTES))

    def _has_files(self, key: str) -> bool:
        return next(self._objects_after(key, None), None) is not None or not key

    def _objects_after(self, key: str, offset: str | None) -> Iterator[Any]:
        """The objects under a prefix, at any depth, in the order of their keys."""
        with self._errors(key):
            for page in obstore.list(self._small, key or None, offset=offset, chunk_size=1000):
                yield from page

    def _parts(self, key: str, meta: Any) -> Iterator[tuple[int, bytes]]:
        """Offset and content of each part of a large object, all of the same version."""

        def fetch(offset: int) -> tuple[int, bytes]:
            end = min(offset + CHUNK_BYTES, meta["size"])
            options: GetOptions = {"range": (offset, end), "if_match": meta["e_tag"]}
            try:
                return offset, bytes(obstore.get(self._large, key, options=options).bytes())
            except PreconditionError as error:
                raise StorageUnavailable(f"{self.uri(key)}: it changed while it was read") from error

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            yield from pool.map(fetch, range(0, meta["size"], CHUNK_BYTES))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate what obstore raises, naming the URI."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StorageUnavailable(f"{self.uri(key)}: the bucket does not exist") from error
            raise FileNotFoundError(f"{self.uri(key)}: no such file") from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise PreconditionFailed(f"{self.uri(key)}: another process wrote it meanwhile") from error
        except (BaseError, ValueError) as error:  # ValueError: a key that the store cannot hold
            raise StorageUnavailable(f"{self.uri(key)}: {str(error).partition(chr(10))[0]}") from error


def _version(meta: Any) -> str:
    if not meta["e_tag"]:
        raise StorageUnavailable("the store returned no ETag, which conditional writes need")
    return str(meta["e_tag"])


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)
