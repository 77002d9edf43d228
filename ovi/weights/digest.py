"""SHA-256 of weight files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from ovi.config import Architecture
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import ARCHITECTURE, model_files


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(
    ckpt_dir: str | Path,
    model_name: str,
    digest: Callable[[Path], str] | None = None,
    weights: WeightFormat = WeightFormat.DTYPE,
) -> str:
    """SHA-256 over the contents of all files of a model, independent of where the folder is.

    `digest` computes the hash of one file; callers with a cache of digests pass their own (default: `file_digest`).
    """
    digest = digest or file_digest
    root, spec = Path(ckpt_dir), in_format(Architecture.read(ckpt_dir).spec(model_name), weights)
    files = [path for path in (*model_files(spec), ARCHITECTURE) if (root / path).exists()]
    return hashlib.sha256("".join(f"{path} {digest(root / path)}\n" for path in files).encode()).hexdigest()
