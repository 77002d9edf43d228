"""What a finished job took, from its results: to hold against a forecast. Pure."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import InputError, Problem
from ovi_ray.output.parquet_log import ParquetLog
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import RESULTS
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import PathOrUri, to_location


@dataclass(kw_only=True, slots=True, frozen=True)
class Actuals:
    """What a job's rows say of its time."""

    clips: int
    """Done."""
    failed: int
    seconds: float
    """From the start of the first clip's text to the last video."""
    stage_s: dict[str, float]
    """Mean seconds a clip of encode, denoise and decode."""

    @property
    def clips_per_hour(self) -> float:
        """Videos per hour, on average."""
        return self.clips * 3600 / self.seconds if self.seconds else 0.0


def read_actuals(output_dir: PathOrUri) -> Actuals:
    """What the results in an output folder say. Raises InputError for a folder without any."""
    results, _, _ = ParquetLog(to_location(output_dir) / RESULTS, RESULTS_SCHEMA).read()
    if not len(results):
        expected = "the output folder of a job that has rendered clips"
        raise InputError([Problem(file=str(output_dir), value="no results", expected=expected)])
    return actuals_of(results)


def actuals_of(results: pa.Table) -> Actuals:
    """What the rows of a ledger say."""
    done = results.filter(pc.equal(results.column("status"), ClipStatus.DONE))
    return Actuals(
        clips=len(done),
        failed=len(results) - len(done),
        seconds=_wall_seconds(done),
        stage_s={stage: pc.mean(done.column(f"{stage}_s")).as_py() or 0.0 for stage in ("encode", "denoise", "decode")},
    )


def _wall_seconds(done: pa.Table) -> float:
    """The rows know when a clip ended and how long its stages took, not when it waited: the start is that of the first."""
    if not len(done):
        return 0.0
    ended = pc.divide(pc.cast(done.column("finished_at"), pa.int64()), 1000.0)
    spent = pc.add(pc.add(_filled(done, "encode_s"), _filled(done, "denoise_s")), _filled(done, "decode_s"))
    began = pc.min(pc.subtract(ended, spent)).as_py()
    return float(pc.max(ended).as_py() - began)


def _filled(table: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.fill_null(table.column(name), 0.0)
