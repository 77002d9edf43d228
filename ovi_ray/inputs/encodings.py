"""Encodings that a text which is not UTF-8 may be in. They are guesses: only its reader can tell which text is right."""

from collections.abc import Iterator
from dataclasses import dataclass

from charset_normalizer import from_bytes

_CANDIDATES = {
    "cp1252": "CP1252",
    "gb18030": "GB18030",
    "cp932": "CP932",
    "big5": "BIG5",
    "cp949": "CP949",
    "euc_jp": "EUC-JP",
    "cp1250": "CP1250",
    "cp1251": "CP1251",
    "koi8_r": "KOI8-R",
    "mac_roman": "MACINTOSH",
}
"""Python's and iconv's names of the encodings in which spreadsheets and editors save; the more frequent ones first."""
_MAX_SHOWN = 4
_SAMPLE_BYTES = 20_000
_CONTEXT = 15


@dataclass(kw_only=True, slots=True, frozen=True)
class Reading:
    """A text as one encoding reads it."""

    encoding: str
    """Name of the encoding, as iconv knows it."""
    text: str
    """The text around the first byte that is not UTF-8."""


def readings(content: bytes, line: bytes, start: int) -> list[Reading]:
    """The bytes around `line[start]` as read by each encoding that fits all of `content`, the most plausible ones first.

    Encodings that read them alike are one, and so are left out those whose text would hardly be text at all.
    """
    fitting = [name for name in _CANDIDATES if _fits(content, name)]
    sample = b"".join(_odd_lines(content))
    if not fitting:
        return []
    found = from_bytes(sample, cp_isolation=fitting, preemptive_behaviour=False)
    plausible = {name: match.chaos for match in found for name in match.could_be_from_charset if name in fitting}
    ranked = sorted(plausible, key=lambda name: (plausible[name], list(_CANDIDATES).index(name)))
    distinct: dict[str, Reading] = {}
    for name in ranked:
        text = _around(line, start, name)
        distinct.setdefault(text, Reading(encoding=_CANDIDATES[name], text=text))
    return list(distinct.values())[:_MAX_SHOWN]


def _fits(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _odd_lines(content: bytes) -> Iterator[bytes]:
    """Lines that are not plain ASCII, up to `_SAMPLE_BYTES` of them."""
    left = _SAMPLE_BYTES
    for line in content.splitlines(keepends=True):
        if not line.isascii():
            yield line[:left]
            left -= len(line)
        if left <= 0:
            return


def _around(line: bytes, start: int, encoding: str) -> str:
    """The text around a byte, with the characters that it decodes to left whole."""
    place = len(line[:start].decode(encoding, errors="ignore"))
    return line.decode(encoding)[max(0, place - _CONTEXT) : place + _CONTEXT].strip()
