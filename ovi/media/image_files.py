"""Decoding of images in every format that Pillow reads, to upright 8-bit sRGB. Imports no torch."""

import functools
import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError

from ovi.errors import InvalidImage
from ovi.geometry import MAX_IMAGE_PIXELS
from ovi.media import png
from ovi.media.file_kinds import ANY_IMAGE, describe_unidentified, is_raw_photo

BACKGROUND = "white"
"""Shows through the transparent parts of an image."""
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow only recognises, or for which it starts another program (EPS: Ghostscript)."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by its EXIF orientation."""
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_HIGHLIGHTS = 8.0  # floats up to here are fractions of white: as 0 to 255 such an image would be black
_OVERSHOOT = 1.1  # of the other ranges, from resampling
_SAME_COLOUR = 2  # levels by which conversions between equal profiles differ
_MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@dataclass(kw_only=True, slots=True, frozen=True)
class DecodedImage:
    """The pixels of an image, and what the user should know of how they came about."""

    pixels: np.ndarray
    """RGB uint8 [H, W, 3], upright."""
    remarks: tuple[str, ...] = ()
    """Each is to be read after "an image", such as "with transparent parts, which are shown on white"."""
    is_converted: bool = False
    """Whether depth, transparency or a colour profile made the pixels other than the file's 8-bit values."""


def decode_image(content: bytes) -> DecodedImage:
    """Decode the bytes of an image file; of several frames or pages, the first.

    Grey of 16 bits keeps its high byte, as OpenCV does. Floats of at most 8 are fractions of white (what is brighter is
    clipped), larger ones of 255 or 65,535. Transparent parts are composed on BACKGROUND. Colours with an embedded profile are
    converted to sRGB, and so are those of a PNG whose chunks describe its colours otherwise.

    Raises InvalidImage with what the file is instead of an image that can be used.
    """
    reduced = png.without_metadata(content)
    stream = io.BytesIO(reduced.content)
    with _typed_errors(content), quiet_pillow(), Image.open(stream, formats=_formats()) as image:
        if reduced.profile:
            image.info["icc_profile"] = reduced.profile
        if (
            png.has_16_bit_colour_key(reduced.content) and "transparency" in image.info
        ):  # Pillow keeps the high bytes only
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        decoded = _decode(image)
    return replace(decoded, remarks=(reduced.remark, *decoded.remarks)) if reduced.remark else decoded


def decode_opened(image: Image.Image) -> DecodedImage:
    """Decode an image of Pillow, like a file: an orientation tag that it still carries applies. Raises InvalidImage."""
    with _typed_errors(), quiet_pillow():
        return _decode(image)


