"""First-frame images as local files on the worker's machine."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ovi.errors import InvalidImage
from ovi_ray.errors import InputAway
from ovi_ray.storage.diagnostics import away_reason, plain_reason
from ovi_ray.storage.paths import Location, to_location
from ovi_ray.storage.scratch import scratch_folder


@dataclass(kw_only=True, slots=True, frozen=True)
class ReadConfig:
    """How often an image that cannot be read is tried."""

    tries: int = 4
    pause_s: float = 0.5
    """Before the second try; doubled before each further one."""


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
    config = config or ReadConfig()
    pause_s = config.pause_s
    for _ in range(config.tries - 1):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            break
        except OSError:
            time.sleep(pause_s)
        pause_s *= 2
    try:
        return path.read_bytes()
    except OSError as error:
        if reason := away_reason(path):
            raise InputAway(str(path), reason) from error
        raise InvalidImage(f"{path}: cannot be read: {plain_reason(error)}") from error
