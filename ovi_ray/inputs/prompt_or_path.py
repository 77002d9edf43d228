"""Whether a text that may be either is a prompt or the path of a prompt list.

A text is a path if one of these holds:

- There is a file or folder of that name, or it would lie in a folder that exists.
- It ends in the suffix of a file (`prompts.xlsx`, `my list.CSV`), or has no spaces and a dot between letters (`list.v2`).
- It begins like a path: a drive (`C:\\`), a home (`~/`), `/`, `./`, `../`, `$VARIABLE/`, or the scheme of a URI.
- It has a separator (`/` or `\\`) at its end, or has one and no spaces. A `/` between words, as in "a cat/dog runs", is prose.

A single word, such as "fox", is neither: whoever asks decides.
"""

import re
from enum import Enum, auto
from pathlib import Path

from ovi_ray.inputs.prompt_lists import READERS
from ovi_ray.storage.paths import Location, resolve_path

_FILE_SUFFIXES = frozenset(
    (
        *READERS,
        *(".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gsheet", ".tab", ".psv", ".dat", ".toml", ".ini"),
        *(".json", ".json5", ".yaml", ".yml", ".xml", ".html", ".htm", ".md", ".rst", ".rtf", ".pdf", ".log", ".conf"),
        *(".doc", ".docx", ".odt", ".pages", ".pq", ".orc", ".avro", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".db"),
        *(".sqlite", ".sqlite3", ".duckdb", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar"),
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".exr", ".safetensors"),
        *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".wav", ".mp3", ".flac", ".py", ".ipynb", ".sh", ".pth", ".pt"),
    )
)
_BEGINS_LIKE_A_PATH = re.compile(
    r"[A-Za-z]:[\\/] | [A-Za-z][\w+.-]*:// | ~[\w.-]*[\\/] | /(?![\s/]) | \\\\ | \.{1,2}[\\/] | \$\{?\w+\}?[\\/]",
    re.VERBOSE,
)
_DOT_IN_A_WORD = re.compile(r"[\w-]+(\.[\w-]+)*\.[A-Za-z]\w{0,9}", re.ASCII)
_SENTENCE_MARKS = frozenset("。，、！？；：…")  # of scripts that put no spaces between words
_BACKSLASH_IN_A_PATH = re.compile(
    r"\w\\(?![nrtu]\b|[nrtu][A-Z])\w"
)  # but not an escape such as \n, which a shell passes on
_AROUND = " \t\n\"',;\u200b\u200c\u200d\u2060\ufeff"  # with characters of no width, which copied text often has


class Meaning(Enum):
    """Meaning of a text that may be a prompt or a path."""

    PATH = auto()
    PROMPT = auto()
    WORD = auto()
    """Text without spaces and nothing of a path, or nothing at all: a short prompt, or the name of a file that is not there."""


def meaning_of(text: str, folder: Location) -> Meaning:
    """The meaning of a text. A path is relative to `folder`; only names on a disk are looked up."""
    given = text.strip(_AROUND)
    if not given:
        return Meaning.WORD
    if "\n" in given:
        is_path = Path(given).suffix.lower() in _FILE_SUFFIXES or _is_there(given, folder)
        return Meaning.PATH if is_path else Meaning.PROMPT
    if _has_the_form_of_a_path(given) or _is_there(given, folder):
        return Meaning.PATH
    if any(character.isspace() or character in _SENTENCE_MARKS for character in given):
        return Meaning.PROMPT
    return Meaning.PATH if _names_like(given, folder) else Meaning.WORD


def _has_the_form_of_a_path(given: str) -> bool:
    spaced = any(character.isspace() for character in given)
    if _BEGINS_LIKE_A_PATH.match(given) or Path(given).suffix.lower() in _FILE_SUFFIXES:
        return True
    if not spaced and not _SENTENCE_MARKS & set(given):
        return "/" in given or "\\" in given or _DOT_IN_A_WORD.fullmatch(given) is not None
    return (given[-1] in "/\\" and not given[-2:-1].isspace()) or _BACKSLASH_IN_A_PATH.search(given) is not None


def _is_there(given: str, folder: Location) -> bool:
    """Whether there is such a file or folder, or the folder that the text names before its last separator."""
    parent = given.rpartition("/")[0].strip("/ ")
    try:
        path = resolve_path(given, folder).local_path
        return path is not None and (path.exists() or (parent != "" and path.parent.is_dir()))
    except (OSError, ValueError):  # longer than a path can be, or with a NUL
        return False


def _names_like(word: str, folder: Location) -> bool:
    """Whether a folder holds a list of that name, with a suffix."""
    try:
        return any((folder / f"{word}{suffix}").is_file() for suffix in READERS) if folder.is_local else False
    except (OSError, ValueError):
        return False
