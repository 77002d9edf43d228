"""Temporary folders for local copies of files in stores, and their removal after a crash."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

import psutil

_PREFIX = "ovi-ray-scratch"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in $TMPDIR for the time of the block. Its name says which process uses it."""
    prefix = f"{_PREFIX}-{process_namespace()}-{getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)


def shared_folder(name: str) -> Path:
    """The folder in which two processes of this machine meet, not created here. `name` is "PID-SECRET", of one of them."""
    return Path(tempfile.gettempdir()) / f"{_PREFIX}-{process_namespace()}-{name}"


def remove_old_scratch() -> None:
    """Remove the scratch folders of processes that were killed on this machine."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}-{process_namespace()}-*"):
        pid = path.name.split("-")[-2]
        if not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def process_namespace() -> int:
    """Identifies the numbering of processes: containers that share a disk may have processes of the same id. 0 off Linux."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
