"""Forecast of a run of a checked job, without starting or writing anything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ovi.quality import Quality
from ovi.stages import TIME_GROUPS
from ovi_ray.inputs.bad_rows import BadRow
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.columns import QUALITY_COLUMN
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.policies import scheduler_config
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.folder_state import check_format, check_owner, check_seeds, compare, read_folder
from ovi_ray.output.results import measured_passes, read_rows
from ovi_ray.preparation import PreparedJob
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.simulation.forecast import Forecast, forecast
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class DevicePace:
    """Seconds that a device took for the clips of a folder that have a quality which the run renders."""

    device: str
    quality: str
    clips: int
    seconds: float
    """Of work for one clip, on average."""
    device_hours: float
    """For the run's clips of this quality, at this pace."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DryRun:
    """Counts of clips by what a run would do with them, and its time and cost."""

    clips: int
    """Clips of the list."""
    new: int
    """Clips that the run would render."""
    finished: int
    """Clips that an earlier run finished."""
    left: int
    """Clips that would be left for a later run."""
    superseded: int
    """Finished clips of the folder that the list does not ask for."""
    qualities: Mapping[Quality, int]
    """New clips by quality."""
    bad_rows: tuple[BadRow, ...]
    notes: tuple[str, ...]
    forecast: Forecast | None
    """On the cluster profile of the job; None without one, or where nothing would be rendered."""
    pace: tuple[DevicePace, ...]
    """Of the clips that the folder has, by device; empty where none was rendered."""


def dry_run(
    prepared: PreparedJob, *, rows: RowRanges | None = None, limit: int | None = None, overwrite: bool = False
) -> DryRun:
    """See DryRun. Raises what `render` would for a folder that it cannot use, and InputError for a cluster profile."""
    table, folder = prepared.manifest.table, read_folder(prepared.job.output_dir)
    check_format(folder)
    comparison = compare(table, folder)
    check_owner(table, folder, comparison)
    check_seeds(folder, comparison, keep_seeds=prepared.job.keep_seeds)
    is_done = pc.is_in(table.column("clip_id"), value_set=pa.concat_arrays([folder.finished, folder.videos]))
    missing = table if overwrite else table.filter(pc.invert(is_done))
    chosen = missing if rows is None else missing.filter(rows.among(missing.column("row")))
    chosen = Manifest(table=chosen.slice(0, limit))
    return DryRun(
        clips=len(table),
        new=len(chosen),
        finished=comparison.finished,
        left=len(missing) - len(chosen),
        superseded=comparison.superseded,
        qualities=chosen.qualities,
        bad_rows=prepared.bad_rows,
        notes=(*prepared.job.notes, *prepared.manifest.notes, *comparison.notes()),
        forecast=_forecast(prepared, chosen),
        pace=tuple(_pace(prepared.job.output_dir, chosen.qualities)),
    )


def _forecast(prepared: PreparedJob, chosen: Manifest) -> Forecast | None:
    job = prepared.job
    if job.cluster is None or not len(chosen):
        return None
    workload = workload_of(TaskTable.of(chosen), passes=measured_passes(job.output_dir))
    profile = read_profile(job.cluster).priced(job.prices)
    return forecast(workload, profile, config=scheduler_config(job))


def _pace(output_dir: Location, new: Mapping[Quality, int]) -> Iterator[DevicePace]:
    """The paces of the folder's clips; `new` counts the clips of the run by quality."""
    times = [f"{group}_s" for group in TIME_GROUPS]
    rows = read_rows(output_dir, ["status", "device", QUALITY_COLUMN, *times])
    done = rows.filter(pc.and_(pc.equal(rows.column("status"), ClipStatus.DONE), pc.is_valid(rows.column("device"))))
    seconds = pa.repeat(0.0, len(done))
    for name in times:
        seconds = pc.add(seconds, pc.fill_null(done.column(name), 0.0))
    quality = pc.fill_null(done.column(QUALITY_COLUMN), Quality.EXACT)  # rows of earlier versions have none
    keys = ["device", "quality"]
    by_device = pa.table({"device": done.column("device"), "quality": quality, "seconds": seconds}).group_by(keys)
    lines = by_device.aggregate([("seconds", "mean"), ("seconds", "count")])
    for line in lines.sort_by([(key, "ascending") for key in keys]).to_pylist():
        mean, clips = line["seconds_mean"], new.get(line["quality"], 0)
        if clips:
            yield DevicePace(
                device=line["device"],
                quality=line["quality"],
                clips=line["seconds_count"],
                seconds=mean,
                device_hours=clips * mean / 3600,
            )
