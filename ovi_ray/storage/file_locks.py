"""Locks on open files, by POSIX's `flock` or by Windows' C library. They end with their process at the latest.

filelock, which serves where a lock has a file of its own, empties the files that it locks, and knows no shared locks of files.
"""

import errno
import importlib
import os
import random
import time
from typing import IO, Any

_PLACE = 1 << 30
"""Windows locks bytes, and nobody else may read those: these are beyond the end of every file that is locked here."""
_SHARES = 1 << 16
"""Bytes of which a shared lock takes one, and an exclusive lock all."""
_RETRY_S = 0.1


def lock_exclusively(file: IO[Any], *, waits: bool = False) -> None:
    """Lock a file against every other lock. Raises BlockingIOError where another process has it, unless it `waits`.

    Raises OSError where the file system, or this Python, has no locks.
    """
    if (fcntl := _module("fcntl")) is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        return
    while not _lock_bytes(file, _PLACE, _SHARES):
        if not waits:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        time.sleep(_RETRY_S)


def lock_shared(file: IO[Any]) -> None:
    """Lock a file against exclusive locks, for which it waits. Raises OSError as `lock_exclusively`."""
    if (fcntl := _module("fcntl")) is not None:
        fcntl.flock(file, fcntl.LOCK_SH)
        return
    while not _lock_bytes(file, _PLACE + random.randrange(_SHARES), 1):
        time.sleep(_RETRY_S)


def _lock_bytes(file: IO[Any], start: int, count: int) -> bool:
    """Whether these bytes of a file could be locked, on Windows."""
    if (msvcrt := _module("msvcrt")) is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    descriptor = file.fileno()
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)
    except OSError:
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return True


def _module(name: str) -> Any:
    """A module that only one system has; None on the others."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
