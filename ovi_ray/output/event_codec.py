"""The scheduler's inputs, events and actions as JSON values, and back without loss.

Events and actions are objects with their class name under "type"; fields that have their default are left out. Those of
a single clip also have its id under "clip_id", for readers of the file; decoding ignores it.
"""

import base64
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from ovi.stages import CLIP_STAGES
from ovi_ray.scheduling.actions import Action, Finish
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import Event
from ovi_ray.scheduling.task import Task
from ovi_ray.scheduling.workload import ClipKind, Workload

Json = dict[str, Any]

_CLASSES = {cls.__name__: cls for cls in (*get_args(Event), *get_args(Action))}
_ARRAYS = ("clip_kind", "clip_texts", "text_tokens", "clip_first_frame", "first_frame_kind", "clips_with_latents")


def encode(value: Event | Action, clip_ids: Sequence[str]) -> Json:
    """An event or action as a JSON object. `clip_ids` are those of the workload's clips, by number."""
    name = type(value).__name__
    fields: Json = {"type": name, **_adapter(name).dump_python(value, mode="json", exclude_defaults=True)}
    clip = _clip_of(value)
    return fields if clip is None else {**fields, "clip_id": clip_ids[clip]}


def decode(fields: Json) -> Any:
    """The event or action behind a JSON object. Raises ValueError for one that is malformed or of an unknown type."""
    content = {name: value for name, value in fields.items() if name not in ("type", "clip_id")}
    if fields.get("type") not in _CLASSES:
        raise ValueError(f"type is {fields.get('type')!r}; expected one of {', '.join(_CLASSES)}")
    return _adapter(fields["type"]).validate_python(content)


def encode_config(config: SchedulerConfig) -> Json:
    """A scheduler's configuration as a JSON object, defaults included: they may change between versions."""
    fields: Json = _config_adapter().dump_python(config, mode="json")
    return fields


def decode_config(fields: Json) -> SchedulerConfig:
    """The configuration behind a JSON object. Raises ValueError."""
    return _config_adapter().validate_python(fields)


def encode_workload(workload: Workload) -> Json:
    """A workload as a JSON object: arrays are zlib-compressed little-endian int32, in base64."""
    kinds = [_kind_adapter().dump_python(kind, mode="json") for kind in workload.kinds]
    return {"kinds": kinds, **{name: _pack_array(getattr(workload, name)) for name in _ARRAYS}}


def decode_workload(fields: Json) -> Workload:
    """The workload behind a JSON object. Raises ValueError, and KeyError for a missing field."""
    kinds = tuple(_kind_adapter().validate_python(kind) for kind in fields["kinds"])
    return Workload(kinds=kinds, **{name: _unpack_array(fields[name]) for name in _ARRAYS})


def encode_ids(ids: pa.Array) -> str:
    """Clip ids as zlib-compressed lines, in base64."""
    return _pack("\n".join(ids.to_pylist()).encode())


def decode_ids(text: str) -> list[str]:
    """The clip ids behind a text. Raises ValueError."""
    content = _unpack(text).decode()
    return content.split("\n") if content else []


def _clip_of(value: Event | Action) -> int | None:
    if isinstance(value, Finish):
        return value.clip
    task: Task | None = getattr(value, "task", None)
    return task.items[0] if task is not None and task.items and task.stage in CLIP_STAGES else None


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_CLASSES[name])


@cache
def _config_adapter() -> TypeAdapter[SchedulerConfig]:
    return TypeAdapter(SchedulerConfig)


@cache
def _kind_adapter() -> TypeAdapter[ClipKind]:
    return TypeAdapter(ClipKind)


def _pack_array(array: np.ndarray) -> Json:
    return {"shape": list(array.shape), "int32": _pack(np.ascontiguousarray(array, "<i4").tobytes())}


def _unpack_array(fields: Json) -> np.ndarray:
    return np.frombuffer(_unpack(fields["int32"]), "<i4").reshape(fields["shape"])


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _unpack(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"compressed data are corrupt: {error}") from error
