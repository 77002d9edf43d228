"""The HTML report of a job: `report.html`, one self-contained page.

It works from a local disk, on any web server and in a copy of the output folder: its styles, its script and the facts of its
clips are in it, and it asks no network for anything; videos and posters are relative links. Figures and tables are markup,
escaped by the template; clips are data that the script shows as text. The page is a function of its arguments alone: the same
job gives the same bytes.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pyarrow as pa

from ovi_ray.inputs.columns import place_in_list
from ovi_ray.output.results import POSTERS
from ovi_ray.report.clip_data import chunks, clip_table, count_clips, packed
from ovi_ray.report.durations import format_number
from ovi_ray.report.overview import Overview, ReportSummary, TableLimits
from ovi_ray.report.result_queries import Batches, of_list
from ovi_ray.report.run_charts import RunCharts
from ovi_ray.storage.paths import Location, PathOrUri, list_files, to_location

__all__ = ["REPORT", "ReportLimits", "ReportSummary", "write_report"]

REPORT = "report.html"
_FOLDER = Path(__file__).parent


@dataclass(kw_only=True, slots=True, frozen=True)
class ReportLimits:
    """Limits of the report's size. Results beyond them are counted, not shown."""

    clips: int = 100_000
    tables: TableLimits = field(default_factory=TableLimits)


def write_report(
    output_dir: PathOrUri,
    results: Batches,
    *,
    title: str,
    summary: ReportSummary,
    manifest: pa.Table | None = None,
    meta_columns: Sequence[str] = (),
    charts: RunCharts | None = None,
    key: str = "",
    limits: ReportLimits = ReportLimits(),
) -> Location:
    """Write the report of a job into its output folder and return its path. Raises OSError.

    `results` yields each clip once, in any order; `manifest` has the clips of the list, so that those that wait are shown, and
    superseded ones, which are not in it any more, stand in a section of their own and count nowhere else. `meta_columns` are
    the list's own columns. Stars that are set in a browser are kept under `key`. Memory stays bounded for a million clips: of
    all results only a few columns are read at a time.
    """
    folder = to_location(output_dir)
    clips, total = clip_table(results, manifest, meta_columns, limits.clips)
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            overview=Overview.of(
                results,
                of_list(results, manifest),
                summary=summary,
                limits=limits.tables,
                counts=count_clips(results, manifest),
            ),
            chunks=chunks(clips),
            charts=packed(asdict(charts or RunCharts())),
            key=key,
            total=total,
            more=total - len(clips),
            style=_included("report.css"),
            script=_included("report.js"),
            script_hash=_hash((_FOLDER / "report.js").read_text(encoding="utf-8")),
        )
    )
    (folder / REPORT).write_bytes(html.encode())
    _remove_pages_of_earlier_versions(folder)
    return folder / REPORT


def _remove_pages_of_earlier_versions(output_dir: Location) -> None:
    for name in list_files(output_dir, ".html").column("name").to_pylist():
        if re.fullmatch(r"report-\d+\.html", name):
            (output_dir / name).unlink(missing_ok=True)


def _included(name: str) -> markupsafe.Markup:
    return markupsafe.Markup((_FOLDER / name).read_text(encoding="utf-8"))  # noqa: S704 # a file of this package


def _hash(script: str) -> str:
    """The source of a content security policy that allows this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# -- template ----------------------------------------------------------------------------------------------------------


@cache  # with the compiled template, which a run would else compile whenever it writes its report
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=_count,
        seconds=_seconds,
        percent=_percent,
        place=_place,
    )
    environment.globals.update(POSTERS=POSTERS)
    return environment


def _place(clip: dict[str, Any]) -> str:
    return place_in_list(clip["row"], clip["line"])


def _count(value: int) -> str:
    return f"{value:,}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{format_number(value)} s"


def _percent(share: float) -> str:
    return f"{share:.0%}"
