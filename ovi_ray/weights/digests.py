"""A cache of the hashes of weight files: hashing 36 GB takes a minute, and the files rarely change."""

import json
from contextlib import suppress
from pathlib import Path

from ovi.files import atomic_writer, user_cache_folder
from ovi.weights.digest import file_digest


def cached_file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, cached under its path, size and time of change."""
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    cache = user_cache_folder() / "digests.json"
    known = _read(cache)
    if key not in known:
        known[key] = file_digest(path)
        _write(cache, known)
    return known[key]


def _read(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or broken
        return {}
    return known if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, str]) -> None:
    with suppress(OSError):  # a home that cannot be written costs the hashing at every start
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(cache) as unfinished:
            unfinished.write_text(json.dumps(known, indent=1), encoding="utf-8")
