"""One driver at a time on an output folder.

The lock is a file that its owner holds with `flock` and touches every few seconds. The kernel lets go of it when the owner
dies, however it dies, so on one machine a dead driver's lock is free at once. Where machines share a folder without sharing
locks, the file says who touched it last: a driver elsewhere is taken for alive until it was silent for `STALE_S`.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from ovi_ray.errors import OutputInUse

LOCK = ".driver.lock"
HEARTBEAT_S = 5.0
STALE_S = 60.0  # of silence, after which a driver on another machine is taken for dead


class OutputLock:
    """A held lock."""

    def __init__(self, file: IO[str], token: str, on_lost: Callable[[], None]) -> None:
        self._file = file
        self._token = token
        self._on_lost = on_lost
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="output-lock", daemon=True)
        self.is_lost = False
        """Another driver has taken the folder over, because this one was silent for too long."""

    def start(self) -> None:
        """Begin to touch the file."""
        self._heart.start()

    def release(self) -> None:
        """Let the next driver in."""
        self._released.set()
        self._heart.join()
        with suppress(OSError):
            if not self.is_lost:
                _write(self._file, "")
        self._file.close()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(OSError, ValueError):  # storage that cannot be reached: it is touched when it is back
                self._file.seek(0)
                owner = json.loads(self._file.read() or "{}")
                if owner.get("token") != self._token:
                    self.is_lost = True
                    self._on_lost()
                    return
                os.utime(self._file.fileno())


@contextmanager
def output_lock(output_dir: Path, *, on_lost: Callable[[], None] = lambda: None) -> Iterator[OutputLock]:
    """Hold an output folder for the time of a job. Raises OutputInUse when another driver has it.

    `on_lost` is called, from another thread, when a driver on another machine took this one for dead.
    """
    file = (output_dir / LOCK).open("a+", encoding="utf-8")
    try:
        _take(file, output_dir)
        token = uuid4().hex
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started_at": int(time.time()), "token": token}
        _write(file, json.dumps(owner))
    except BaseException:
        file.close()
        raise
    lock = OutputLock(file, token, on_lost)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _take(file: IO[str], output_dir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputInUse(_refusal(output_dir, _owner(file))) from None
    except OSError:  # a file system without locks: the heartbeat alone decides
        pass
    owner = _owner(file)
    silent_s = time.time() - os.fstat(file.fileno()).st_mtime
    if owner and owner.get("host") != socket.gethostname() and silent_s < STALE_S:
        raise OutputInUse(_refusal(output_dir, owner))


def _owner(file: IO[str]) -> dict[str, object]:
    """Who wrote the lock; empty when it was released or is not readable."""
    file.seek(0)
    with suppress(ValueError):
        owner = json.loads(file.read())
        if isinstance(owner, dict):
            return owner
    return {}


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _refusal(output_dir: Path, owner: dict[str, object]) -> str:
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another driver"
    return (
        f"{output_dir} is in use: {who} renders into it now. Wait for it, stop it, or give another --out. (Should its"
        f" machine be gone, the folder is free after {STALE_S:.0f} s.)"
    )
