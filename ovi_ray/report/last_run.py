"""`last_run.json` in an output folder: the facts of the last run that rendered anything, which results do not contain.

The report of a run that has nothing to do shows them.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from ovi_ray.report.overview import ReportSummary
from ovi_ray.report.run_charts import RunCharts
from ovi_ray.storage.paths import Location

LAST_RUN = "last_run.json"


@dataclass(kw_only=True, slots=True, frozen=True)
class LastRun:
    """A run, over or not."""

    summary: ReportSummary
    charts: RunCharts


_ADAPTER = TypeAdapter(LastRun)


def write_last_run(output_dir: Location, run: LastRun) -> None:
    """Replace the file. Raises OSError."""
    (output_dir / LAST_RUN).write_bytes(_ADAPTER.dump_json(run))


def read_last_run(output_dir: Location) -> LastRun | None:
    """The last run; None where there is none, or that of another version. Raises OSError."""
    try:
        return _ADAPTER.validate_json((output_dir / LAST_RUN).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