@contextmanager
def _typed_errors(content: bytes = b"") -> Iterator[None]:
    """Raises InvalidImage for whatever Pillow's parsers raise over a broken file: struct.error, IndexError, zlib.error, ..."""
    try:
        yield
    except (InvalidImage, MemoryError):
        raise
    except UnidentifiedImageError:
        found, expected = describe_unidentified(content)
        raise InvalidImage(found, expected=expected) from None
    except Image.DecompressionBombError:
        raise _too_large(f"an image of more than {2 * MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:
        reason = "unexpected end of the file" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise InvalidImage(f"a damaged or truncated image ({reason})", expected=ANY_IMAGE) from error


class _Quiet:
    """Suppresses warnings while any thread asks for it; `warnings.catch_warnings` alone must not overlap between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._caught = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._caught.__exit__(None, None, None)


quiet_pillow = _Quiet()
"""Within the block Pillow warns of nothing: what is wrong with an image is an InvalidImage or a remark. For any thread."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """Names of the formats to try, with those of the optional plugin."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise _too_large(f"an image {width:,} pixels wide and {height:,} high")
    if is_raw_photo(_tiff_tags(image)):
        raise InvalidImage(
            "a raw photo, of which only a preview can be read", expected="the photo, exported as JPEG or PNG"
        )


def _too_large(found: str) -> InvalidImage:
    return InvalidImage(found, expected=f"at most {MAX_IMAGE_PIXELS:,} pixels in all")


# -- pixels --------------------------------------------------------------------------------------------------------


def _decode(image: Image.Image) -> DecodedImage:
    _check(image)
    image.load()
    steps: list[_Step] = []
    upright = _UPRIGHT.get(_orientation(image) or 0)
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_MODES:
        steps.append(_reduce_depth(image))
        image = steps[-1].image
    image, alpha = _split_alpha(image)
    steps.append(_to_srgb(image, profile))
    if alpha is not None:
        steps.append(_compose(steps[-1].image, alpha))
    rgb = steps[-1].image
    return DecodedImage(
        pixels=np.asarray(rgb if upright is None else rgb.transpose(upright)),
        remarks=tuple(step.remark for step in steps if step.remark),
        is_converted=any(step.changes_values for step in steps),
    )


@dataclass(kw_only=True, slots=True, frozen=True)
class _Step:
    """A step of decoding; see `DecodedImage` for the remark and the changes."""

    image: Image.Image
    remark: str = ""
    changes_values: bool = False


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation that is still to be applied to a loaded image: loading a TIFF has applied it and removed the tag."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # metadata that Pillow cannot parse says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The image without transparency, and its alpha if it has one."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image, None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = image.getchannel("L") if image.mode in ("L", "LA") else rgba.convert("RGB")
    colours.info.pop("transparency", None)
    return colours, alpha


def _compose(colours: Image.Image, alpha: Image.Image) -> _Step:
    shown = Image.composite(colours, Image.new("RGB", colours.size, BACKGROUND), alpha)
    if ImageChops.difference(colours, shown).getbbox() is None:  # opaque, or of that colour already
        return _Step(image=colours)
    return _Step(image=shown, remark=f"with transparent parts, which are shown on {BACKGROUND}", changes_values=True)


# -- depth ---------------------------------------------------------------------------------------------------------


def _reduce_depth(image: Image.Image) -> _Step:
    """An image of 16 or 32 bits, or of floats, as L (LA with a transparent grey); a remark says what range was inferred."""
    values = np.asarray(image)
    tags = _tiff_tags(image)
    if values.dtype == np.int32 and tags.get(_SAMPLE_FORMAT, (_SIGNED,))[0] == _UNSIGNED:
        values = values.view(np.uint32)
    white = _declared_white(image, tags)
    remark = ""
    if white is None:
        white = _infer_white(values)
        remark = f"of {'floats' if image.mode == 'F' else '32-bit integers'}, read as 0 (black) to {white:,} (white)"
    grey = image.convert("L") if white == 255 else Image.fromarray(_levels(values, white))
    is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow inverts only 8 bits and fewer
    if is_inverted:
        grey = ImageChops.invert(grey)
    if isinstance(key := image.info.get("transparency"), int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    return _Step(image=grey, remark=remark, changes_values=white != 255 or is_inverted)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF's first page, none for other formats."""
    return getattr(image, "tag_v2", {})


def _declared_white(image: Image.Image, tags: Mapping[int, Any]) -> int | None:
    """The value of white that the format fixes; None for 32-bit integers and floats, which are used in every range."""
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if image.mode not in ("I", "F"):
        return int((1 << bits) - 1)
    if image.mode == "I" and image.format == "PPM":  # Pillow scales them
        return 65_535
    return 32_767 if image.mode == "I" and tags and bits == 16 else None  # signed


def _infer_white(values: np.ndarray) -> int:
    brightest = float(values.max())
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InvalidImage("an image with values that are not numbers (NaN or infinity)", expected="finite values")
        ranges = {1: _HIGHLIGHTS, 255: 255 * _OVERSHOOT, 65_535: 65_535 * _OVERSHOOT}
    else:
        ranges = {white: float(white) for white in (255, 65_535, int(np.iinfo(values.dtype).max))}
    for white, largest in ranges.items():
        if brightest <= largest:
            return white
    raise InvalidImage(f"an image of floats up to {brightest:g}", expected="floats from 0 to 1, to 255 or to 65,535")


def _levels(values: np.ndarray, white: int) -> np.ndarray:
    """0 to 255, uint8. Of whole numbers the highest 8 bits are kept, as OpenCV does, and Pillow for 16-bit RGB."""
    if values.dtype.kind == "f":
        return np.rint(np.clip(values * (255 / white), 0, 255)).astype(np.uint8)
    return np.clip(values >> (white.bit_length() - 8), 0, 255).astype(np.uint8)


# -- colour --------------------------------------------------------------------------------------------------------


def _to_srgb(image: Image.Image, profile: bytes | None) -> _Step:
    """The image as RGB. A profile that amounts to sRGB for its colours changes nothing, not even by rounding."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if not profile or image.mode == "LAB":  # which is independent of devices
        return _Step(image=rgb)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_PROFILE[source.profile.xcolor_space.strip()]
        if mode != "RGB" and mode != image.mode.replace("1", "L"):
            raise ImageCms.PyCMSError(f"a profile for {mode} in an image of {image.mode}")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        converted = transform.apply(rgb if mode == "RGB" else image.convert(mode))
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError):
        return _Step(image=rgb, remark="with a colour profile that cannot be used, and is ignored")
    if np.asarray(ImageChops.difference(rgb, converted)).max() <= _SAME_COLOUR:
        return _Step(image=rgb)
    name = (source.profile.profile_description or "unnamed").strip()
    remark = f"whose colours are converted from the profile {name!r} to sRGB"
    return _Step(image=converted, remark=remark, changes_values=True)
