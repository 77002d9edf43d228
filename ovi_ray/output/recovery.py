"""Checks existing videos against their clips, and rebuilds the result rows that are missing."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi.errors import MediaError
from ovi.geometry import num_frames
from ovi.media.probe import MediaInfo, probe
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.result_row import RENDERED, result_row
from ovi_ray.output.results import Results
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.diagnostics import is_unreachable, plain_reason
from ovi_ray.storage.paths import Location
from ovi_ray.storage.reading import ReadConfig, read_patiently

_PROBES = 8  # videos that are read at a time: most of it is waiting for storage
_CLIPS = 1000  # held at a time, of perhaps a million


class VideoState(StrEnum):
    """State of a clip's video, as reading it to its end shows it."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    """It was read, and is not the whole clip."""
    UNREADABLE = "unreadable"
    """It could not be read, so nothing is known of it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class VideoCheck:
    """The outcome of reading a clip's video to its end."""

    clip: ClipTask
    state: VideoState
    info: MediaInfo | None = None
    """Its streams; None unless it is whole."""
    problem: str = ""
    """The fault, with the path; "" for a whole video."""


def check_videos(
    manifest: Manifest, clip_ids: pa.Array, results: Results, config: ReadConfig | None = None
) -> Iterator[VideoCheck]:
    """Check the videos of `clip_ids`, those in the manifest: both streams, every frame, and the id of the clip.

    Raises StorageUnavailable for a store that cannot be reached.
    """
    config = config or ReadConfig()
    is_among = pc.is_in(manifest.table.column("clip_id"), value_set=clip_ids)
    tasks = TaskTable.of(Manifest(table=manifest.table.filter(is_among)))
    with ThreadPoolExecutor(_PROBES) as pool:
        for start in range(0, len(tasks), _CLIPS):
            clips = [tasks.clip(index) for index in range(start, min(start + _CLIPS, len(tasks)))]
            yield from pool.map(lambda clip: _check(clip, results.video_path(clip.clip_id), config), clips)


def recover_rows(checks: Iterable[VideoCheck], results: Results, dtype: str) -> int:
    """Write the rows of whole videos. Returns their number. Raises OSError."""
    count = 0
    for check in checks:
        if check.info is not None:
            path = results.video_path(check.clip.clip_id)
            results.append(_row(check.clip, check.info, path, dtype))
            count += 1
    results.flush()
    return count


def _check(clip: ClipTask, path: Location, config: ReadConfig) -> VideoCheck:
    try:
        # Read before it is examined: FFmpeg takes an error while reading for the end of the file.
        info = probe(str(path), read_patiently(path, config))
    except OSError as error:
        if is_unreachable(error):
            raise
        problem = f"{path} cannot be read: {plain_reason(error)}"
        return VideoCheck(clip=clip, state=VideoState.UNREADABLE, problem=problem)
    except MediaError as error:
        return VideoCheck(clip=clip, state=VideoState.DAMAGED, problem=str(error))
    if problem := _problem(clip, info):
        return VideoCheck(clip=clip, state=VideoState.DAMAGED, problem=f"{path}: {problem}")
    return VideoCheck(clip=clip, state=VideoState.WHOLE, info=info)


def _problem(clip: ClipTask, info: MediaInfo) -> str:
    expected = num_frames(clip.video_latent_length)
    if info.num_frames != expected:
        return f"it has {info.num_frames} frames; expected {expected}"
    if info.sample_rate is None:
        return "it has no sound"
    if info.parameters.get("clip_id") != clip.clip_id:
        return f"it belongs to clip {info.parameters.get('clip_id')}"
    return ""


def _row(clip: ClipTask, info: MediaInfo, path: Location, dtype: str) -> dict[str, Any]:
    """The row of a clip from its video, whose metadata say how it was rendered."""
    status = path.stat()
    facts = {
        **info.parameters.get(RENDERED, {}),
        "num_frames": info.num_frames,
        "num_samples": info.num_samples,
        "video_bytes": status.st_size,
        "dtype": dtype,
    }
    finished_at = datetime.fromtimestamp(status.st_mtime, UTC)
    return result_row(clip, facts, status=ClipStatus.DONE, finished_at=finished_at)
