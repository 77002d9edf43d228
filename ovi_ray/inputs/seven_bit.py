"""Encodings of other alphabets in plain ASCII, which pass for text in UTF-8: ISO-2022, HZ and UTF-7."""

import re
import unicodedata
from dataclasses import dataclass

_ISO_2022 = re.compile(r"\x1b(?:\$\)?[A-Z@]|\$\([A-Z]|\([IJ])")
_ISO_2022_FAMILY = {"\x1b$)C": "ISO-2022-KR", "\x1b$)A": "ISO-2022-CN", "\x1b$)G": "ISO-2022-CN"}
_HZ = re.compile(r"~\{(?:[!-w][!-~])+~\}")
_UTF_7 = re.compile(r"\+([A-Za-z0-9+/]*)(-?)")
_ONE_WORD = re.compile(r"[A-Z]?[a-z]*|[A-Z]+|\d+")
_UNITS_OF_ONE, _UNITS_OF_TWO = 3, 6  # characters of base64 for so many of UTF-16


@dataclass(kw_only=True, slots=True, frozen=True)
class SevenBit:
    """An encoding, the line that shows it, and what that line reads."""

    encoding: str
    """As iconv knows it."""
    line: int
    text: str
    has_iconv: bool = True
    escape: str = ""
    """The way to write a text that only looks like it; empty where none does."""


class SevenBitCheck:
    """Looks through the lines of a file, one after another."""

    def __init__(self) -> None:
        self._utf7: SevenBit | None = None
        self._is_utf7 = True  # as long as each plus sign begins or escapes something

    def take(self, number: int, line: str) -> SevenBit | None:
        """Look at a line: the encoding that it is certainly in."""
        if "\x1b" in line and (match := _ISO_2022.search(line)):
            encoding = _ISO_2022_FAMILY.get(match[0], "ISO-2022-JP")
            return SevenBit(encoding=encoding, line=number, text=_decoded(line, encoding) or "")
        if "~{" in line and line.isascii() and _HZ.search(line) and (text := _decoded(line, "hz")):
            return SevenBit(encoding="HZ", line=number, text=text, has_iconv=False, escape="a space after ~{")
        if self._is_utf7 and not line.isascii():
            self._is_utf7 = False
        elif self._is_utf7 and "+" in line:
            self._take_plus(number, line)
        return None

    def end(self) -> SevenBit | None:
        """Look back at the file: the encoding that only all of its lines together show."""
        return self._utf7 if self._is_utf7 else None

    def _take_plus(self, number: int, line: str) -> None:
        text = _decoded(line, "utf-7")
        if text is None:
            self._is_utf7 = False
        elif self._utf7 is None and any(map(_is_utf7_run, _UTF_7.finditer(line))):
            self._utf7 = SevenBit(encoding="UTF-7", line=number, text=text, escape="a space after +")


def _decoded(line: str, encoding: str) -> str | None:
    try:
        return line.encode("ascii").decode(encoding)
    except (UnicodeError, LookupError):
        return None


def _is_utf7_run(match: re.Match[str]) -> bool:
    """Whether a plus sign and what follows it are hardly anything but UTF-7, as "+keyboard" and "+MP4" may be."""
    digits = match[1]
    text = _decoded(match[0], "utf-7")
    if not text or _ONE_WORD.fullmatch(digits):
        return False
    if len(digits) >= _UNITS_OF_TWO:
        return all(unicodedata.category(character)[0] in "LMNPZ" for character in text)
    return len(digits) == _UNITS_OF_ONE and (ord(text[0]) < 0x250 or 0x2010 <= ord(text[0]) < 0x20AD)
