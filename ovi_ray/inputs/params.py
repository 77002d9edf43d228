"""Values as users write them - cells of a list, keys of a job file, options - turned into checked parameters.

Ranges are checked by `SamplingParams` alone; here text becomes numbers, and a refusal becomes what would be right.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from ovi.config import MODEL_SPECS, SamplingParams, SolverName
from ovi.errors import InvalidRequest
from ovi.geometry import MAX_ASPECT_RATIO, MAX_IMAGE_SIDE, aspect_ratio

DEFAULT_PARAMS = SamplingParams()
PARAM_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
NEGATIVE_PROMPTS = ("video_negative_prompt", "audio_negative_prompt")

_INTEGER = re.compile(r"([+-]?[0-9]{1,30})(\.0*)?")  # spreadsheets write 100 as 100.0
_SIZE = re.compile(r"[\s\[(]*([+-]?[0-9]{1,30})(?:\s*[x×,;]\s*|\s+)([+-]?[0-9]{1,30})[\s\])]*", re.IGNORECASE)
_LARGEST_INT = 2**31 - 1  # of a manifest's columns
_LARGEST_EXACT_FLOAT = 2**53


def parse_param(name: str, raw: object) -> Any:
    """The value of a `SamplingParams` field or of `model_name`. Raises ValueError that says what would be right."""
    if name == "model_name":
        return _one_of(MODEL_SPECS, raw)
    if name == "solver_name":
        return SolverName(_one_of(SolverName, raw))
    if name in NEGATIVE_PROMPTS:
        return _text(raw)
    change: dict[str, Any] = {name: _CONVERTERS[type(getattr(DEFAULT_PARAMS, name))](raw)}
    try:
        checked = getattr(SamplingParams(**change), name)
    except InvalidRequest as error:
        raise ValueError(str(error).partition("expected ")[2]) from None
    if name == "video_frame_height_width" and (expected := shape_problem(*checked)):
        raise ValueError(expected)
    if name != "seed" and isinstance(checked, int) and checked > _LARGEST_INT:
        raise ValueError(f"an integer of at most {_LARGEST_INT}")
    return checked


def shape_problem(height: int, width: int) -> str | None:
    """What would be right for a frame or an image that no clip can be made of at this size; None if it will do."""
    if max(height, width) > MAX_IMAGE_SIDE:
        return f"sides of at most {MAX_IMAGE_SIDE:,} pixels"
    if aspect_ratio(height, width) > MAX_ASPECT_RATIO:
        return f"a longer side of at most {MAX_ASPECT_RATIO:g} times the shorter one"
    return None


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` where something known is close to what was given, else nothing."""
    close = difflib.get_close_matches(str(given).strip().lower(), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_of(known: Iterable[str], raw: object) -> str:
    names = [str(name) for name in known]
    if isinstance(raw, str) and raw.strip() in names:
        return raw.strip()
    raise ValueError(f"one of {', '.join(names)}{did_you_mean(raw, names)}")


def _text(raw: object) -> str:
    if isinstance(raw, str):
        return raw
    raise ValueError("text")


# A converter leaves what it cannot convert as it is, or as NaN: `SamplingParams` then refuses it in its own words.


def _to_int(raw: object) -> object:
    if isinstance(raw, str) and (match := _INTEGER.fullmatch(raw.strip())):
        return int(match[1])
    if isinstance(raw, float) and raw.is_integer() and abs(raw) <= _LARGEST_EXACT_FLOAT:
        return int(raw)
    return raw


def _to_float(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return math.nan
    try:
        return float(raw) + 0.0  # -0.0 becomes 0.0: equal parameters are written alike
    except (ValueError, OverflowError):
        return math.nan


def _to_size(raw: object) -> tuple[object, ...]:
    if isinstance(raw, str) and (match := _SIZE.fullmatch(raw)):
        return int(match[1]), int(match[2])
    return tuple(_to_int(side) for side in raw) if isinstance(raw, list | tuple) else (raw,)


_CONVERTERS: dict[type, Callable[[object], object]] = {int: _to_int, float: _to_float, tuple: _to_size}
