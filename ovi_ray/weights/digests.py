"""A cache of what a read of a whole weight file tells: 36 GB take a minute to hash, and the files rarely change."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ovi.config import Architecture
from ovi.errors import CheckpointMismatch
from ovi.files import atomic_writer, user_cache_folder
from ovi.weights.digest import file_digest
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import model_files
from ovi_ray.printing import counted

MAX_TENSORS_NAMED = 3
_CACHE = "weight-files.json"
_BLOCKS, _BLOCK_BYTES = 64, 64 << 10  # of a sampled digest


@dataclass(kw_only=True, slots=True, frozen=True)
class FileContent:
    """Digest of a weight file, and its tensors that are not finite."""

    sha256: str
    """In hexadecimal."""
    non_finite: Mapping[str, int] = field(default_factory=dict)
    """The tensors with numbers that are NaN or infinite, and how many such numbers each has."""

    @property
    def damage(self) -> str:
        """The tensors that are not finite, in words; empty for a file that is right."""
        if not self.non_finite:
            return ""
        counts = list(self.non_finite.items())
        named = [f"{name} ({counted(count, 'number')})" for name, count in counts[:MAX_TENSORS_NAMED]]
        more = len(counts) - len(named)
        return f"NaN or infinity in {', '.join(named)}{f' and {more:,} more' if more else ''}"


def file_content(path: Path) -> FileContent:
    """The content of a file, cached under its path, size and time of change. Raises CheckpointMismatch and OSError."""
    key, cache = _key(path), user_cache_folder() / _CACHE
    known = _read(cache)
    content = _parsed(known.get(key))
    if content is None:
        from ovi.weights.loading import non_finite_numbers  # with torch, which takes seconds to import

        content = FileContent(sha256=file_digest(path), non_finite=non_finite_numbers(path))
        _write(cache, {**_read(cache), key: asdict(content)})  # another process may have added to it meanwhile
    return content


def is_read(path: Path) -> bool:
    """Whether the content of a file is known. Raises OSError."""
    return _key(path) in _read(user_cache_folder() / _CACHE)


def content_damage(path: Path) -> str:
    """Damage found by reading a whole file, in words; empty for one that is right. Raises OSError."""
    try:
        return file_content(path).damage
    except CheckpointMismatch as error:
        return error.found


def unread_bytes(ckpt_dir: Path, model_name: str, weights: WeightFormat) -> int:
    """Size of the files of a model whose content is not known yet. Raises OSError."""
    known = _read(user_cache_folder() / _CACHE)
    files = [ckpt_dir / file for file in model_files(in_format(Architecture.read(ckpt_dir).spec(model_name), weights))]
    return sum(path.stat().st_size for path in files if _key(path) not in known)


def damaged_files(ckpt_dir: Path, model_name: str, weights: WeightFormat) -> str:
    """The files of a model with numbers that are not finite, in words; empty where all are right.

    Raises what `file_content` does.
    """
    files = model_files(in_format(Architecture.read(ckpt_dir).spec(model_name), weights))
    found = [(ckpt_dir / file, file_content(ckpt_dir / file).damage) for file in files]
    return "; ".join(f"{path}: {damage}" for path, damage in found if damage)


def cached_file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, from its cached content. Raises what `file_content` does."""
    return file_content(path).sha256


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def sampled_digest(path: Path) -> str:
    """SHA-256 of a file's size and of blocks spread over it: tells files of other content apart at a thousandth of the cost.

    A damaged byte may go unnoticed. Raises OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        last = max(0, size - _BLOCK_BYTES)
        for number in range(_BLOCKS):
            file.seek(last * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _parsed(entry: object) -> FileContent | None:
    """An entry of the cache; None where it is missing or broken."""
    match entry:
        case {"sha256": str(sha256), "non_finite": dict(non_finite)}:
            return FileContent(sha256=sha256, non_finite=non_finite)
        case _:
            return None


def _read(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or broken
        return {}
    return known if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, Any]) -> None:
    with suppress(OSError):  # a home that cannot be written costs the hashing at every start
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(cache) as unfinished:
            unfinished.write_text(json.dumps(known, indent=1), encoding="utf-8")
