"""Videos judged by what is in them: those without a row are taken over instead of rendered twice, broken ones told apart."""

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

PROBES = 8  # videos read at the same time: most of it is waiting for the storage


@dataclass(kw_only=True, slots=True, frozen=True)
class Judgement:
    """What a clip's video turned out to be."""

    clip: ClipTask
    info: MediaInfo | None
    """What it holds; None where that is not the whole clip."""
    problem: str
    """What is wrong with it."""


def judge(manifest: Manifest, clip_ids: pa.Array, ledger: Results) -> Iterator[Judgement]:
    """Read the videos of those of the ids that the manifest has: whole clips have both streams, every frame and their id."""
    is_among = pc.is_in(manifest.table.column("clip_id"), value_set=clip_ids)
    plan = TaskTable.of(Manifest(table=manifest.table.filter(is_among)))
    with ThreadPoolExecutor(PROBES) as pool:
        for start in range(0, len(plan), 1000):  # never all of a million at once
            clips = [plan.clip(index) for index in range(start, min(start + 1000, len(plan)))]
            yield from pool.map(lambda clip: _judge(clip, ledger.video_path(clip.clip_id)), clips)


def adopt(judgements: Iterable[Judgement], ledger: Results, dtype: str) -> int:
    """Write the rows of whole videos and remove the others, which are rendered again. Gives the number of rows."""
    count = 0
    for judgement in judgements:
        path = ledger.video_path(judgement.clip.clip_id)
        if judgement.info is None:
            path.unlink(missing_ok=True)
        else:
            ledger.append(_row(judgement.clip, judgement.info, path, dtype))
            count += 1
    ledger.flush()
    return count


def _judge(clip: ClipTask, path: Location) -> Judgement:
    try:
        with local_copy(path) as local:
            info = probe(local)
    except MediaError as error:
        return Judgement(clip=clip, info=None, problem=str(error))
    problem = _problem(clip, info)
    return Judgement(clip=clip, info=None if problem else info, problem=problem and f"{path}: {problem}")


def _problem(clip: ClipTask, info: MediaInfo) -> str:
    expected = num_frames(clip.video_latent_length)
    if info.num_frames != expected:
        return f"it has {info.num_frames} frames; expected {expected}"
    if info.sample_rate is None:
        return "it has no sound"
    if info.parameters.get("clip_id") != clip.clip_id:
        return f"it is of clip {info.parameters.get('clip_id')}"
    return ""


def _row(clip: ClipTask, info: MediaInfo, path: Location, dtype: str) -> dict[str, Any]:
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
