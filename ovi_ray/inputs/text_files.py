"""Reading of UTF-8 text files line by line, with messages that help to convert files in other encodings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ovi_ray.errors import InputError, Problem, show
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location, local_copy

MISSING = "a file that does not exist"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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
                        raise InputError([_nul_problem(path, number)])
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


def readable_problem(path: Location) -> str | None:
    """Why `path` cannot be read as a file, such as "a folder"; None if it can."""
    try:
        if not path.exists():
            return unreadable(path, FileNotFoundError())
        if not path.is_file():
            return "a folder" if path.is_dir() else "not a regular file"
        if (local := path.local_path) is not None:
            local.open("rb").close()
    except OSError as error:
        return unreadable(path, error)
    return None


def unreadable(path: Location, error: OSError) -> str:
    """The nature of `path` as found when reading it failed, such as "a file that does not exist"."""
    if not isinstance(error, FileNotFoundError):
        return f"a file that cannot be read ({plain_reason(error)})"
    try:
        return "a folder" if not path.is_local and path.is_dir() else MISSING
    except OSError as failure:  # such as a bucket that does not exist
        return f"a file that cannot be read ({plain_reason(failure)})"


def _check_mark(path: Location, local: Path) -> None:
    with local.open("rb") as file:
        mark = file.read(2)
    if mark in _UTF16_MARKS:
        raise InputError([_problem(path, f"UTF-16 text (it starts with the bytes {mark.hex(' ')})", "UTF-16", line=1)])


def _encoding_problem(path: Location, local: Path) -> Problem:
    offset = 0
    with local.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} is not UTF-8"
                context = line[max(0, error.start - 15) : error.start + 15].decode("cp1252", errors="replace")
                return _problem(
                    path, f"{found} (near {show(context.strip())} if read as Windows-1252)", "CP1252", number
                )
            offset += len(line)
    return _problem(path, "text that is not UTF-8", "CP1252", None)


def _nul_problem(path: Location, line: int) -> Problem:
    return _problem(path, "a NUL byte, as in UTF-16 or binary files", "UTF-16", line)


def _problem(path: Location, found: str, encoding: str, line: int | None) -> Problem:
    fix = f"iconv -f {encoding} -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}"
    return Problem(
        file=str(path),
        line=line,
        value=found,
        expected=f'UTF-8 text: save it as UTF-8 (in Excel: "CSV UTF-8"), or convert it: {fix}',
    )
