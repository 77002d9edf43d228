"""Text files as users have them: read line by line, with a message that helps where they are not UTF-8."""

from collections.abc import Iterator
from pathlib import Path

from ovi_ray.errors import InputError, Problem, show

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path, *, newline: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file with or without a byte order mark, with their line ends.

    `newline` is that of `open`. Raises InputError for a file that is missing, unreadable or not UTF-8 text.
    """
    _check_readable(path)
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise InputError([_nul_problem(path, number)])
                yield line
    except UnicodeDecodeError:
        raise InputError([_encoding_problem(path)]) from None


def readable_problem(path: Path) -> str | None:
    """What keeps `path` from being read as a file, or None."""
    try:
        if not path.exists():
            return "a file that does not exist"
        if not path.is_file():
            return "a folder" if path.is_dir() else "not a regular file"
        path.open("rb").close()
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    return None


def resolve_path(given: str | Path, folder: Path) -> Path:
    """`given`, relative to `folder`; `~` is the user's home."""
    try:
        return folder / Path(given).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist: a file may be called so
        return folder / given


def _check_readable(path: Path) -> None:
    found = readable_problem(path)
    if found:
        raise InputError([Problem(file=str(path), value=found, expected="a file that can be read")])
    with path.open("rb") as file:
        mark = file.read(2)
    if mark in _UTF16_MARKS:
        raise InputError([_problem(path, f"UTF-16 text (it starts with the bytes {mark.hex(' ')})", "UTF-16", line=1)])


def _encoding_problem(path: Path) -> Problem:
    offset = 0
    with path.open("rb") as file:
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


def _nul_problem(path: Path, line: int) -> Problem:
    return _problem(path, "a NUL byte, as in UTF-16 or binary files", "UTF-16", line)


def _problem(path: Path, found: str, encoding: str, line: int | None) -> Problem:
    fix = f"iconv -f {encoding} -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}"
    return Problem(
        file=str(path),
        line=line,
        value=found,
        expected=f'UTF-8 text: save it as UTF-8 (in Excel: "CSV UTF-8"), or convert it: {fix}',
    )
