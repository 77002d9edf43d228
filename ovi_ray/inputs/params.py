"""Sampling parameters as users write them (cells of a list, keys of a job file, options) parsed into checked values.

`ovi.config.SamplingParams` declares the parameters and checks their ranges. This module converts text to numbers first, and
turns a refusal into a message that says which values are accepted.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

import pyarrow as pa

from ovi.config import MODEL_SPECS, SamplingParams, SolverName, param_specs
from ovi.geometry import MAX_ASPECT_RATIO, MAX_IMAGE_SIDE, aspect_ratio
from ovi.quality import Quality

DEFAULT_PARAMS = SamplingParams()
PARAM_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
NEGATIVE_PROMPTS = tuple(name for name in PARAM_FIELDS if type(getattr(DEFAULT_PARAMS, name)) is str)

NUMBERS = tuple(name for name in PARAM_FIELDS if type(getattr(DEFAULT_PARAMS, name)) in (int, float))
"""The parameters that are a number."""

NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")
"""Characters that no text in UTF-8 holds, or that end it."""
TEXT_EXPECTED = "text without NUL characters and lone surrogates"

_INTEGER = re.compile(r"([+-]?[0-9]{1,30})(\.0*)?")  # spreadsheets write 100 as 100.0
_SIZE = re.compile(r"[\s\[(]*([+-]?[0-9]{1,30})(?:\s*[x×,;]\s*|\s+)([+-]?[0-9]{1,30})[\s\])]*", re.IGNORECASE)
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")  # float() takes 1_0 and ١٠ as well
_MAX_INT32 = 2**31 - 1
_LARGEST_EXACT_FLOAT = 2**53
_ARROW_TYPES: dict[type, pa.DataType] = {
    int: pa.int32(),
    float: pa.float64(),
    str: pa.string(),
    SolverName: pa.string(),
    Quality: pa.string(),
    tuple: pa.list_(pa.int32(), 2),
}
_WIDE_PARAMS = frozenset({"seed"})  # integers stored in 64 bits


def arrow_fields() -> list[pa.Field]:
    """The manifest column of each sampling parameter, in the order of `SamplingParams`."""
    return [pa.field(name, arrow_type(name), nullable=False) for name in PARAM_FIELDS]


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type that holds every value of a sampling parameter."""
    return pa.int64() if name in _WIDE_PARAMS else _ARROW_TYPES[type(getattr(DEFAULT_PARAMS, name))]


def parse_param(name: str, raw: object) -> Any:
    """Parse a `SamplingParams` field or `model_name`. The message of the ValueError names the accepted values."""
    if name == "model_name":
        return _one_of(MODEL_SPECS, raw)
    if issubclass(names := type(getattr(DEFAULT_PARAMS, name)), StrEnum):
        return names(_one_of(names, raw))
    value = _CONVERTERS[type(getattr(DEFAULT_PARAMS, name))](raw)
    spec = param_specs()[name]
    if not spec.accepts(value):
        raise ValueError(spec.expected)
    if isinstance(value, str) and NOT_TEXT.search(value):
        raise ValueError(TEXT_EXPECTED)
    if name == "video_frame_height_width" and (expected := shape_problem(*value)):
        raise ValueError(expected)
    if arrow_type(name) == pa.int32() and value > _MAX_INT32:
        raise ValueError(f"an integer of at most {_MAX_INT32}")
    return value


def shape_problem(height: int, width: int) -> str | None:
    """The sizes accepted for a frame or an image, if this one is not among them; else None."""
    if max(height, width) > MAX_IMAGE_SIDE:
        return f"sides of at most {MAX_IMAGE_SIDE:,} pixels"
    if aspect_ratio(height, width) > MAX_ASPECT_RATIO:
        return f"a longer side of at most {MAX_ASPECT_RATIO:g} times the shorter one"
    return None


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(given).strip().lower(), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_of(known: Iterable[str], raw: object) -> str:
    names = [str(name) for name in known]
    if isinstance(raw, str) and raw.strip() in names:
        return raw.strip()
    raise ValueError(f"one of {', '.join(names)}{did_you_mean(raw, names)}")


# Converters return what they cannot convert unchanged, or as NaN; the parameter's own check then refuses it.


def _to_int(raw: object) -> object:
    if isinstance(raw, str) and (match := _INTEGER.fullmatch(raw.strip())):
        return int(match[1])
    if isinstance(raw, float) and raw.is_integer() and abs(raw) <= _LARGEST_EXACT_FLOAT:
        return int(raw)
    return raw


def _to_float(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return math.nan
    if isinstance(raw, str) and not _FLOAT.fullmatch(raw.strip()):
        return math.nan
    try:
        return float(raw) + 0.0  # -0.0 becomes 0.0, so that equal parameters hash alike
    except (ValueError, OverflowError):
        return math.nan


def _to_size(raw: object) -> tuple[object, ...]:
    if isinstance(raw, str) and (match := _SIZE.fullmatch(raw)):
        return int(match[1]), int(match[2])
    return tuple(_to_int(side) for side in raw) if isinstance(raw, list | tuple) else (raw,)


def _unchanged(raw: object) -> object:
    return raw


_CONVERTERS: dict[type, Callable[[object], Any]] = {int: _to_int, float: _to_float, tuple: _to_size, str: _unchanged}
