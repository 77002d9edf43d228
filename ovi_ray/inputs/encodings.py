"""Encodings that a text which is not UTF-8 may be in. They are guesses: only its reader can tell which text is right."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from charset_normalizer import from_bytes

_CANDIDATES = {
    "cp1252": "CP1252",
    "gb18030": "GB18030",
    "cp932": "CP932",
    "cp949": "CP949",
    "big5": "BIG5",
    "euc_jp": "EUC-JP",
    "cp1251": "CP1251",
    "cp1250": "CP1250",
    "cp1254": "CP1254",
    "cp1255": "CP1255",
    "cp1256": "CP1256",
    "cp1253": "CP1253",
    "cp874": "CP874",
    "cp1257": "CP1257",
    "cp1258": "CP1258",
    "mac_roman": "MACINTOSH",
    "cp850": "CP850",
    "cp437": "CP437",
    "cp852": "CP852",
    "cp866": "CP866",
    "koi8_r": "KOI8-R",
    "iso8859_2": "ISO-8859-2",
    "iso8859_15": "ISO-8859-15",
    "iso8859_5": "ISO-8859-5",
    "iso8859_7": "ISO-8859-7",
    "mac_cyrillic": "MAC-CYRILLIC",
}
"""Python's and iconv's names of the encodings in which spreadsheets and editors save; the more frequent ones first."""
_WIDE = {"utf_32_le": "UTF-32LE", "utf_32_be": "UTF-32BE", "utf_16_le": "UTF-16LE", "utf_16_be": "UTF-16BE"}
"""The same of the encodings whose characters take two or four bytes."""
_MIXED_SCRIPTS = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "COMBINING"}
"""First words of the names of characters that stand beside letters of any script."""
_ASCII_WORD = re.compile(rb"[ -~]{6,}")
"""In no text of wide characters without a zero byte, which is one line of Chinese, Japanese or Korean."""
_SYMBOLS = ("Sm", "So", "Sk", "Sc")
_OPENING, _CLOSING = "‘“（「『《〈［", "’”）」』》〉］"
"""Quotes and brackets of scripts without spaces between words, and apostrophes."""
_FEW_ZEROS = 8  # of so many bytes of UTF-16 with ASCII in it, one at least is zero
_MAX_SHOWN = 5
_MAX_OF_A_SCRIPT = 3  # the other ones would crowd out the right one where the script is another
_SAMPLE_BYTES = 20_000
_CONTEXT = 24
_HARDLY_TEXT = 0.25  # disorder, from 0
_PLAIN_CONTROLS = "\t\n\v\f\r\x1a"  # the last one ends files of DOS
_NO_TEXT = "\u00a4"  # a currency sign that nobody writes, where other encodings have the euro


@dataclass(kw_only=True, slots=True, frozen=True)
class Reading:
    """A text as one encoding reads it."""

    encoding: str
    """Name of the encoding, as iconv knows it."""
    text: str
    """The text around a byte that is not ASCII."""


def readings(content: bytes) -> list[Reading]:
    """A part of `content` as read by each encoding that fits all of it, the most plausible ones first.

    Encodings that read it alike are one, and so are left out those whose text would hardly be text at all.
    """
    if b"\0" in content or not _ASCII_WORD.search(content):
        return [*_wide_readings(content), *_byte_readings(content)][:_MAX_SHOWN]
    return _byte_readings(content)


def _wide_readings(content: bytes) -> list[Reading]:
    if 0 < content.count(0) * _FEW_ZEROS < len(content) and _decoded(content.replace(b"\0", b""), "utf_8") is not None:
        return []  # text with a stray zero byte
    texts = {name: text for name in _WIDE if (text := _decoded(content, name)) is not None}
    return [Reading(encoding=_WIDE[name], text=_excerpt(text)) for name, text in texts.items() if text]


def _byte_readings(content: bytes) -> list[Reading]:
    sample = b"".join(_odd_lines(content))
    fitting = [name for name in _CANDIDATES if _decoded(content, name) is not None]
    if not fitting or not sample:
        return []
    found = from_bytes(sample, cp_isolation=fitting, preemptive_behaviour=False, threshold=_HARDLY_TEXT)
    ranks = {}
    for match in found:
        for name in match.could_be_from_charset:
            disorder = match.chaos + _disorder(sample.decode(name))
            if name in fitting and disorder <= _HARDLY_TEXT:
                ranks[name] = (round(disorder, 2), -match.coherence, fitting.index(name))
    shown: dict[str, Reading] = {}
    scripts: Counter[str] = Counter()
    line = max(_odd_lines(content), key=lambda line: len({byte for byte in line if byte > 0x7F}))
    for name in sorted(ranks, key=lambda name: ranks[name]):
        text = _excerpt(line.decode(name))
        script = _script_of(text)
        if text not in shown and scripts[script] < _MAX_OF_A_SCRIPT:
            scripts[script] += 1
            shown[text] = Reading(encoding=_CANDIDATES[name], text=text)
    return list(shown.values())[:_MAX_SHOWN]


def _decoded(content: bytes, encoding: str) -> str | None:
    """The text; None where the bytes do not fit, or stand for characters that no text has."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    kinds = {unicodedata.category(character) for character in set(text) - set(_PLAIN_CONTROLS)}
    return None if kinds & {"Cc", "Cn", "Co", "Cs"} or _NO_TEXT in text else text


def _odd_lines(content: bytes) -> Iterator[bytes]:
    """Lines that are not plain ASCII, up to `_SAMPLE_BYTES` of them."""
    left = _SAMPLE_BYTES
    for line in content.splitlines(keepends=True):
        if not line.isascii():
            yield line
            left -= len(line)
        if left <= 0:
            return


def _disorder(text: str) -> float:
    """The share of characters beyond ASCII that stand beside what they never stand beside in a word."""
    odd = sum(not character.isascii() for character in text)
    wrong = sum(_is_wrong_pair(*pair) for pair in pairwise(text) if not "".join(pair).isascii())
    return wrong / odd if odd else 0.0


def _is_wrong_pair(first: str, second: str) -> bool:
    kinds = unicodedata.category(first), unicodedata.category(second)
    if all(kind[0] in "LM" for kind in kinds):
        alphabets = {_script_of(first), _script_of(second)} - _MIXED_SCRIPTS
        return len(alphabets) > 1 or (first.islower() and second.isupper())
    if kinds[0][0] == "L":
        return kinds[1] in (*_SYMBOLS, "Ps", "Pi") and second not in _OPENING
    return kinds[1][0] == "L" and kinds[0] in (*_SYMBOLS, "Pe", "Pf") and first not in _CLOSING


def _script_of(text: str) -> str:
    """The script of the first letter or mark beyond ASCII, or else of the first letter."""
    letters = [character for character in text if unicodedata.category(character)[0] in "LM"]
    letter = next((character for character in letters if not character.isascii()), letters[0] if letters else "")
    return unicodedata.name(letter).partition(" ")[0] if letter else ""


def _excerpt(text: str) -> str:
    """The text around the first character that is not ASCII, in its line."""
    place = next((index for index, character in enumerate(text) if not character.isascii()), 0)
    start = text.rfind("\n", 0, place) + 1
    end = text.find("\n", place)
    return text[max(start, place - _CONTEXT // 2) : min(place + _CONTEXT, len(text) if end < 0 else end)].strip()
