"""Actual times of a finished job, from its results, for comparison with a forecast."""

from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from ovi.stages import TIME_GROUPS
from ovi_ray.errors import InputError, Problem
from ovi_ray.output.parquet_log import ParquetLog
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import RESULTS
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import PathOrUri, to_location


@dataclass(kw_only=True, slots=True, frozen=True)
class Actuals:
    """Counts and times of a job."""

    clips: int
    """Finished clips."""
    failed: int
    """Failed clips."""
    seconds: float
    """Wall time from the start of the first finished clip's encoding to the last video."""
    stage_s: dict[str, float]
    """Time group (encode, denoise, decode) -> mean seconds per finished clip."""

    @property
    def clips_per_hour(self) -> float:
        """Finished clips per hour of wall time."""
        return self.clips * 3600 / self.seconds if self.seconds else 0.0


def read_actuals(output_dir: PathOrUri) -> Actuals:
    """The actual times of the job in an output folder. Raises InputError for a folder without results."""
    results, _, _ = ParquetLog(to_location(output_dir) / RESULTS, RESULTS_SCHEMA).read()
    if not len(results):
        expected = "the output folder of a job with rendered clips"
        raise InputError([Problem(file=str(output_dir), value="no results", expected=expected)])
    return actuals_of(results)


def actuals_of(results: pa.Table) -> Actuals:
    """The actual times in a table of results."""
    done = results.filter(pc.equal(results.column("status"), ClipStatus.DONE))
    return Actuals(
        clips=len(done),
        failed=len(results) - len(done),
        seconds=_wall_seconds(done),
        stage_s={group: pc.mean(done.column(f"{group}_s")).as_py() or 0.0 for group in TIME_GROUPS},
    )


def _wall_seconds(done: pa.Table) -> float:
    """Seconds from the earliest start to the latest end.

    Results have the end of a clip and the duration of its stages but not its waits, so a start is an estimate: the end
    less the stages' durations.
    """
    if not len(done):
        return 0.0
    ended = pc.divide(pc.cast(done.column("finished_at"), pa.int64()), 1000.0)
    spent = reduce(pc.add, (_filled(done, f"{group}_s") for group in TIME_GROUPS))
    began = pc.min(pc.subtract(ended, spent)).as_py()
    return float(pc.max(ended).as_py() - began)


def _filled(table: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.fill_null(table.column(name), 0.0)
