"""A record of models that were checked and found right: a check needs torch and the networks, and the files rarely change."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from ovi import __version__
from ovi.config import Architecture
from ovi.errors import CheckpointError
from ovi.files import atomic_writer, user_cache_folder
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import ARCHITECTURE, model_files

_CACHE = "checked-models.json"
_MAX_KEPT = 1000


def check_model_once(folder: Path, model_name: str, weights: WeightFormat) -> list[tuple[str, CheckpointError]]:
    """The files of a model that are missing or wrong, by their path in the folder. A right model is remembered.

    Raises InvalidRequest for an unknown model or format, CheckpointMismatch for an invalid `architecture.json`, and OSError.
    """
    seen = _state(folder, model_name, weights)
    if seen is not None and seen in _known():
        return []
    from ovi.weights.loading import check_model

    statuses = check_model(folder, model_name, weights)
    found = [(status.path, status.error) for status in statuses if status.error is not None]
    if not found and seen is not None:
        _remember(seen)
    return found


def _state(folder: Path, model_name: str, weights: WeightFormat) -> str | None:
    """Equal as long as no file of the model changes; None where one is missing."""
    parts = [__version__, model_name, str(weights)]
    files = model_files(in_format(Architecture.read(folder).spec(model_name), weights))
    try:
        for path in (folder / file for file in files):
            status = path.stat()
            parts.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    except OSError:
        return None
    with suppress(FileNotFoundError):  # without one, the published sizes count
        parts.append((folder / ARCHITECTURE).read_text(encoding="utf-8"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _known() -> list[str]:
    try:
        known = json.loads((user_cache_folder() / _CACHE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or broken
        return []
    return known if isinstance(known, list) else []


def _remember(state: str) -> None:
    cache = user_cache_folder() / _CACHE
    with suppress(OSError):  # a home that cannot be written costs the check at every start
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(cache) as unfinished:
            unfinished.write_text(json.dumps([*_known(), state][-_MAX_KEPT:], indent=1), encoding="utf-8")
