"""HDFS through pyarrow.fs.

libhdfs waits for an answer without limit, so each request runs in a thread of its own and is abandoned after a while.
pyarrow offers no atomic create for HDFS (its `move` deletes an existing target), so this is no `ConditionalStore`.
"""

import posixpath
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar
from uuid import uuid4

from pyarrow import ArrowException, fs

from ovi.files import UNFINISHED_PREFIX
from ovi_ray.errors import StorageUnavailable
from ovi_ray.storage.keyed_store import KeyedStore
from ovi_ray.storage.store import FileEntry, FileKind, FileStat, Timeouts

CHUNK_BYTES = 8 << 20
_KINDS = {
    fs.FileType.File: FileKind.FILE,
    fs.FileType.Directory: FileKind.FOLDER,
    fs.FileType.NotFound: FileKind.MISSING,
}
_T = TypeVar("_T")

Connect = Callable[[], tuple[fs.FileSystem, str]]
"""Opens a file system; the text is the path of its root."""


class HdfsStore(KeyedStore):
    """One name node. Connects with the first request, which starts a Java machine."""

    def __init__(self, root: str, connect: Connect, *, options: str = "", timeouts: Timeouts | None = None) -> None:
        super().__init__(root, options=options, timeouts=timeouts)
        self._connect = connect
        self._connected: tuple[fs.FileSystem, str] | None = None

    def kind(self, key: str) -> FileKind:
        """See Store."""
        return _KINDS.get(self._info(key).type, FileKind.OTHER)

    def stat(self, key: str) -> FileStat:
        """See Store."""
        info = self._info(key)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self.uri(key)}: no such file")
        return FileStat(st_size=info.size, st_mtime=info.mtime_ns / 1e9)

    def list(self, key: str) -> Iterator[FileEntry]:
        """See Store."""
        infos = self._ask(
            key,
            lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True)),
            self._timeouts.list_s,
        )
        return (
            FileEntry(name=info.base_name, size=info.size, mtime=info.mtime_ns / 1e9)
            for info in infos
            if info.type == fs.FileType.File
        )

    def read(self, key: str) -> bytes:
        """See Store."""
        return b"".join(self._chunks(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See Store."""

        def read(store: fs.FileSystem, path: str) -> bytes:
            with store.open_input_file(path) as source:
                size = source.size()
                return bytes(source.read_at(min(length, size - start), start)) if start < size else b""

        return self._ask(key, read, self._timeouts.transfer_s(length))

    def download(self, key: str, target: Path) -> None:
        """See Store."""
        with target.open("wb") as file:
            for chunk in self._chunks(key):
                file.write(chunk)

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        self._write(key, lambda: BytesIO(content), len(content))

    def upload(self, key: str, source: Path, aside: str | None = None) -> None:
        """See Store."""
        self._write(key, lambda: source.open("rb"), source.stat().st_size, aside)

    def delete(self, key: str) -> None:
        """See Store."""
        try:
            self._ask(key, lambda store, path: store.delete_file(path))
        except (FileNotFoundError, StorageUnavailable):
            if self.kind(key) is not FileKind.MISSING:
                raise

    def rename(self, key: str, new_key: str) -> None:
        """See Store. HDFS renames only onto a free name, so what is there is removed first."""
        self.delete(new_key)
        self._ask(key, lambda store, path: store.move(path, self._path(new_key)))

    def make_folder(self, key: str) -> None:
        """See Store."""
        self._ask(key, lambda store, path: store.create_dir(path, recursive=True))

    def remove_unfinished(self, key: str) -> None:
        """See Store."""
        unfinished = [entry.name for entry in self.list(key) if entry.name.startswith(UNFINISHED_PREFIX)]
        for name in unfinished:
            self.delete(self.join(key, name))

    # -- requests --------------------------------------------------------------------------------------------------

    def _write(self, key: str, source: Callable[[], IO[bytes]], size: int, aside: str | None = None) -> None:
        """Write under a temporary name and rename: HDFS shows a file from its first byte on."""
        folder = posixpath.dirname(key) if aside is None else aside
        unfinished = posixpath.join(folder, f"{UNFINISHED_PREFIX}{uuid4().hex[:8]}.{posixpath.basename(key)}")
        try:
            limit_s = self._timeouts.transfer_s(size)
            written = self._ask(unfinished, lambda store, path: _copy(source, store, path), limit_s)
            if written != size:  # a stream that broke off was closed as if it were complete
                raise StorageUnavailable(f"{self.uri(key)}: {written} of {size} bytes arrived")
            self.rename(unfinished, key)
        finally:
            with suppress(OSError):  # must not hide why the write failed
                self.delete(unfinished)

    def _chunks(self, key: str) -> Iterator[bytes]:
        source = self._ask(key, lambda store, path: store.open_input_file(path))
        limit_s = self._timeouts.transfer_s(CHUNK_BYTES)
        return iter(lambda: self._ask(key, lambda store, path: source.read(CHUNK_BYTES), limit_s), b"")

    def _info(self, key: str) -> fs.FileInfo:
        return self._ask(key, lambda store, path: store.get_file_info(path))

    def _ask(self, key: str, request: Callable[[fs.FileSystem, str], _T], limit_s: float | None = None) -> _T:
        """The result of a request on the file system and the path of `key` in it."""
        limit_s = self._timeouts.answer_s if limit_s is None else limit_s
        try:
            return _with_timeout(lambda: request(self._file_system()[0], self._path(key)), limit_s)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.uri(key)}: no such file") from error
        except TimeoutError as error:
            raise StorageUnavailable(f"{self.uri(key)}: no answer for {limit_s:.0f} s") from error
        except (OSError, ArrowException, ValueError) as error:  # ValueError: a name that is not UTF-8
            raise StorageUnavailable(f"{self.uri(key)}: {str(error).partition(chr(10))[0]}") from error

    def _file_system(self) -> tuple[fs.FileSystem, str]:
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def _path(self, key: str) -> str:
        root = self._file_system()[1]
        return f"{root.rstrip('/')}/{key}" if key else root


def _copy(source: Callable[[], IO[bytes]], store: fs.FileSystem, path: str) -> int:
    """Send a file and return the size that the file system then reports.

    Opens the source itself: a request that was abandoned must not find it closed, or a part would be taken for the whole.
    """
    with source() as content, store.open_output_stream(path) as target:
        shutil.copyfileobj(content, target, CHUNK_BYTES)
    return int(store.get_file_info(path).size)


def _with_timeout(request: Callable[[], _T], limit_s: float) -> _T:
    """The result of `request`, or its exception; TimeoutError after `limit_s`, when it is left running in its thread."""
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:  # every failure belongs to the caller
            answer.set_exception(error)

    threading.Thread(target=run, name="hdfs-request", daemon=True).start()
    return answer.result(limit_s)
