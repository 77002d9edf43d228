"""Names of files, made of a clip's columns. A name is safe on Linux, macOS and Windows, and on what they mount."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pathvalidate

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.printing import counted, noun

MAX_PART_BYTES = 180
"""Of a folder or a file: the rest of the 255 that file systems take is for endings such as `_frames.0001.png`."""
MAX_VALUE_CHARS = 60  # a prompt in a name must not push the rest of it out
OPTION = "--name"
_NUMERIC_SPEC = re.compile(r"0[0-9]+|.*[dfeEgG%n]")
_BREAKS = ("Cc", "Zl", "Zp")
_INVISIBLE = ("Cf", "Cs", "Co", "Cn")
_MAX_ROWS_SHOWN = 8
_TELLING = (
    "seed",
    "video_guidance_scale",
    "audio_guidance_scale",
    "sample_steps",
    "quality",
    "shift",
    "slg_layer",
    "solver_name",
    "model_name",
    "row",
    "repeat",
)
"""Columns that people tell takes by, the most telling first."""
_ALSO_RESERVED = ("CONIN$", "CONOUT$")  # by Windows


@dataclass(kw_only=True, slots=True, frozen=True)
class _Piece:
    """Text, then a column in a format; `field` is None after the last column."""

    text: str
    field: str | None
    spec: str


@dataclass(kw_only=True, slots=True, frozen=True)
class NameTemplate:
    """A name with columns in braces, such as "{meta_scene}/{meta_shot}_s{seed}_g{video_guidance_scale:.1f}"."""

    source: str
    parts: tuple[tuple[_Piece, ...], ...]
    """The folders, then the file."""

    @classmethod
    def parse(cls, source: str, columns: Sequence[str], *, suffixes: Iterable[str] = ()) -> Self:
        """Read a template whose fields are among `columns`. A suffix at its end is left out. Raises InputError."""
        bare = next((source.removesuffix(suffix) for suffix in suffixes if source.endswith(suffix)), source)
        try:
            parts = _parts(_pieces(bare, columns))
        except ValueError as error:
            raise InputError([_problem(source, f"braces in pairs around columns ({error})")]) from None
        problems = [_field_problem(source, piece.field, columns) for part in parts for piece in part if piece.field]
        if any("".join(piece.text + (piece.field or "") for piece in part) in ("", ".", "..") for part in parts):
            problems.append(_problem(source, "a name below the folder of the export, without empty parts, . and .."))
        if found := [problem for problem in problems if problem is not None]:
            raise InputError(found)
        return cls(source=source, parts=parts)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that it names."""
        return tuple(piece.field for part in self.parts for piece in part if piece.field)

    def name_of(self, row: Mapping[str, Any]) -> str:
        """The name of a clip, with `/` between folders. Raises ValueError for a value that its format does not fit."""
        return "/".join(_safe(_filled(part, row)) for part in self.parts)


