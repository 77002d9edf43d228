"""First-frame images, looked at before anything is rendered: they must exist, decode wholly and be of a sane size."""

import hashlib
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from ovi.geometry import MAX_IMAGE_PIXELS
from ovi_ray.fields import shape_problem
from ovi_ray.text_files import readable_problem

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ANY_IMAGE = f"an image that opens ({', '.join(IMAGE_FORMATS)})"


@dataclass(kw_only=True, slots=True, frozen=True)
class ImageFacts:
    """What a clip needs to know of its first frame."""

    sha256: str
    """Of the file, in hex."""
    height: int
    width: int


@dataclass(kw_only=True, slots=True, frozen=True)
class ImageRefusal:
    """Why a file cannot be a first frame."""

    found: str
    """What it is, such as "a file that does not exist"."""
    expected: str


def inspect_images(paths: Iterable[Path]) -> dict[Path, ImageFacts | ImageRefusal]:
    """Look at each distinct image once, on all cores: Pillow decodes outside the interpreter's lock."""
    distinct = list(dict.fromkeys(paths))
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with the row named
        return dict(zip(distinct, pool.map(inspect_image, distinct), strict=True))


def inspect_image(path: Path) -> ImageFacts | ImageRefusal:
    """The facts of one image, or why it is refused."""
    if found := readable_problem(path):
        return ImageRefusal(found=found, expected="an image file, relative to the folder of the file that names it")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return _measure(path, image)
    except UnidentifiedImageError:
        return ImageRefusal(found="a file that is not an image", expected=_ANY_IMAGE)
    except Image.DecompressionBombError:
        found = f"an image of more than {2 * MAX_IMAGE_PIXELS:,} pixels"
        return ImageRefusal(found=found, expected=f"at most {MAX_IMAGE_PIXELS:,} pixels in all")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is broken
        return ImageRefusal(found=f"a damaged or truncated image ({error})", expected=_ANY_IMAGE)


def _measure(path: Path, image: Image.Image) -> ImageFacts | ImageRefusal:
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
        width, height = height, width
    found = f"an image {width:,} pixels wide and {height:,} high"
    if expected := shape_problem(height, width):
        return ImageRefusal(found=found, expected=expected)
    if width * height > MAX_IMAGE_PIXELS:
        return ImageRefusal(found=found, expected=f"at most {MAX_IMAGE_PIXELS:,} pixels in all")
    image.load()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageFacts(sha256=digest, height=height, width=width)
