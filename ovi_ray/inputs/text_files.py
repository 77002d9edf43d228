"""Reading of UTF-8 text files line by line, with messages that help to convert files in other encodings."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ovi.files import dangling_link, pointer_in_place_of
from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.columns import in_words
from ovi_ray.inputs.encodings import readings
from ovi_ray.inputs.file_kinds import foreign_kind
from ovi_ray.inputs.seven_bit import SevenBit, SevenBitCheck
from ovi_ray.printing import shell_command
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location, local_copy

MISSING = "a file that does not exist"
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks, the longer ones first, and the encodings that they announce."""
_MAX_LINES_TOLD = 5
_UTF8 = 'UTF-8 text: save it as UTF-8 (in Excel: "CSV UTF-8")'


def read_lines(path: Location, *, newline: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, with their line ends and without a byte order mark.

    `newline` is passed to `open`. Raises InputError for a file that is missing, unreadable or not UTF-8 text.
    """
    with readable(path) as local:
        check_kind(path, local)
        _check_mark(path, local)
        try:
            with local.open(encoding="utf-8-sig", newline=newline) as file:
                yield from _checked(path, local, file)
        except UnicodeDecodeError:
            raise InputError([_encoding_problem(path, local.read_bytes())]) from None


def _checked(path: Location, local: Path, lines: Iterable[str]) -> Iterator[str]:
    """The lines, up to one that is not text in UTF-8 though it could be decoded."""
    seven_bit = SevenBitCheck()
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise InputError([_encoding_problem(path, local.read_bytes())])
        if found := seven_bit.take(number, line):
            raise InputError([_seven_bit_problem(path, found)])
        yield line
    if found := seven_bit.end():
        raise InputError([_seven_bit_problem(path, found)])


@contextmanager
def readable(path: Location, expected: str = "a file that can be read") -> Iterator[Path]:
    """A local path at which a file can be read within the block; a file in a store is downloaded once.

    Raises InputError that names `expected`.
    """
    with ExitStack() as fetched:
        found = readable_problem(path) if path.is_local else None
        try:
            local = fetched.enter_context(local_copy(path))
        except OSError as error:
            found = unreadable(path, error)
        if found:
            raise InputError([Problem(file=str(path), value=found, expected=expected)])
        yield local


def readable_problem(path: Location, *, accepts_pointers: bool = False) -> str | None:
    """The reason why `path` cannot be read as a file, such as "a folder"; None if it can.

    `accepts_pointers` leaves pointers of Git LFS and the like to the caller, who looks at the content.
    """
    try:
        if not path.exists():
            return unreadable(path, FileNotFoundError())
        if not path.is_file():
            return "a folder" if path.is_dir() else "not a regular file"
        if not accepts_pointers and (local := path.local_path) is not None:
            pointer = pointer_in_place_of(local)
            return None if pointer is None else f"a {pointer.owner} pointer in place of the file"
    except OSError as error:
        return unreadable(path, error)
    return None


def unreadable(path: Location, error: OSError) -> str:
    """The nature of `path` as found when reading it failed, such as "a file that does not exist"."""
    if not isinstance(error, FileNotFoundError):
        return f"a file that cannot be read ({plain_reason(error)})"
    if (local := path.local_path) is not None:
        return dangling_link(local) or MISSING
    try:
        return "a folder" if path.is_dir() else MISSING
    except OSError as failure:  # such as a bucket that does not exist
        return f"a file that cannot be read ({plain_reason(failure)})"


def check_kind(path: Location, local: Path) -> None:
    """Raises InputError for a file whose first bytes are those of another kind of file than its name promises."""
    if kind := foreign_kind(path, local):
        raise InputError([Problem(file=str(path), value=kind.found, expected=kind.expected)])


def _check_mark(path: Location, local: Path) -> None:
    with local.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            found = f"{encoding} text (it starts with the bytes {mark.hex(' ')})"
            raise InputError([_problem(path, found, f"{_UTF8}, or convert it: {_conversion(path, encoding)}", line=1)])


def _encoding_problem(path: Location, content: bytes) -> Problem:
    """The first byte that is not UTF-8 or not text, with a part of the file in every encoding that it may be in."""
    number, found = _first_wrong_byte(content)
    if mixed := _lines_by_encoding(content):
        right, wrong = mixed
        found += f", while line {right[0]} is UTF-8"
        parts = [f"as {reading.encoding} {show(reading.text)}" for reading in readings(next(iter(wrong.values())))]
        reads = f" (line {next(iter(wrong))} reads {' or '.join(parts)})" if parts else ""
        lines = in_words(list(wrong)[:_MAX_LINES_TOLD])
        more = f" and {len(wrong) - _MAX_LINES_TOLD:,} more" if len(wrong) > _MAX_LINES_TOLD else ""
        expected = (
            f"one encoding in all lines, UTF-8: write line{'s' if len(wrong) > 1 else ''} {lines}{more} anew{reads}"
        )
        return _problem(path, found, expected, number)
    candidates = [
        f"as {reading.encoding} it reads {show(reading.text)}: {_conversion(path, reading.encoding)}"
        for reading in readings(content)
    ]
    choice = f", or convert it by the line whose text is right, if one is: {'; '.join(candidates)}"
    return _problem(path, found, f"{_UTF8}{choice if candidates else ''}", number)


def _first_wrong_byte(content: bytes) -> tuple[int, str]:
    """Line and description of the first NUL or the first byte that is not UTF-8."""
    if b"\0" in content:
        return content.count(b"\n", 0, content.index(b"\0")) + 1, "a NUL byte, as in UTF-16 or binary files"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        return len(content[: error.start + 1].splitlines()), found
    return 1, "text that is not UTF-8"


def _lines_by_encoding(content: bytes) -> tuple[list[int], dict[int, bytes]] | None:
    """Numbers of lines that are UTF-8, and the other lines by their numbers, where a file has both; ASCII lines are neither."""
    right: list[int] = []
    wrong: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if line.isascii():
            continue
        try:
            line.decode()
            right.append(number)
        except UnicodeDecodeError:
            wrong[number] = line
    return (right, wrong) if right and b"\0" not in content else None


def _seven_bit_problem(path: Location, found: SevenBit) -> Problem:
    value = f"text in {found.encoding}, which reads {show(found.text.strip())}"
    escape = f", or write {found.escape} if it is meant as it stands" if found.escape else ""
    command = f", or convert it: {_conversion(path, found.encoding)}" if found.has_iconv else ""
    return _problem(path, value, f"{_UTF8}{escape}{command}", found.line)


def _conversion(path: Location, encoding: str) -> str:
    """The command that converts a file; a file in a store by its name, for use on a copy."""
    copy = f"{path.stem}-utf8{path.suffix}"
    source, target = (path, path.with_name(copy)) if path.is_local else (path.name, copy)
    return shell_command("iconv", "-f", encoding, "-t", "UTF-8", source, ">", target)


def _problem(path: Location, found: str, expected: str, line: int | None) -> Problem:
    return Problem(file=str(path), line=line, value=found, expected=expected)
