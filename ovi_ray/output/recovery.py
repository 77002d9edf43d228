"""Checks existing videos against their clips, and rebuilds the result rows that are missing."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
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
from ovi_ray.storage.paths import Location, local_copy

_PROBES = 8  # videos that are read at a time: most of it is waiting for storage
_CLIPS = 1000  # held at a time, of perhaps a million


@dataclass(kw_only=True, slots=True, frozen=True)
class VideoCheck:
    """The outcome of reading a clip's video to its end."""

    clip: ClipTask
    info: MediaInfo | None
    """Its streams; None where the video is not the whole clip."""
    problem: str
    """Why the video cannot be used; "" where it can."""


def check_videos(manifest: Manifest, clip_ids: pa.Array, results: Results) -> Iterator[VideoCheck]:
    """Check the videos of `clip_ids`, those in the manifest: both streams, every frame, and the id of the clip."""
    is_among = pc.is_in(manifest.table.column("clip_id"), value_set=clip_ids)
    tasks = TaskTable.of(Manifest(table=manifest.table.filter(is_among)))
    with ThreadPoolExecutor(_PROBES) as pool:
        for start in range(0, len(tasks), _CLIPS):
            clips = [tasks.clip(index) for index in range(start, min(start + _CLIPS, len(tasks)))]
            yield from pool.map(lambda clip: _check(clip, results.video_path(clip.clip_id)), clips)


def recover_rows(checks: Iterable[VideoCheck], results: Results, dtype: str) -> int:
    """Write the rows of whole videos and remove the other videos, which are rendered again. Returns the number of rows."""
    count = 0
    for check in checks:
        path = results.video_path(check.clip.clip_id)
        if check.info is None:
            path.unlink(missing_ok=True)
        else:
            results.append(_row(check.clip, check.info, path, dtype))
            count += 1
    results.flush()
    return count


def _check(clip: ClipTask, path: Location) -> VideoCheck:
    try:
        with local_copy(path) as local:
            info = probe(local)
    except MediaError as error:
        return VideoCheck(clip=clip, info=None, problem=str(error))
    problem = _problem(clip, info)
    return VideoCheck(clip=clip, info=None if problem else info, problem=problem and f"{path}: {problem}")


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
