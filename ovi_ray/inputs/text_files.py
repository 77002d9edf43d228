"""Reading of UTF-8 text files line by line, with messages that help to convert files in other encodings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ovi.files import dangling_link, pointer_in_place_of
from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.encodings import readings
from ovi_ray.printing import shell_command
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location, local_copy

MISSING = "a file that does not exist"
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks, the longer ones first, and the encodings that they announce."""
_UTF16_ZEROS = 8  # of so many bytes of UTF-16, one at least is the zero byte of an ASCII character
_UTF8 = 'UTF-8 text: save it as UTF-8 (in Excel: "CSV UTF-8")'


def read_lines(path: Location, *, newline: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, with their line ends and without a byte order mark.

    `newline` is passed to `open`. Raises InputError for a file that is missing, unreadable or not UTF-8 text.
    """
    with readable(path) as local:
        _check_mark(path, local)
        try:
            with local.open(encoding="utf-8-sig", newline=newline) as file:
                for number, line in enumerate(file, start=1):
                    if "\0" in line:
                        raise InputError([_nul_problem(path, local, number)])
                    yield line
        except UnicodeDecodeError:
            raise InputError([_encoding_problem(path, local)]) from None


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


def _check_mark(path: Location, local: Path) -> None:
    with local.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            found = f"{encoding} text (it starts with the bytes {mark.hex(' ')})"
            raise InputError([_problem(path, found, f"{_UTF8}, or convert it: {_conversion(path, encoding)}", line=1)])


def _encoding_problem(path: Location, local: Path) -> Problem:
    """The first byte that is not UTF-8, and the text around it in every encoding that it may be in."""
    content, offset = local.read_bytes(), 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} is not UTF-8"
            candidates = [
                f"as {reading.encoding} it reads {show(reading.text)}: {_conversion(path, reading.encoding)}"
                for reading in readings(content, line, error.start)
            ]
            choice = f", or convert it by the line whose text is right, if one is: {'; '.join(candidates)}"
            return _problem(path, found, f"{_UTF8}{choice if candidates else ''}", number)
        offset += len(line)
    return _problem(path, "text that is not UTF-8", _UTF8, None)


def _nul_problem(path: Location, local: Path, line: int) -> Problem:
    found = "a NUL byte, as in UTF-16 or binary files"
    encoding = _unmarked_utf16(local)
    remedy = f"; if it is UTF-16 without a mark, convert it: {_conversion(path, encoding)}" if encoding else ""
    return _problem(path, found, f"{_UTF8}{remedy}", line)


def _unmarked_utf16(local: Path) -> str | None:
    """UTF-16 in the byte order that its many zero bytes show; None for a file that is hardly such text."""
    content = local.read_bytes()
    zeros = {"UTF-16BE": content[::2].count(0), "UTF-16LE": content[1::2].count(0)}
    encoding = max(zeros, key=lambda name: zeros[name])
    return encoding if zeros[encoding] * _UTF16_ZEROS > len(content) else None


def _conversion(path: Location, encoding: str) -> str:
    """The command that converts a file; a file in a store by its name, for use on a copy."""
    copy = f"{path.stem}-utf8{path.suffix}"
    source, target = (path, path.with_name(copy)) if path.is_local else (path.name, copy)
    return shell_command("iconv", "-f", encoding, "-t", "UTF-8", source, ">", target)


def _problem(path: Location, found: str, expected: str, line: int | None) -> Problem:
    return Problem(file=str(path), line=line, value=found, expected=expected)
