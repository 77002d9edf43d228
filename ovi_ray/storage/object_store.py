"""Files in object stores and distributed file systems, through pyarrow.fs, used as `pathlib.Path` is for files on disks.

Credentials come from where each store's own tools take them: environment variables, profiles, the machine's role.

A store that hangs is one that cannot be reached: Arrow waits for an answer for ever (it has no timeout on Linux), so each
question is asked in a thread of its own, and given up after a while.
"""

import functools
import io
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar, overload
from uuid import uuid4

from pyarrow import ArrowException, fs

from ovi_ray.errors import StorageUnavailable

OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
SCHEMES = (*OBJECT_STORES, "hdfs", "viewfs")
TEMPORARY = ".tmp-"  # begins the names of files that are being written
_URI = re.compile(rf"({'|'.join(SCHEMES)})://([^/?]*)/*([^?]*)\??(.*)", re.DOTALL)
_OPTIONS = {
    "s3": "allow_delayed_open=true",  # a small file is one request, not three
    "gs": "retry_limit_seconds=60",  # by itself it asks a server that does not answer for a quarter of an hour
    "gcs": "retry_limit_seconds=60",
}
ANSWER_S = 30.0  # for one answer of a store, however small
LIST_S = 900.0  # for the names in a folder: a store gives a thousand at a time
SLOWEST = 256 << 10  # bytes a second of the slowest connection that will do
_CHUNK = 8 << 20
_CHUNK_S = ANSWER_S + _CHUNK / SLOWEST
_CONNECTIONS = 8  # that fetch parts of one file: one alone makes 36 GB of weights take a quarter of an hour
_T = TypeVar("_T")


def is_uri(text: str) -> bool:
    """Whether a text names a file in a store, rather than on a disk."""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


@dataclass(kw_only=True, slots=True, frozen=True)
class RemoteStat:
    """What a store says of a file."""

    st_size: int
    st_mtime: float


