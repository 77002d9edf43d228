"""Files that a run appends to while it works: buffered, never failing the run, and mirrored to an object store."""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ovi_ray.storage.diagnostics import reason_with_file
from ovi_ray.storage.paths import Location, local_copy, staged_file
from ovi_ray.storage.scratch import scratch_folder


@dataclass(kw_only=True, slots=True, frozen=True)
class RecordConfig:
    """Buffering of a run's record. Raises ValueError for a value out of range."""

    flush_interval_s: float = 1.0
    """Seconds between two writes: what a killed run loses at most."""
    max_buffer_bytes: int = 64 << 20
    """Recording stops when so much could not be written."""
    upload_interval_s: float = 60.0
    """Seconds between two uploads to an object store, which holds files only as a whole."""
    upload_share: float = 0.1
    """Largest share of time spent on uploads: long ones become rarer."""

    def __post_init__(self) -> None:
        for name in ("flush_interval_s", "max_buffer_bytes", "upload_interval_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")
        if not 0 < self.upload_share <= 1:
            raise ValueError(f"upload_share is {self.upload_share!r}; expected more than 0, up to 1")


class AppendedFile:
    """A local file of lines. Failed writes are reported once, and repeated until the buffer is full."""

    def __init__(self, path: Path, config: RecordConfig, on_problem: Callable[[str], None]) -> None:
        """Continues an existing file, on a new line if the last one was cut off. Raises OSError."""
        self._config = config
        self._on_problem = on_problem
        self._buffer = bytearray()
        self._flushed_at = time.monotonic()
        self._has_problem = self._stopped = False
        self._file: BinaryIO = path.open("ab+", buffering=0)
        size = self._file.seek(0, 2)
        if size:
            self._file.seek(size - 1)
            self._buffer += b"" if self._file.read(1) == b"\n" else b"\n"

    def append(self, line: str) -> None:
        """Add a line, which ends with a newline; it is written with the next flush."""
        if not self._stopped:
            self._buffer += line.encode()

    def flush_if_due(self) -> None:
        """Write what has waited for the flush interval."""
        if time.monotonic() - self._flushed_at >= self._config.flush_interval_s:
            self.flush()

    def flush(self) -> None:
        """Write everything. A write that stopped halfway is continued with the next flush."""
        self._flushed_at = time.monotonic()
        try:
            while self._buffer:
                written = self._file.write(self._buffer)
                del self._buffer[: written or 0]
        except OSError as error:
            self._note(error)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        with suppress(OSError):
            self._file.close()

    def _note(self, error: OSError) -> None:
        if not self._has_problem:
            self._has_problem = True
            self._on_problem(f"the run's record cannot be written ({reason_with_file(error)}); the job goes on")
        if len(self._buffer) > self._config.max_buffer_bytes:
            self._buffer.clear()
            self._stopped = True
            self._on_problem("the run's record stops here: it could not be written for too long")


class RecordFolder:
    """A local folder for the files of a record: the output folder itself, or a mirror of files in an object store."""

    def __init__(
        self, output_dir: Location, names: tuple[str, ...], config: RecordConfig, on_problem: Callable[[str], None]
    ) -> None:
        """`names` are the files to mirror; existing ones are downloaded, so that they can be appended to. Raises OSError."""
        self._output_dir = output_dir
        self._names = names
        self._config = config
        self._on_problem = on_problem
        self._resources = ExitStack()
        self._due_at = time.monotonic() + config.upload_interval_s
        self._has_problem = False
        self._upload: threading.Thread | None = None
        if (local := output_dir.local_path) is not None:
            self.path = local
        else:
            self.path = self._resources.enter_context(scratch_folder())
            with self._resources.pop_all() as resources:  # removes the mirror if the download fails
                self._download()
                self._resources = resources.pop_all()

    def sync_if_due(self) -> None:
        """Upload in the background, unless an upload runs or the last one was recent."""
        if self._output_dir.is_local or time.monotonic() < self._due_at:
            return
        self._due_at = float("inf")  # until the upload has ended
        self._upload = threading.Thread(target=self._upload_all, name="record-upload", daemon=True)
        self._upload.start()

    def close(self) -> None:
        """Upload the final files and remove the mirror."""
        if not self._output_dir.is_local:
            if self._upload is not None:
                self._upload.join()
            self._upload_all()
        self._resources.close()

    def _download(self) -> None:
        for name in self._names:
            with suppress(FileNotFoundError), local_copy(self._output_dir / name) as local:
                shutil.copyfile(local, self.path / name)

    def _upload_all(self) -> None:
        started = time.monotonic()
        try:
            for name in self._names:
                if (self.path / name).exists():
                    with staged_file(self._output_dir / name) as copy:  # a copy: the run appends to the file meanwhile
                        shutil.copyfile(self.path / name, copy)
        except OSError as error:
            if not self._has_problem:
                self._has_problem = True
                self._on_problem(f"the run's record cannot be uploaded ({reason_with_file(error)}); the job goes on")
        ended = time.monotonic()
        self._due_at = ended + max(self._config.upload_interval_s, (ended - started) / self._config.upload_share)
