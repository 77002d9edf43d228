"""PNG files reduced to what determines their pixels, so that large or broken metadata does not count as damage.

Pillow refuses a file whose compressed text or colour profile is larger than a megabyte, or whose text has a wrong checksum.
Image generators store whole workflows there.
"""

import zlib
from collections.abc import Iterator

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


def without_metadata(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without the chunks that neither pixels nor orientation depend on, and its colour profile; another file as it is."""
    if not content.startswith(_SIGNATURE):
        return content, None
    profile = None
    kept = [_SIGNATURE]
    for kind, data, chunk in _chunks(content):
        if kind == _PROFILE:
            profile = _profile(data)
        elif _is_needed(kind, data, chunk):
            kept.append(chunk)
    return b"".join(kept), profile


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
    is_intact = zlib.crc32(kind + data) == int.from_bytes(chunk[-4:])
    if kind in _TEXTS:
        return is_intact and len(data) <= _MAX_TEXT and data.partition(b"\0")[0] in _ORIENTED and _is_small(kind, data)
    return is_intact and kind == _EXIF


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