def names_of(template: NameTemplate, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each clip. Raises InputError, which lists every name that two would have on some file system."""
    names, problems = [], []
    for row in rows:
        try:
            names.append(template.name_of(row))
        except ValueError as error:
            problems.append(_problem(template.source, str(error), found=f" for row {row['row']}"))
    by_key: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        by_key.setdefault(same_file_key(name), []).append(place)
    if not problems:
        shared = [places for places in by_key.values() if len(places) > 1]
        problems = [_collision(template, names, rows, places) for places in shared]
    if problems:
        raise InputError(dict.fromkeys(problems))
    return names


def same_file_key(name: str) -> str:
    """Equal for names that are one file on a file system that ignores case, or the form of letters with accents."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _pieces(template: str, columns: Sequence[str]) -> Iterator[_Piece]:
    """The pieces in order. A column of the list may have any characters in its name, also `/`, `:` and braces.

    Raises ValueError for braces that do not match.
    """
    names = "|".join(map(re.escape, sorted(columns, key=len, reverse=True)))
    # a known column, else what stands in its place
    field = re.compile(rf"\{{(?P<name>(?:{names})(?=[:}}])|[^{{}}:]*)(?::(?P<spec>[^{{}}]*))?\}}")
    text, place = "", 0
    while place < len(template):
        if template[place : place + 2] in ("{{", "}}") and not field.match(template, place):
            text += template[place]
            place += 2
        elif match := field.match(template, place):
            if not match["name"]:
                raise ValueError("a column between them")
            yield _Piece(text=text, field=match["name"], spec=match["spec"] or "")
            text, place = "", match.end()
        elif template[place] in "{}":
            raise ValueError("a column and a format, such as {seed:06}; {{ and }} for the braces themselves")
        else:
            text += template[place]
            place += 1
    if text:
        yield _Piece(text=text, field=None, spec="")


def _parts(pieces: Iterable[_Piece]) -> tuple[tuple[_Piece, ...], ...]:
    """The pieces of each folder and of the file: `/` between columns divides them."""
    parts: list[list[_Piece]] = [[]]
    for piece in pieces:
        *folders, rest = piece.text.split("/")
        for folder in folders:
            parts[-1].append(_Piece(text=folder, field=None, spec=""))
            parts.append([])
        parts[-1].append(replace(piece, text=rest))
    return tuple(map(tuple, parts))


def _filled(part: Sequence[_Piece], row: Mapping[str, Any]) -> str:
    """A part with the values of a clip. The longest of these are shortened where they would push the rest out."""
    values = [_value(piece, row) for piece in part]
    own = sum(len(piece.text.encode()) for piece in part)
    while own + sum(len(value.encode()) for value in values) > MAX_PART_BYTES and any(values):
        longest = max(range(len(values)), key=lambda place: len(values[place].encode()))
        values[longest] = values[longest][:-1]
    return "".join(piece.text + value for piece, value in zip(part, values, strict=True))


def _value(piece: _Piece, row: Mapping[str, Any]) -> str:
    if piece.field is None:
        return ""
    text = re.sub(r"[/\\]", "_", _as_text(row[piece.field], piece.spec, piece.field))
    return unicodedata.normalize("NFC", text)[:MAX_VALUE_CHARS]


def _as_text(value: Any, spec: str, field: str) -> str:
    """A value as part of a name. A text that is a number is formatted as one: a list's own columns are text."""
    if value is None or value == "":
        return "none"
    if isinstance(value, float) and not spec:
        return f"{value:.15g}"
    if isinstance(value, str) and _NUMERIC_SPEC.fullmatch(spec):
        value = _number(value, field, spec)
    try:
        return format(value, spec)
    except ValueError:
        raise ValueError(f"another format than {spec!r} for {field}, which is {show(value)}") from None


def _number(text: str, field: str, spec: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) else float(text)
    except ValueError:
        raise ValueError(f"no format for numbers ({spec!r}) for {field}, which is {show(text)}") from None


def _safe(part: str) -> str:
    """A part of a path that every file system takes: no reserved characters or names, no invisible letters, not too long."""
    visible = "".join(map(_visible, unicodedata.normalize("NFC", part)))
    bare = visible.lstrip(" .-").rstrip(" .")  # hidden files, options of commands, what Windows cuts off
    safe = pathvalidate.sanitize_filename(
        bare,
        replacement_text="_",
        platform="universal",
        max_len=MAX_PART_BYTES,
        additional_reserved_names=_ALSO_RESERVED,
    )
    return safe.rstrip(" .") or "_"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    return "_" if category in _BREAKS else "" if category in _INVISIBLE else character


# -- what is wrong -------------------------------------------------------------------------------------------------


def _problem(source: str, expected: str, found: str = "") -> Problem:
    return Problem(file=COMMAND_LINE, field=OPTION, value=f"{show(source)}{found}", expected=expected)


def _field_problem(source: str, field: str, columns: Sequence[str]) -> Problem | None:
    if field in columns:
        return None
    expected = f"columns of this job ({', '.join(columns)}){did_you_mean(field, columns)}"
    return _problem(source, expected, found=f" with {show(field)}")


def _collision(
    template: NameTemplate, names: Sequence[str], rows: Sequence[Mapping[str, Any]], places: Sequence[int]
) -> Problem:
    shown = ", ".join(dict.fromkeys(names[place] for place in places))
    of_rows = list(dict.fromkeys(rows[place]["row"] for place in places))
    listed = ", ".join(map(str, of_rows[:_MAX_ROWS_SHOWN])) + (", ..." if len(of_rows) > _MAX_ROWS_SHOWN else "")
    apart = "".join(f"_{{{name}}}" for name in _telling([rows[place] for place in places]))
    return Problem(
        file=COMMAND_LINE,
        field=OPTION,
        value=f"{show(template.source)}, which gives {counted(len(places), 'clip')} the name {shown}"
        f" ({noun(len(of_rows), 'row')} {listed})",
        expected=f"a name that tells them apart, such as {template.source}{apart}",
    )


def _telling(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that together tell clips apart, as few as the order in which people tell takes by them allows."""
    chosen: list[str] = []
    for name in _TELLING:
        if len({row[name] for row in rows}) > 1:
            chosen.append(name)
        if len({tuple(row[name] for name in chosen) for row in rows}) == len(rows):
            return chosen
    return ["clip_id"]
