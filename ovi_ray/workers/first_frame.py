"""First-frame images as local files on the worker's machine."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovi.errors import InvalidImage
from ovi_ray.errors import InputAway
from ovi_ray.storage.diagnostics import away_reason, plain_reason
from ovi_ray.storage.paths import Location, to_location
from ovi_ray.storage.reading import ReadConfig, read_patiently
from ovi_ray.storage.scratch import scratch_folder


@contextmanager
def first_frame_file(image_path: str, sha256: str = "") -> Iterator[Path]:
    """A local copy of an image, for the time of the block: what is encoded is what was checked.

    Raises InvalidImage when the image is missing or cannot be read after some tries, or its SHA-256 is not `sha256` (empty
    accepts any), and InputAway when not this image is at fault, but all of its storage is away.
    """
    content = read_first_frame(to_location(image_path))
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise InvalidImage(f"{image_path}: changed since the job was checked")
    with scratch_folder() as folder:
        copy = folder / (to_location(image_path).name or "image")
        copy.write_bytes(content)
        yield copy


def read_first_frame(path: Location, config: ReadConfig | None = None) -> bytes:
    """The content of an image. Raises InvalidImage and InputAway, see `first_frame_file`."""
    try:
        return read_patiently(path, config or ReadConfig())
    except OSError as error:
        if reason := away_reason(path):
            raise InputAway(str(path), reason) from error
        raise InvalidImage(f"{path}: cannot be read: {plain_reason(error)}") from error
