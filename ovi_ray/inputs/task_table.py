"""The tasks of a manifest: its distinct texts and first frames, each encoded once, and its clips.

Stored in columns: a million clips are a table and two arrays of numbers, and one clip becomes an object only on request.
Texts, first frames and clips are numbered from 0 in the order of their first use.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ovi.config import SamplingParams
from ovi.prompts import clean
from ovi.quality import Quality
from ovi.stages import STAGES, Stage, WorkItem
from ovi_ray.inputs.columns import SIDE_COLUMNS, SIZE_COLUMN, is_meta
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.scheduling.workload import ClipKind, Workload

IntArray = npt.NDArray[np.int32]

NO_FIRST_FRAME = -1
_RECENT = 4096
"""Clips that are kept as objects: each is asked for at every one of its tasks, and at its end."""
_ID_DIGITS = 20
_TEXTS_OF_CLIP = ("prompt", "video_negative_prompt", "audio_negative_prompt")
_FIRST_FRAME_KEY = ("image_sha256", "height", "width")
_CLIP_FIELDS = (
    "clip_id",
    "row",
    "line",
    "repeat",
    "key",
    "varies",
    "model_name",
    "text_prompt",
    "prompt",
    "image_path",
    "height",
    "width",
    "video_latent_length",
    "audio_latent_length",
)


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipTask:
    """One clip, with the inputs of each of its stages."""

    index: int
    """Row in `TaskTable.clips`."""
    clip_id: str
    row: int
    """Row of the prompt list, from 1."""
    line: int | None
    """Line of the list's file, or row of its sheet, where the row starts, from 1; None for files without lines."""
    repeat: int
    key: str | None
    """The row's own name in the list."""
    varies: str | None
    """Names of the parameters that the job sweeps, separated by commas."""
    model_name: str
    text_prompt: str
    """The prompt as the user gave it."""
    prompt: str
    """The prompt that is encoded, with the model's form of audio tag."""
    texts: tuple[int, int, int]
    """Rows of the prompt, the video negative and the audio negative in `TaskTable.texts`."""
    first_frame: int | None
    """Row in `TaskTable.first_frames`; None for a clip from text alone."""
    image_path: str | None
    height: int
    """Height of the frames in pixels."""
    width: int
    video_latent_length: int
    audio_latent_length: int
    params: SamplingParams
    meta: Mapping[str, str | None]
    """The user's own columns, by name."""

    @property
    def varied(self) -> str:
        """The parameters that the job sweeps, with their values, in words; "" without a sweep."""
        names = self.varies.split(",") if self.varies else ()
        return ", ".join(f"{name} {self._value(name)}" for name in names)

    def _value(self, name: str) -> str:
        value = self.model_name if name == "model_name" else getattr(self.params, name)
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def items(self, item: WorkItem) -> tuple[int, ...]:
        """The items of a sort that it needs; of texts, its prompt comes first."""
        match item:
            case WorkItem.TEXT:
                return self.texts
            case WorkItem.FIRST_FRAME:
                return () if self.first_frame is None else (self.first_frame,)
            case WorkItem.CLIP:
                return (self.index,)


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class TaskTable:
    """The tasks of a job in columns: N clips, T distinct texts, I distinct first frames."""

    clips: pa.Table
    """The rows of the manifest."""
    texts: pa.Table
    """[T] text_id, text. Texts that tokenize alike are one row, with one of their spellings as `text`."""
    clip_texts: IntArray
    """[N, 3] rows in `texts` of each clip's prompt, video negative and audio negative."""
    first_frames: pa.Table
    """[I] first_frame_id, image_path, image_sha256, model_name, height, width; distinct by image and size."""
    clip_first_frame: IntArray
    """[N] row in `first_frames` of each clip, or NO_FIRST_FRAME."""
    _recent: dict[int, ClipTask] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, manifest: Manifest) -> "TaskTable":
        """The tasks of every clip of a manifest."""
        texts, clip_texts = _distinct_texts(manifest.table)
        first_frames, clip_first_frame = _distinct_first_frames(manifest.table)
        return cls(
            clips=manifest.table,
            texts=texts,
            clip_texts=clip_texts,
            first_frames=first_frames,
            clip_first_frame=clip_first_frame,
        )

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def counts(self) -> dict[Stage, int]:
        """Number of tasks of each stage."""
        items = {
            WorkItem.TEXT: self.texts.num_rows,
            WorkItem.FIRST_FRAME: self.first_frames.num_rows,
            WorkItem.CLIP: len(self),
        }
        return {stage: items[spec.item] for stage, spec in STAGES.items()}

    @property
    def is_swept(self) -> bool:
        """Whether the job sweeps parameters."""
        return self.clips.column("varies").null_count < len(self)

    def clip(self, index: int) -> ClipTask:
        """The clip at `index`, from 0. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        if (recent := self._recent.get(index)) is not None:
            return recent
        if len(self._recent) >= _RECENT:
            self._recent.clear()
        return self._recent.setdefault(index, self._clip(index))

    def _clip(self, index: int) -> ClipTask:
        row = {name: self.clips.column(name)[index].as_py() for name in self.clips.column_names}
        prompt, video_negative, audio_negative = (int(number) for number in self.clip_texts[index])
        first_frame = int(self.clip_first_frame[index])
        return ClipTask(
            index=index,
            texts=(prompt, video_negative, audio_negative),
            first_frame=None if first_frame == NO_FIRST_FRAME else first_frame,
            params=SamplingParams(
                **{name: row[name] for name in PARAM_FIELDS if name != SIZE_COLUMN}
                | {SIZE_COLUMN: tuple(row[name] for name in SIDE_COLUMNS)}
            ),
            meta={name: value for name, value in row.items() if is_meta(name)},
            **{name: row[name] for name in _CLIP_FIELDS},
        )


def _distinct_texts(clips: pa.Table) -> tuple[pa.Table, IntArray]:
    """The distinct texts [T] and the three of each clip [N, 3]; texts that are equal once cleaned are one."""
    columns = [clips.column(name).to_pylist() for name in _TEXTS_OF_CLIP]
    cleaned = {text: clean(text) for column in columns for text in set(column)}
    number_of, numbers = _number(cleaned[text] for clip in zip(*columns, strict=True) for text in clip)
    spelling: dict[str, str] = {}
    for column in columns:
        for text in column:
            spelling.setdefault(cleaned[text], text)
    texts = pa.table(
        {
            "text_id": [_content_id(str(text)) for text in number_of],
            "text": pa.array([spelling[str(text)] for text in number_of], pa.string()),
        }
    )
    return texts, numbers.reshape(-1, len(_TEXTS_OF_CLIP))


def _distinct_first_frames(clips: pa.Table) -> tuple[pa.Table, IntArray]:
    with_image = np.flatnonzero(clips.column("image_sha256").is_valid().to_numpy())
    rows = clips.select([*_FIRST_FRAME_KEY, "image_path", "model_name"]).take(pa.array(with_image))
    number_of, numbers = _number(zip(*(rows.column(name).to_pylist() for name in _FIRST_FRAME_KEY), strict=True))
    _, first = np.unique(numbers, return_index=True)
    frames = rows.take(pa.array(first, pa.int64()))
    ids = pa.array([_content_id(repr(key)) for key in number_of], pa.string())
    of_clips = np.full(clips.num_rows, NO_FIRST_FRAME, np.int32)
    of_clips[with_image] = numbers
    columns = ["image_path", "image_sha256", "model_name", "height", "width"]
    return frames.select(columns).add_column(0, "first_frame_id", ids), of_clips


def _number(values: Iterable[Hashable]) -> tuple[dict[Hashable, int], IntArray]:
    """Number distinct values from 0 in the order of first use. Returns the number by value, and that of each value."""
    number_of: dict[Hashable, int] = {}
    numbers = np.fromiter((number_of.setdefault(value, len(number_of)) for value in values), np.int32)
    return number_of, numbers


def _content_id(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:_ID_DIGITS]


def workload_of(
    tasks: TaskTable,
    with_latents: pa.Array | None = None,
    *,
    passes: Mapping[tuple[str, int], float] = MappingProxyType({}),
) -> Workload:
    """The tasks in the scheduler's terms: clips of equal cost share a kind.

    `passes` are the measured ones of clips by quality and steps. `with_latents` holds ids of clips whose latents are kept:
    those of this table start at decode, others are ignored.
    """
    names = ("model_name", "height", "width", "video_latent_length", "sample_steps", "quality")
    columns = [tasks.clips.column(name).to_pylist() for name in names]
    columns[-1] = list(map(Quality, columns[-1]))
    has_image = (tasks.clip_first_frame >= 0).tolist()
    number_of: dict[tuple[Any, ...], int] = {}
    clip_kind = [number_of.setdefault(key, len(number_of)) for key in zip(*columns, has_image, strict=True)]
    kinds = []
    for key in number_of:
        kind = ClipKind(**dict(zip((*names, "has_image"), key, strict=True)))
        kinds.append(replace(kind, measured_passes=passes.get((kind.quality, kind.sample_steps))))
    with_frame = np.flatnonzero(tasks.clip_first_frame >= 0)
    frame_kind = np.zeros(tasks.first_frames.num_rows, np.int32)
    frame_kind[tasks.clip_first_frame[with_frame]] = np.asarray(clip_kind, np.int32)[with_frame]
    return Workload(
        kinds=tuple(kinds),
        clip_kind=np.asarray(clip_kind, np.int32),
        clip_texts=tasks.clip_texts,
        text_tokens=np.array([estimated_tokens(text) for text in tasks.texts.column("text").to_pylist()], np.int32),
        clip_first_frame=tasks.clip_first_frame,
        first_frame_kind=frame_kind,
        clips_with_latents=_places(tasks, with_latents),
    )


def _places(tasks: TaskTable, ids: pa.Array | None) -> IntArray:
    if ids is None or not len(ids):
        return np.zeros(0, np.int32)
    is_there = pc.is_in(tasks.clips.column("clip_id"), value_set=ids)
    return np.flatnonzero(is_there.to_numpy()).astype(np.int32)


def estimated_tokens(text: str) -> int:
    """Estimated tokens of a text, good enough to balance batches."""
    return 1 + len(text) // 4
