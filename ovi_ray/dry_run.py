"""Forecast of a run of a checked job, without starting or writing anything."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ovi.stages import TIME_GROUPS
from ovi_ray.inputs.bad_rows import BadRow
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.policies import scheduler_config
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.folder_state import check_format, check_owner, check_seeds, compare, read_folder
from ovi_ray.output.results import read_rows
from ovi_ray.preparation import PreparedJob
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.simulation.forecast import Forecast, forecast
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class DevicePace:
    """Seconds that a device took for the clips of a folder."""

    device: str
    clips: int
    seconds: float
    """Of work for one clip, on average."""
    device_hours: float
    """For all clips of the run, at this pace."""


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
    chosen = chosen.slice(0, limit)
    return DryRun(
        clips=len(table),
        new=len(chosen),
        finished=comparison.finished,
        left=len(missing) - len(chosen),
        superseded=comparison.superseded,
        bad_rows=prepared.bad_rows,
        notes=(*prepared.job.notes, *prepared.manifest.notes, *comparison.notes()),
        forecast=_forecast(prepared, Manifest(table=chosen)),
        pace=tuple(_pace(prepared.job.output_dir, len(chosen))),
    )


def _forecast(prepared: PreparedJob, chosen: Manifest) -> Forecast | None:
    job = prepared.job
    if job.cluster is None or not len(chosen):
        return None
    profile = read_profile(job.cluster).priced(job.prices)
    return forecast(workload_of(TaskTable.of(chosen)), profile, config=scheduler_config(job))


def _pace(output_dir: Location, clips: int) -> Iterator[DevicePace]:
    times = [f"{group}_s" for group in TIME_GROUPS]
    rows = read_rows(output_dir, ["status", "device", *times])
    done = rows.filter(pc.and_(pc.equal(rows.column("status"), ClipStatus.DONE), pc.is_valid(rows.column("device"))))
    seconds = pa.repeat(0.0, len(done))
    for name in times:
        seconds = pc.add(seconds, pc.fill_null(done.column(name), 0.0))
    by_device = pa.table({"device": done.column("device"), "seconds": seconds}).group_by("device")
    for line in by_device.aggregate([("seconds", "mean"), ("seconds", "count")]).sort_by("device").to_pylist():
        mean = line["seconds_mean"]
        yield DevicePace(
            device=line["device"], clips=line["seconds_count"], seconds=mean, device_hours=clips * mean / 3600
        )
