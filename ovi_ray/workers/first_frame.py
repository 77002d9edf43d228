"""First-frame images as local files on the worker's machine."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ovi.errors import InvalidImage
from ovi_ray.storage.paths import local_copy, to_location


@contextmanager
def first_frame_file(image_path: str, sha256: str = "") -> Iterator[Path]:
    """A local path to an image, valid inside the block; images in object stores are downloaded.

    Raises InvalidImage when the image is missing, or its SHA-256 is not `sha256` (empty accepts any).
    """
    with ExitStack() as fetched:
        try:
            local = fetched.enter_context(local_copy(to_location(image_path)))
        except FileNotFoundError as error:
            raise InvalidImage(str(error)) from error
        if sha256 and (not local.is_file() or hashlib.sha256(local.read_bytes()).hexdigest() != sha256):
            raise InvalidImage(f"{image_path}: missing, or changed since the job was checked")
        yield local
