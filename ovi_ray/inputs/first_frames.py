"""Checks of first-frame images before anything is rendered: each must exist, decode completely and have a usable size."""

import hashlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ovi.errors import InvalidImage
from ovi.media.image_files import decode_image
from ovi_ray.inputs.params import shape_problem
from ovi_ray.inputs.text_files import readable_problem, unreadable
from ovi_ray.storage.diagnostics import is_unreachable
from ovi_ray.storage.paths import Location

MAX_IMAGE_BYTES = 1 << 30
_DOWNLOADS = 32  # images in a store that are read at a time: most of the time is waiting
_ANY_FILE = "an image file, relative to the folder of the file that names it"


@dataclass(kw_only=True, slots=True, frozen=True)
class ImageFacts:
    """The identity and size of a first frame."""

    sha256: str
    """Digest of the file, in hex."""
    height: int
    """Pixels, as the image is displayed (after its EXIF orientation)."""
    width: int
    remarks: tuple[str, ...] = ()
    """Remarks for the user on how it is read; each follows "an image"."""
    is_converted: bool = False
    """Whether its pixels are other than the 8-bit values of the file; see `DecodedImage`."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ImageRefusal:
    """Why a file cannot be a first frame."""

    found: str
    """Description of the file, such as "a file that does not exist"."""
    expected: str


def inspect_images(paths: Iterable[Location]) -> dict[Location, ImageFacts | ImageRefusal]:
    """Inspect each distinct image once, many at a time: decoding and downloading release the interpreter lock."""
    distinct = list(dict.fromkeys(paths))
    is_remote = any(not path.is_local for path in distinct)
    with ThreadPoolExecutor(_DOWNLOADS if is_remote else os.cpu_count()) as pool:
        return dict(zip(distinct, pool.map(_Inspection().of, distinct), strict=True))


def inspect_image(path: Location, *, max_bytes: int = MAX_IMAGE_BYTES) -> ImageFacts | ImageRefusal:
    """Inspect one image: its facts, or why it is refused. A file of more than `max_bytes` is not read."""
    return _Inspection(max_bytes=max_bytes).of(path)


class _Inspection:
    """Inspects images in any number of threads."""

    def __init__(self, *, max_bytes: int = MAX_IMAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._decoding = threading.Semaphore(os.cpu_count() or 1)  # a large image takes hundreds of megabytes
        self._down: set[str] = set()  # buckets that did not answer: one question per image would take hours

    def of(self, path: Location) -> ImageFacts | ImageRefusal:
        if path.is_local and (found := readable_problem(path, accepts_pointers=True)):
            return ImageRefusal(found=found, expected=_ANY_FILE)
        if not path.is_local and path.bucket in self._down:
            return ImageRefusal(found="a file of a store that does not answer", expected=_ANY_FILE)
        try:
            if (size := path.stat().st_size) > self._max_bytes:  # a weight file, for example, would fill the memory
                return ImageRefusal(found=f"a file of {size:,} bytes", expected=f"at most {self._max_bytes:,} bytes")
            content = path.read_bytes()
        except OSError as error:
            if not path.is_local and is_unreachable(error):
                self._down.add(path.bucket)
            return ImageRefusal(found=unreadable(path, error), expected=_ANY_FILE)
        with self._decoding:
            return _decode(content)


def _decode(content: bytes) -> ImageFacts | ImageRefusal:
    try:
        image = decode_image(content)
    except InvalidImage as error:
        return ImageRefusal(found=error.found, expected=error.expected)
    height, width, _ = image.pixels.shape
    if expected := shape_problem(height, width):
        return ImageRefusal(found=f"an image {width:,} pixels wide and {height:,} high", expected=expected)
    return ImageFacts(
        sha256=hashlib.sha256(content).hexdigest(),
        height=height,
        width=width,
        remarks=image.remarks,
        is_converted=image.is_converted,
    )
