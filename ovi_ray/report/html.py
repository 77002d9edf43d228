"""The HTML report of a job: `report.html` and, if there are many clips, `report-2.html`, `report-3.html`, ...

The pages are static and self-contained, without scripts or network requests, so they work from a local disk, on any web
server and in a copy of the output folder. They are a function of the results and the summary alone: the same job gives
the same bytes. All texts are escaped by the templates.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jinja2
import pyarrow as pa

from ovi.stages import TIME_GROUPS
from ovi_ray.inputs.columns import META_PREFIX, place_in_list
from ovi_ray.output.results import POSTERS
from ovi_ray.report.durations import format_number
from ovi_ray.report.overview import Overview, ReportSummary, TableLimits
from ovi_ray.report.result_queries import Batches, count_status, first_rows
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location, PathOrUri, list_files, to_location

__all__ = ["ReportLimits", "ReportSummary", "write_report"]

REPORT = "report.html"


@dataclass(kw_only=True, slots=True, frozen=True)
class ReportLimits:
    """Limits of the report's size. Results beyond them are counted, not shown."""

    page_clips: int = 200
    """Clips per page."""
    pages: int = 500
    tables: TableLimits = field(default_factory=TableLimits)


def write_report(
    output_dir: PathOrUri,
    results: Batches,
    *,
    title: str,
    summary: ReportSummary,
    meta_columns: Sequence[str] = (),
    superseded: Batches | None = None,
    limits: ReportLimits = ReportLimits(),
) -> Location:
    """Write the report of a job into its output folder and return its first page. Raises OSError.

    `results` yields each clip of the job once, in any order, and `superseded` the other finished ones of its folder;
    `meta_columns` are the list's own columns, which the cards show. Memory stays bounded for a million clips: of all results
    only a few columns are read at a time, and Python objects are made only for the rows shown. Pages that an earlier report
    had and this one does not are removed.
    """
    folder = to_location(output_dir)
    videos = first_rows(results, ClipStatus.DONE, limits.pages * limits.page_clips, meta_columns)
    total = count_status(results, ClipStatus.DONE)
    pages = max(1, -(-len(videos) // limits.page_clips))
    overview = Overview.of(results, summary, limits.tables, superseded)
    template = _environment().get_template("report.html.j2")
    for page in range(pages, 0, -1):  # the first page last, when all pages that it links to exist
        gallery = Gallery.of(videos, page=page, pages=pages, total=total, page_clips=limits.page_clips)
        html = template.render(title=title, overview=overview if page == 1 else None, gallery=gallery)
        (folder / _page_name(page)).write_bytes(html.encode())
    _remove_stale_pages(folder, pages)
    return folder / REPORT


@dataclass(kw_only=True, slots=True, frozen=True)
class Gallery:
    """The clips of one page."""

    clips: list[dict[str, Any]]
    """Rows of the results."""
    first: int
    """Number of the page's first clip, from 1."""
    total: int
    """Finished clips of the job."""
    more: int
    """Finished clips that are on no page."""
    page: int
    pages: int
    links: tuple[tuple[int, str], ...]
    """Linked page numbers and file names: the neighbours, both ends and nine pages evenly between them."""
    ratio: str
    """CSS aspect ratio (width / height) of the most frequent frame size on the page."""

    @classmethod
    def of(cls, videos: pa.Table, *, page: int, pages: int, total: int, page_clips: int) -> Self:
        """The gallery of a page, counted from 1."""
        start = (page - 1) * page_clips
        clips = videos.slice(start, page_clips).to_pylist()
        sizes = Counter((clip["width"], clip["height"]) for clip in clips) or {(16, 9): 1}
        width, height = max(sizes, key=lambda size: (sizes[size], size))
        return cls(
            clips=clips,
            first=start + 1,
            total=total,
            more=total - len(videos),
            page=page,
            pages=pages,
            links=tuple((number, _page_name(number)) for number in _linked_pages(page, pages)),
            ratio=f"{width} / {height}",
        )


def _linked_pages(page: int, pages: int) -> list[int]:
    numbers = {1, pages, *range(page - 2, page + 3), *(pages * tenth // 10 for tenth in range(1, 10))}
    return sorted(number for number in numbers if 1 <= number <= pages)


# -- files -------------------------------------------------------------------------------------------------------------


def _page_name(page: int) -> str:
    return REPORT if page == 1 else f"report-{page}.html"


def _remove_stale_pages(output_dir: Location, pages: int) -> None:
    for name in list_files(output_dir, ".html").column("name").to_pylist():
        match = re.fullmatch(r"report-(\d+)\.html", name)
        if match and int(match[1]) > pages:
            (output_dir / name).unlink()


# -- template ----------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
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
        megabytes=_megabytes,
        total_seconds=_total_seconds,
        place=_place,
    )
    environment.globals.update(POSTERS=POSTERS, TIME_GROUPS=TIME_GROUPS, META_PREFIX=META_PREFIX)
    return environment


def _total_seconds(clip: dict[str, Any]) -> float:
    """Seconds that all stages of a clip took."""
    return sum(clip[f"{group}_s"] or 0.0 for group in TIME_GROUPS)


def _place(clip: dict[str, Any]) -> str:
    return place_in_list(clip["row"], clip["line"])


def _count(value: int) -> str:
    return f"{value:,}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{format_number(value)} s"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{format_number(size / 1e6)} MB"
