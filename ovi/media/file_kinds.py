"""Descriptions of files that cannot be opened as images, by their first bytes, for messages."""

import re
from collections.abc import Mapping
from typing import Any

from ovi.files import pointer_in

ANY_IMAGE = "an image that opens (PNG, JPEG, WEBP, BMP, TIFF, GIF)"
_AS_IMAGE = "the image itself, for example exported as PNG or JPEG"
_IMAGES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
}
_OTHERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript drawing",
    b"\xc5\xd0\xd3\xc6": "a PostScript drawing",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"#?RGBE": "a Radiance HDR image",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"FUJIFILMCCD-RAW": "a raw photo",
    b"IIRO": "a raw photo",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"\x1aE\xdf\xa3": "a video",
    b"\x93NUMPY": "a NumPy array",
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MARKUP = {
    re.compile(rb"<svg[\s>]", re.IGNORECASE): "an SVG drawing",
    re.compile(rb"<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]", re.IGNORECASE): "an HTML page",
}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}
_LOOKED_AT = 1024  # bytes of markup
_DNG_VERSION, _SUBFILE_TYPE, _SUB_IMAGES = 50_706, 254, 330  # tags of TIFF
_REDUCED = 1  # bit of the subfile type: a smaller version of another image in the file


def describe_unidentified(content: bytes) -> tuple[str, str]:
    """A description of a file that Pillow does not open, and of the file that was expected in its place."""
    if not content:
        return "an empty file", ANY_IMAGE
    if pointer := pointer_in(content):
        found = f"a {pointer.owner} pointer in place of the image"
        return found, f"the image itself, which `git {pointer.fetch}` fetches"
    if content[4:8] == b"ftyp":
        return _iso_media(content)
    if content[:4] == b"RIFF":
        return (
            ("a damaged or truncated WebP image", ANY_IMAGE) if content[8:12] == b"WEBP" else ("a RIFF file", ANY_IMAGE)
        )
    if content.startswith(_TIFF):
        return (
            "a TIFF image that is damaged, or of a kind that cannot be read",
            "a TIFF with 8 or 16 bits a channel, or a PNG",
        )
    for magic, name in _IMAGES.items():
        if content.startswith(magic):
            return f"a damaged or truncated {name} image", ANY_IMAGE
    for magic, name in _OTHERS.items():
        if content.startswith(magic):
            return name, _AS_IMAGE
    return _text(content)


def is_raw_photo(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF with these tags is a raw photo, whose first image is a small preview."""
    is_preview = bool(tags.get(_SUBFILE_TYPE, 0) & _REDUCED) and _SUB_IMAGES in tags
    return is_preview or _DNG_VERSION in tags


def _iso_media(content: bytes) -> tuple[str, str]:
    size = int.from_bytes(content[:4])
    brands = {content[8:12], *(content[start : start + 4] for start in range(16, min(size, 256), 4))}
    if brands & _AVIF:
        return (
            "an AVIF image that is damaged, or that this build of Pillow cannot read",
            "Pillow 11.3 or later, or a PNG",
        )
    if brands & _HEIC:
        return (
            "a HEIC image that is damaged, or whose plugin (pillow-heif) is not installed",
            "`pip install 'ovi-ray[heif]'`, or the image saved as JPEG or PNG",
        )
    return ("a raw photo", _AS_IMAGE) if content[8:12] == b"crx " else ("a video", _AS_IMAGE)


def _text(content: bytes) -> tuple[str, str]:
    start = content[:_LOOKED_AT]
    for pattern, name in _MARKUP.items():
        if pattern.search(start):
            return name, _AS_IMAGE
    return "a file that is not an image", ANY_IMAGE
