"""A first-frame image as a local file on the worker's machine."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ovi.errors import InvalidImage
from ovi_ray.storage.paths import local_copy, to_location


@contextmanager
def first_frame_file(image_path: str, sha256: str = "") -> Iterator[Path]:
    """An image of a manifest as a file on this machine, for the time of the block.

    Raises InvalidImage when it is gone, or is not the one of that hash (empty for any).
    """
    with ExitStack() as fetched:
        try:
            local = fetched.enter_context(local_copy(to_location(image_path)))
        except FileNotFoundError as error:
            raise InvalidImage(str(error)) from error
        if sha256 and (not local.is_file() or hashlib.sha256(local.read_bytes()).hexdigest() != sha256):
            raise InvalidImage(f"{image_path}: gone, or not the image that it was when the job was checked")
        yield local