@dataclass(kw_only=True, slots=True, frozen=True)
class RemotePath:
    """A file or folder in a store. Methods mean what they mean in `pathlib.Path`.

    All of them raise FileNotFoundError where a file that is needed is not there, and StorageUnavailable where the store
    cannot be reached or refuses.
    """

    scheme: str
    authority: str
    """Bucket or name node."""
    key: str
    """Path in it, without a slash at its ends."""
    query: str = ""
    """Options of pyarrow's, such as region=eu-west-1."""

    @classmethod
    def parse(cls, uri: str) -> Self:
        """The path that a URI such as s3://bucket/folder names. Raises ValueError that says what would be right."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise ValueError(f"a URI such as s3://bucket/folder ({', '.join(SCHEMES)})")
        scheme, authority, key, query = match.groups()
        if "@" in authority and scheme not in ("abfs", "abfss"):  # these name a container so
            raise ValueError(
                "a URI without credentials, which reports would show: set them as the store's tools take them"
            )
        if not authority and scheme in OBJECT_STORES:
            raise ValueError(f"a URI with a bucket, such as {scheme}://bucket/folder")
        if any(part in (".", "..") for part in key.split("/")):
            raise ValueError("a URI without . and .. in its path")
        return cls(scheme=scheme, authority=authority, key=key.rstrip("/"), query=query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}/{self.key}{'?' if self.query else ''}{self.query}"

    def __truediv__(self, name: str | Path) -> Self:
        return replace(self, key=posixpath.normpath(posixpath.join(self.key, str(name))).lstrip("/"))

    # -- its name --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.key)

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return Path(self.name).stem

    @property
    def parent(self) -> Self:
        """The folder that it is in."""
        return replace(self, key=posixpath.dirname(self.key))

    @property
    def bucket(self) -> Self:
        """The bucket that it is in, or the root of its file system."""
        return replace(self, key="")

    def with_name(self, name: str) -> Self:
        """The neighbour of that name."""
        return self.parent / name

    def absolute(self) -> Self:
        """Itself: a URI is never relative."""
        return self

    # -- what is there ---------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such a file, or anything in such a folder."""
        return self._info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self._info().type == fs.FileType.File

    def is_dir(self) -> bool:
        """Whether there is anything in such a folder."""
        return self._info().type == fs.FileType.Directory

    def stat(self) -> RemoteStat:
        """Size and time of the last change of a file."""
        info = self._info()
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self}: no such file")
        return RemoteStat(st_size=info.size, st_mtime=info.mtime_ns / 1e9)

    def files(self) -> list[tuple[str, int]]:
        """Names and sizes of the files in a folder, in order; none where there is no such folder."""
        infos = self._ask(lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True)), LIST_S)
        return sorted((info.base_name, info.size) for info in infos if info.type == fs.FileType.File)

    # -- reading ---------------------------------------------------------------------------------------------------

    @overload
    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...
    @overload
    def open(self, mode: Literal["r"] = "r", *, encoding: str, newline: str | None = None) -> IO[str]: ...
    def open(self, mode: str = "r", *, encoding: str | None = None, newline: str | None = None) -> Any:
        """A small file to read from: all of it is fetched. Files are written whole, by `upload` and `write_bytes`."""
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding=encoding, newline=newline)

    def read_bytes(self) -> bytes:
        """All of a file."""
        source = self._ask(lambda store, path: store.open_input_file(path))
        return b"".join(iter(lambda: self._ask(lambda store, path: source.read(_CHUNK), _CHUNK_S), b""))

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a text."""
        return self.read_bytes().decode(encoding)

    def download(self, local: Path) -> None:
        """Copy a file to a disk."""
        source = self._ask(lambda store, path: store.open_input_file(path))

        def fetch(offset: int) -> None:
            content = self._ask(lambda store, path: source.read_at(_CHUNK, offset), _CHUNK_S)
            _write_at(target, content, offset)

        with local.open("wb", buffering=0) as target, ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(fetch, range(0, source.size(), _CHUNK)))

    # -- writing ---------------------------------------------------------------------------------------------------

    def upload(self, local: Path) -> None:
        """Put a local file here. It is complete under its name when this returns, and until then what it was before."""
        self._write(lambda: local.open("rb"), local.stat().st_size)

    def write_bytes(self, content: bytes) -> None:
        """Put some bytes here, as `upload` does."""
        self._write(lambda: io.BytesIO(content), len(content))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        try:
            self._ask(lambda store, path: store.delete_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Self) -> Self:
        """Move a file to another name of the same store; what was there is gone."""
        if not self._is_object:
            target.unlink(missing_ok=True)  # a distributed file system moves onto nothing that is there
        self._ask(lambda store, path: store.move(path, target._in_store()[1]))
        return target

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder, where there are such things: an object store has none."""
        if not self._is_object:
            self._ask(lambda store, path: store.create_dir(path, recursive=parents or exist_ok))

    @property
    def _is_object(self) -> bool:
        """Whether files come to be all at once, when the last of them is sent."""
        return self.scheme in OBJECT_STORES

    def _write(self, source: Callable[[], IO[bytes]], size: int) -> None:
        if self._is_object:
            self._send(source, size)
            return
        aside = self.with_name(f"{TEMPORARY}{uuid4().hex[:8]}.{self.name}")
        try:
            aside._send(source, size)
            aside.replace(self)
        finally:
            aside.unlink(missing_ok=True)

    def _send(self, source: Callable[[], IO[bytes]], size: int) -> None:
        sent = self._ask(lambda store, path: _copy_in(source, store, path), ANSWER_S + size / SLOWEST)
        if sent != size:  # a stream that broke off was closed as if it were complete
            self.unlink(missing_ok=True)
            raise StorageUnavailable(f"{self}: {sent} of {size} bytes arrived")

    # -- the store -------------------------------------------------------------------------------------------------

    def _info(self) -> fs.FileInfo:
        return self._ask(lambda store, path: store.get_file_info(path))

    def _ask(self, question: Callable[[fs.FileSystem, str], _T], limit_s: float = ANSWER_S) -> _T:
        """What the file system answers, given itself and the path in it.

        What it raises becomes StorageUnavailable with the URI named, as does silence for `limit_s`.
        """
        try:
            return _answer(lambda: question(*self._in_store()), limit_s)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self}: no such file") from error
        except TimeoutError as error:
            raise StorageUnavailable(f"{self}: no answer for {limit_s:.0f} s") from error
        except (OSError, ArrowException) as error:
            raise StorageUnavailable(f"{self}: {str(error).partition(chr(10))[0]}") from error

    def _in_store(self) -> tuple[fs.FileSystem, str]:
        store, root = _file_system(self.scheme, self.authority, self.query)
        return store, f"{root.rstrip('/')}/{self.key}" if self.key else root


def _copy_in(source: Callable[[], IO[bytes]], store: fs.FileSystem, path: str) -> int:
    """Send a file; gives the size that the store then tells.

    It opens the file itself: one that is given up and ends later must not find it closed, for what it had sent by then would
    be taken for the whole.
    """
    with source() as content, store.open_output_stream(path) as target:
        shutil.copyfileobj(content, target, _CHUNK)
    return int(store.get_file_info(path).size)


def _write_at(target: IO[bytes], content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(target.fileno(), content[done:], offset + done)


def _answer(question: Callable[[], _T], limit_s: float) -> _T:
    """What `question` returns or raises; TimeoutError when it is not back in time, and then it is left alone."""
    answer: Future[_T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # whatever it is, it is the caller's
            answer.set_exception(error)

    threading.Thread(target=ask, name="store", daemon=True).start()
    return answer.result(limit_s)


@functools.cache
def _file_system(scheme: str, authority: str, query: str) -> tuple[fs.FileSystem, str]:
    """A store's file system, which keeps its connections, and the path of its root."""
    default = _OPTIONS.get(scheme, "")
    options = query if default.partition("=")[0] in query else "&".join(filter(None, (query, default)))
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(
        f"{scheme}://{authority}/{'?' if options else ''}{options}"
    )
    return found
