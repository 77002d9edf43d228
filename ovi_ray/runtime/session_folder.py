"""The folder of a local Ray's session: sockets need short paths, and Slurm gives jobs long ones for temporary files.

That folder may also be one that cannot be written, as in a container: Python then takes another one, Ray does not.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ovi_ray.errors import ClusterError

logger = logging.getLogger(__name__)
MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket on Linux."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_PREFIX = "ovi-ray-"
_RANDOM = 8  # characters that tempfile adds to a prefix
_IN_SESSION = f"session_0000-00-00_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
"""Ray's longest socket, in the folder that it is given."""
_IN_TMPDIR = f"ray/{_IN_SESSION}"


@contextmanager
def session_folder(
    environment: Mapping[str, str] = os.environ, candidates: Sequence[str] = SHORT_FOLDERS
) -> Iterator[str | None]:
    """A folder for Ray's session where its own choice is not one for sockets, which is told, removed at the end; else None.

    Raises ClusterError where no candidate can be used.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), None)
    fault = "" if variable is None else _fault(environment[variable])
    if not fault:
        yield None
        return
    folder = _make_short(candidates)
    if folder is None:
        longest = MAX_SOCKET_PATH - len(_IN_TMPDIR) - 1
        raise ClusterError(
            f"Ray's session cannot be in {variable}={environment[variable or '']}, which {fault}, and none of"
            f" {', '.join(candidates)} can be used in its place: set RAY_TMPDIR to a folder that can be written and whose"
            f" path has at most {longest} bytes"
        )
    with folder as path:
        logger.warning("Ray's session is in %s, because the folder for temporary files %s", path, fault)
        yield path


def _fault(folder: str) -> str:
    """Why Ray cannot use a folder for temporary files, to be read after "which"; empty where it can."""
    if _length(folder, _IN_TMPDIR) > MAX_SOCKET_PATH:
        return "has too long a path"
    there = Path(folder)
    while not there.exists() and there != there.parent:  # Ray makes the rest
        there = there.parent
    return "" if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else "cannot be written"


def _make_short(candidates: Sequence[str]) -> "tempfile.TemporaryDirectory[str] | None":
    for candidate in candidates:
        made = str(Path(candidate, _PREFIX + "x" * _RANDOM))
        if _length(made, _IN_SESSION) > MAX_SOCKET_PATH or not os.path.isdir(candidate):  # noqa: PTH112
            continue
        try:
            return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=candidate, ignore_cleanup_errors=True)
        except OSError:
            continue
    return None


def _length(folder: str, rest: str) -> int:
    return len(os.fsencode(os.path.join(folder, rest)))  # noqa: PTH118
