"""Hashes of weight files, remembered: hashing 36 GB takes a minute, and the files hardly ever change."""

import json
import os
from pathlib import Path

from ovi.weights.digest import file_digest


def cached_file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered under its path, size and time of change in the user's cache folder."""
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    cache = _cache_file()
    known = _read(cache)
    if key not in known:
        known[key] = file_digest(path)
        _write(cache, known)
    return known[key]


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ovi-ray" / "digests.json"


def _read(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or broken: it is only a cache
        return {}
    return known if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, str]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
        temporary.replace(cache)
    except OSError:  # a read-only home costs a minute at every start, and no more
        return
