"""Checks of first-frame images before anything is rendered: each must exist, decode completely and have a usable size."""

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from ovi.geometry import MAX_IMAGE_PIXELS
from ovi_ray.inputs.params import shape_problem
from ovi_ray.inputs.text_files import readable_problem, unreadable
from ovi_ray.storage.diagnostics import is_unreachable
from ovi_ray.storage.paths import Location

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_IMAGE_BYTES = 1 << 30
_DOWNLOADS = 32  # images in a store that are read at a time: most of the time is waiting
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ANY_FILE = "an image file, relative to the folder of the file that names it"
_ANY_IMAGE = f"an image that opens ({', '.join(IMAGE_FORMATS)})"


@dataclass(kw_only=True, slots=True, frozen=True)
class ImageFacts:
    """The identity and size of a first frame."""

    sha256: str
    """Digest of the file, in hex."""
    height: int
    """Pixels, as the image is displayed (after its EXIF orientation)."""
    width: int


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
    with warnings.catch_warnings(), ThreadPoolExecutor(_DOWNLOADS if is_remote else os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with the row named
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
        if path.is_local and (found := readable_problem(path)):
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
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            return _measure(content, image)
    except UnidentifiedImageError:
        return ImageRefusal(found="a file that is not an image", expected=_ANY_IMAGE)
    except Image.DecompressionBombError:
        found = f"an image of more than {2 * MAX_IMAGE_PIXELS:,} pixels"
        return ImageRefusal(found=found, expected=f"at most {MAX_IMAGE_PIXELS:,} pixels in all")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for a broken file
        return ImageRefusal(found=f"a damaged or truncated image ({error})", expected=_ANY_IMAGE)


def _measure(content: bytes, image: Image.Image) -> ImageFacts | ImageRefusal:
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
        width, height = height, width
    found = f"an image {width:,} pixels wide and {height:,} high"
    if expected := shape_problem(height, width):
        return ImageRefusal(found=found, expected=expected)
    if width * height > MAX_IMAGE_PIXELS:
        return ImageRefusal(found=found, expected=f"at most {MAX_IMAGE_PIXELS:,} pixels in all")
    image.load()
    return ImageFacts(sha256=hashlib.sha256(content).hexdigest(), height=height, width=width)
