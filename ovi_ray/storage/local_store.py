"""Files on a local or mounted disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from ovi.files import UNFINISHED_PREFIX, atomic_writer
from ovi_ray.storage.store import FileEntry, FileKind, FileStat


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Name the file in errors of the block: the system does so where a file is opened, and not where it is read."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


class LocalStore:
    """The file systems of this machine. Keys are paths, relative or absolute, as the user wrote them."""

    def uri(self, key: str) -> str:
        """See Store."""
        return key

    def join(self, key: str, name: str) -> str:
        """See Store. An absolute `name` is taken as it is."""
        return str(Path(key) / name)

    def bucket(self) -> str:
        """See Store."""
        return ""

    def local_path(self, key: str) -> Path:
        """See Store."""
        return Path(key)

    def kind(self, key: str) -> FileKind:
        """See Store."""
        path = Path(key)
        try:
            if path.is_file():
                return FileKind.FILE
            if path.is_dir():
                return FileKind.FOLDER
            return FileKind.OTHER if path.exists() else FileKind.MISSING
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # there can be no such file
                raise
            return FileKind.MISSING

    def stat(self, key: str) -> FileStat:
        """See Store."""
        status = Path(key).stat()
        return FileStat(st_size=status.st_size, st_mtime=status.st_mtime)

    def list(self, key: str) -> Iterator[FileEntry]:
        """See Store. Streams: a folder may hold a million files."""
        if not Path(key).is_dir():
            return
        with os.scandir(key) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed just now
                    status = entry.stat()
                    if S_ISREG(status.st_mode):
                        yield FileEntry(name=entry.name, size=status.st_size, mtime=status.st_mtime)

    def read(self, key: str) -> bytes:
        """See Store."""
        with named_errors(key):
            return Path(key).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        with named_errors(key), Path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def download(self, key: str, target: Path) -> None:
        """See Store."""
        shutil.copyfile(key, target)

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        with atomic_writer(Path(key)) as unfinished:
            unfinished.write_bytes(content)

    def upload(self, key: str, source: Path, aside: str | None = None) -> None:
        """See Store."""
        with atomic_writer(Path(key), Path(aside) if aside else None) as unfinished:
            shutil.copyfile(source, unfinished)

    def delete(self, key: str) -> None:
        """See Store."""
        Path(key).unlink(missing_ok=True)

    def rename(self, key: str, new_key: str) -> None:
        """See Store."""
        Path(key).replace(new_key)

    def make_folder(self, key: str) -> None:
        """See Store."""
        Path(key).mkdir(parents=True, exist_ok=True)

    def remove_unfinished(self, key: str) -> None:
        """See Store."""
        if not Path(key).is_dir():
            return
        with os.scandir(key) as entries:  # `glob` would make a list of a million names
            unfinished = [entry.path for entry in entries if entry.name.startswith(UNFINISHED_PREFIX)]
        for path in unfinished:
            self.delete(path)
