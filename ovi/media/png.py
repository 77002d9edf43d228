"""PNG files reduced to what determines their pixels, so that large or broken metadata does not count as damage.

Their colour space stands in one of four chunks, of which the first one counts: cICP (numbers of ITU-T H.273), iCCP (a profile),
sRGB, and gAMA with cHRM.

Pillow refuses a file whose compressed text or colour profile is larger than a megabyte, or whose text has a wrong checksum.
Image generators store whole workflows there.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ovi.media.colour_spaces import (
    BT709_TRANSFER,
    D65,
    SRGB_PRIMARIES,
    SRGB_TRANSFER,
    Chromaticity,
    Transfer,
    rgb_profile,
)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRANSPARENCY = b"tRNS"
_EXIF = b"eXIf"
_PROFILE = b"iCCP"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTED = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of texts in which Pillow looks for an orientation."""
_MAX_TEXT = 1 << 20  # bytes, as Pillow accepts
_MAX_PROFILE = 1 << 26
_DEPTH, _COLOUR_TYPE = 24, 25  # offsets in the file
_RGB = 2


_COLOURS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_PRIMARIES: dict[int, tuple[str, tuple[Chromaticity, ...], Chromaticity]] = {
    1: ("BT.709", SRGB_PRIMARIES, D65),
    5: ("BT.601 of 625 lines", ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: ("BT.601 of 525 lines", ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), D65),
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), (0.314, 0.351)),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65),
}
"""Name, primaries and white of the colour primaries of H.273."""
_TRANSFERS = {
    **dict.fromkeys((1, 6, 14, 15), BT709_TRANSFER),
    4: Transfer(gamma=2.2),
    5: Transfer(gamma=2.8),
    8: Transfer(gamma=1.0),
    13: SRGB_TRANSFER,
}
"""The transfer characteristics of H.273 for standard dynamic range."""
_HDR = {16: "PQ", 18: "HLG"}
_RGB_IN_FULL_RANGE = (0, 1)
_USUAL_GAMMA = 1 / 2.2
_GAMMA_TOLERANCE = 0.05  # of libpng: a gamma so near to the usual one stands for the curve of sRGB
_BROKEN = b"broken"


@dataclass(kw_only=True, slots=True, frozen=True)
class Png:
    """The parts of a PNG that determine its pixels and their colours."""

    content: bytes
    """The file, without the chunks that neither pixels nor orientation depend on."""
    profile: bytes | None = None
    """An ICC profile of its colours; None for sRGB."""
    remark: str = ""
    """To be read after "an image", where the colours cannot be converted."""


def without_metadata(content: bytes) -> Png:
    """A PNG without its metadata; another file as it is."""
    if not content.startswith(_SIGNATURE):
        return Png(content=content)
    colours: dict[bytes, bytes] = {}
    kept = [_SIGNATURE]
    for kind, data, chunk in _chunks(content):
        if kind in _COLOURS:
            if kind == _PROFILE or _is_intact(kind, data, chunk):
                colours.setdefault(kind, data)
        elif _is_needed(kind, data, chunk):
            kept.append(chunk)
    profile, remark = _colour_space(colours)
    return Png(content=b"".join(kept), profile=profile, remark=remark)


def _colour_space(chunks: Mapping[bytes, bytes]) -> tuple[bytes | None, str]:
    """A profile of the colours and a remark."""
    if b"cICP" in chunks and len(chunks[b"cICP"]) == 4:
        return _coded_space(*chunks[b"cICP"])
    if _PROFILE in chunks:
        return _profile(chunks[_PROFILE]) or _BROKEN, ""
    if b"sRGB" in chunks:
        return None, ""
    return _measured_space(chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")), ""


def _coded_space(primaries: int, transfer: int, *form: int) -> tuple[bytes | None, str]:
    if transfer in _HDR:
        return None, f"in HDR ({_HDR[transfer]}), which is read as sRGB: its colours are pale; export it in SDR"
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS or tuple(form) != _RGB_IN_FULL_RANGE:
        codes = ", ".join(map(str, (primaries, transfer, *form)))
        return None, f"whose colours (cICP {codes}) are not known, and are read as sRGB"
    name, points, white = _PRIMARIES[primaries]
    return rgb_profile(name, primaries=points, white=white, transfer=_TRANSFERS[transfer]), ""


def _measured_space(gamma_chunk: bytes, points_chunk: bytes) -> bytes | None:
    gamma = int.from_bytes(gamma_chunk) / 100_000 if len(gamma_chunk) == 4 else 0.0
    points = [value / 100_000 for value in struct.unpack(">8I", points_chunk)] if len(points_chunk) == 32 else []
    if not gamma and not points:
        return None
    is_usual = not gamma or abs(gamma / _USUAL_GAMMA - 1) < _GAMMA_TOLERANCE
    white, *primaries = zip(points[::2], points[1::2], strict=True) if points else (D65, *SRGB_PRIMARIES)
    return (
        rgb_profile(
            f"gAMA {gamma:g}{', cHRM' if points else ''}" if gamma else "cHRM",
            primaries=tuple(primaries),
            white=white,
            transfer=SRGB_TRANSFER if is_usual else Transfer(gamma=1 / gamma),
        )
        or _BROKEN
    )


def has_16_bit_colour_key(content: bytes) -> bool:
    """Whether the transparent colour of a PNG, if it has one, is given in 16 bits for each of red, green and blue."""
    return content.startswith(_SIGNATURE) and content[_DEPTH : _COLOUR_TYPE + 1] == bytes((16, _RGB))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, data, the whole chunk) in the order of the file; what follows a truncated chunk comes as one without a kind."""
    start = len(_SIGNATURE)
    while start < len(content):
        length = int.from_bytes(content[start : start + 4])
        end = start + length + 12
        if end > len(content):
            yield b"", b"", content[start:]
            return
        yield content[start + 4 : start + 8], content[start + 8 : end - 4], content[start:end]
        start = end


def _is_needed(kind: bytes, data: bytes, chunk: bytes) -> bool:
    is_critical = not kind or not kind[0] & 0x20  # the case of the first letter says so
    if is_critical or kind == _TRANSPARENCY:
        return True  # with a wrong checksum too: that is damage
    is_intact = _is_intact(kind, data, chunk)
    if kind in _TEXTS:
        return is_intact and len(data) <= _MAX_TEXT and data.partition(b"\0")[0] in _ORIENTED and _is_small(kind, data)
    return is_intact and kind == _EXIF


def _is_intact(kind: bytes, data: bytes, chunk: bytes) -> bool:
    return zlib.crc32(kind + data) == int.from_bytes(chunk[-4:])


def _is_small(kind: bytes, data: bytes) -> bool:
    """Whether a text, if it is compressed, has a size that Pillow accepts."""
    rest = data.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        return True
    return _inflate(packed, _MAX_TEXT) is not None


def _profile(data: bytes) -> bytes | None:
    return _inflate(data.partition(b"\0")[2][1:], _MAX_PROFILE)


def _inflate(packed: bytes, limit: int) -> bytes | None:
    """Decompressed data; None if it is broken or larger than the limit."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, limit)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else data
