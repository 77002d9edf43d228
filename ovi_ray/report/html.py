"""The page that a user opens when a job is over: `report.html`, then `report-2.html`, ... where there are many clips.

The pages are static and complete: no script and no request to anywhere, so they work from a disk, on any web server, and
in a copy of the output folder. Everything in them comes from the job's results and the summary, so the same job gives
the same bytes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ovi.stages import TIME_GROUPS
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import POSTERS
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location, PathOrUri, list_files, to_location

REPORT = "report.html"
Batches = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Gives some columns of the results, a bounded number of rows at a time: `Results.batches`."""

PAGE_CLIPS = 200
MAX_PAGES = 500  # whoever wants more clips than that asks the results
MAX_TABLE_ROWS = 100
MAX_REASONS = 5
BINS = 40
STAGES = (*TIME_GROUPS, "load")


@dataclass(kw_only=True, slots=True, frozen=True)
class ReportSummary:
    """What the results do not say of a run."""

    clips: int
    """That the job asks for."""
    finished_before: int
    """Of these, done by an earlier run and left as they were."""
    started_at: datetime
    """With its time zone. Rows that finished earlier belong to an earlier run."""
    seconds: float
    """From beginning to end."""
    workers: tuple[WorkerTime, ...]

    def __post_init__(self) -> None:
        if self.started_at.tzinfo is None:
            raise ValueError(f"started_at is {self.started_at!r}; expected a time with its time zone")


def write_report(output_dir: PathOrUri, results: Batches, *, title: str, summary: ReportSummary) -> Location:
    """Write the report of a job into its output folder and return its first page.

    `results` gives columns of the ledger, each clip once, of a million clips perhaps: of all of them only narrow columns are
    held, and of few of them Python objects are made. Pages of an earlier report that this one no longer has are removed.
    """
    folder = to_location(output_dir)
    videos = _first_rows(results, ClipStatus.DONE, MAX_PAGES * PAGE_CLIPS)
    total = _number_with(results, ClipStatus.DONE)
    pages = max(1, -(-len(videos) // PAGE_CLIPS))
    overview = _Overview.of(results, summary)
    template = _environment().get_template("report.html.j2")
    for page in range(pages, 0, -1):  # the first page comes last, when all that it links to is there
        gallery = _Gallery.of(videos, page=page, pages=pages, total=total)
        shown = overview if page == 1 else None
        html = template.render(title=title, overview=shown, gallery=gallery)
        (folder / _page_name(page)).write_bytes(html.encode())
    _remove_stale(folder, pages)
    return folder / REPORT


# -- what the pages show -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class _Figure:
    """A headline number."""

    label: str
    value: str
    note: str = ""
    is_bad: bool = False


@dataclass(kw_only=True, slots=True, frozen=True)
class _Segment:
    """A stage's part of a worker's bar, in shares of its time."""

    stage: str
    start: float
    share: float


@dataclass(kw_only=True, slots=True, frozen=True)
class _WorkerLine:
    """A line of the table of workers."""

    time: WorkerTime
    backends: str
    clips: int
    """Done clips that it denoised."""
    segments: tuple[_Segment, ...]

    @property
    def busy(self) -> float:
        return sum(segment.share for segment in self.segments)


@dataclass(kw_only=True, slots=True, frozen=True)
class _Timing:
    """How long a stage took for a clip."""

    stage: str
    clips: int
    median: float
    p90: float
    longest: float
    start: float
    """Of the histogram."""
    end: float
    """Of the histogram; what took longer is in the last bin."""
    bins: tuple[float, ...]
    """Heights from 0 to 1; none where all took the same time."""

    @classmethod
    def of(cls, stage: str, rows: pa.Table) -> Self | None:
        """None where no clip went through the stage."""
        values = rows.column(f"{stage}_s").drop_null().to_numpy()
        if not len(values):
            return None
        median, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
        start = float(values.min())
        return cls(
            stage=stage,
            clips=len(values),
            median=median,
            p90=p90,
            longest=float(values.max()),
            start=start,
            end=p99,
            bins=_bins(values, start, p99),
        )


def _bins(values: np.ndarray, start: float, end: float) -> tuple[float, ...]:
    if end <= start:
        return ()
    counts, _ = np.histogram(values.clip(start, end), bins=BINS, range=(start, end))
    return tuple((counts / counts.max()).round(3).tolist())


@dataclass(kw_only=True, slots=True, frozen=True)
class _Overview:
    """What the first page says before its clips."""

    finished_at: datetime
    models: str
    figures: tuple[_Figure, ...]
    failures: list[dict[str, Any]]
    """The first of them."""
    more_failures: int
    reasons: tuple[tuple[str, int], ...]
    """The most frequent, where several clips share one."""
    workers: tuple[_WorkerLine, ...]
    more_workers: int
    stages: tuple[str, ...]
    """That any worker spent time on."""
    timings: tuple[_Timing, ...]

    @classmethod
    def of(cls, results: Batches, summary: ReportSummary) -> Self:
        """`results` are in any order."""
        run = _since(_table(results, _COUNTED), summary.started_at)
        done, failed = _with_status(run, ClipStatus.DONE), _number_with(results, ClipStatus.FAILED)
        models = _table(results, ["model_name", "dtype"]).group_by(["model_name", "dtype"]).aggregate([]).to_pylist()
        times = summary.workers
        timings = (_Timing.of(stage, done) for stage in ("denoise", "decode"))
        return cls(
            finished_at=summary.started_at + timedelta(seconds=summary.seconds),
            models=", ".join(sorted(f"{model['model_name']} in {model['dtype']}" for model in models)),
            figures=tuple(_figures(summary, len(done), failed, times)),
            failures=_first_rows(results, ClipStatus.FAILED, MAX_TABLE_ROWS).to_pylist(),
            more_failures=max(0, failed - MAX_TABLE_ROWS),
            reasons=_reasons(results),
            workers=_worker_lines(times[:MAX_TABLE_ROWS], done),
            more_workers=max(0, len(times) - MAX_TABLE_ROWS),
            stages=tuple(stage for stage in STAGES if any(_seconds_of(time, stage) > 0 for time in times)),
            timings=tuple(timing for timing in timings if timing is not None),
        )


def _figures(summary: ReportSummary, done: int, failed: int, times: tuple[WorkerTime, ...]) -> Iterator[_Figure]:
    yield _Figure(label="Done", value=_count(done), note=f"of {_count(summary.clips)}")
    yield _Figure(label="Failed", value=_count(failed), is_bad=failed > 0)
    if summary.finished_before:
        yield _Figure(label="Finished before", value=_count(summary.finished_before), note="left as they were")
    left = summary.clips - summary.finished_before - done - failed
    if left > 0:
        yield _Figure(label="Not rendered", value=_count(left), note="the same command goes on", is_bad=True)
    yield _Figure(label="Wall time", value=_duration(summary.seconds))
    hours = summary.seconds / 3600
    yield _Figure(label="Clips per hour", value=_number(done / hours) if hours > 0 else "–")
    if times:
        yield _device_hours(times)


def _device_hours(times: tuple[WorkerTime, ...]) -> _Figure:
    held, busy = sum(time.held_s for time in times), sum(time.busy_s for time in times)
    workers = f"{_count(len(times))} worker{'' if len(times) == 1 else 's'}"
    note = f"{workers}, {_percent(min(1.0, busy / held))} busy" if held > 0 else workers
    return _Figure(label="Device-hours", value=_number(held / 3600), note=note)


def _reasons(results: Batches) -> tuple[tuple[str, int], ...]:
    failed = _with_status(_table(results, ["status", "error"]), ClipStatus.FAILED)
    counts = failed.group_by("error").aggregate([([], "count_all")])
    is_shorter = MAX_REASONS < len(failed) > len(counts)  # than the table that follows
    if not is_shorter:
        return ()
    most = counts.sort_by([("count_all", "descending"), ("error", "ascending")]).slice(0, MAX_REASONS)
    return tuple((line["error"] or "no reason was given", line["count_all"]) for line in most.to_pylist())


# -- workers -----------------------------------------------------------------------------------------------------------


def _worker_lines(times: Iterable[WorkerTime], done: pa.Table) -> tuple[_WorkerLine, ...]:
    clips: Counter[str] = Counter()
    backends: defaultdict[str, set[str]] = defaultdict(set)
    for line in done.group_by(["worker", "attention_backend"]).aggregate([([], "count_all")]).to_pylist():
        clips[line["worker"]] += line["count_all"]
        if line["attention_backend"] is not None:
            backends[line["worker"]].add(line["attention_backend"])
    return tuple(
        _WorkerLine(
            time=time,
            backends=", ".join(sorted(backends[time.worker])),
            clips=clips[time.worker],
            segments=tuple(_segments(time)),
        )
        for time in times
    )


def _segments(time: WorkerTime) -> Iterator[_Segment]:
    whole = max(time.held_s, time.busy_s)  # a worker that does two things at once is busy for no more than all its time
    start = 0.0
    for stage in STAGES:
        seconds = _seconds_of(time, stage)
        if seconds > 0:
            yield _Segment(stage=stage, start=start / whole, share=seconds / whole)
            start += seconds


def _seconds_of(time: WorkerTime, stage: str) -> float:
    return float(getattr(time, f"{stage}_s"))


# -- clips -------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class _Gallery:
    """A page's clips."""

    clips: list[dict[str, Any]]
    first: int
    """Number of the first clip, from 1."""
    total: int
    """Clips that are done."""
    more: int
    """Of these, on no page."""
    page: int
    pages: int
    links: tuple[tuple[int, str], ...]
    """Page numbers and names: the neighbours, the ends, and every tenth part between."""
    ratio: str
    """Width to height of most clips, as CSS."""

    @classmethod
    def of(cls, videos: pa.Table, *, page: int, pages: int, total: int) -> Self:
        """The clips of one page, counted from 1."""
        start = (page - 1) * PAGE_CLIPS
        clips = videos.slice(start, PAGE_CLIPS).to_pylist()
        sizes = Counter((clip["width"], clip["height"]) for clip in clips) or {(16, 9): 1}
        width, height = max(sizes, key=lambda size: (sizes[size], size))
        numbers = {1, pages, *range(page - 2, page + 3), *(pages * tenth // 10 for tenth in range(1, 10))}
        return cls(
            clips=clips,
            first=start + 1,
            total=total,
            more=total - len(videos),
            page=page,
            pages=pages,
            links=tuple((number, _page_name(number)) for number in sorted(numbers) if 1 <= number <= pages),
            ratio=f"{width} / {height}",
        )


def _spent(clip: dict[str, Any]) -> float:
    """Seconds of all stages."""
    return sum(clip[f"{stage}_s"] or 0.0 for stage in ("encode", "denoise", "decode"))


# -- tables ------------------------------------------------------------------------------------------------------------


_ORDER = [("row", "ascending"), ("repeat", "ascending"), ("clip_id", "ascending")]
_COUNTED = ["status", "finished_at", "worker", "attention_backend", "denoise_s", "decode_s"]


def _table(results: Batches, names: Sequence[str]) -> pa.Table:
    return pa.Table.from_batches(results(names), pa.schema([RESULTS_SCHEMA.field(name) for name in names]))


def _number_with(results: Batches, status: ClipStatus) -> int:
    return len(_with_status(_table(results, ["status"]), status))


def _first_rows(results: Batches, status: ClipStatus, most: int) -> pa.Table:
    """The first rows of a status in the order of the prompt list; the others are not held."""
    keys = _with_status(_table(results, ["status", "row", "repeat", "clip_id"]), status).sort_by(_ORDER)
    ids = keys.column("clip_id").slice(0, most)
    batches = results(RESULTS_SCHEMA.names)
    found = (batch.filter(pa.compute.is_in(batch.column("clip_id"), value_set=ids)) for batch in batches)
    return pa.Table.from_batches(found, RESULTS_SCHEMA).sort_by(_ORDER)


def _with_status(rows: pa.Table, status: ClipStatus) -> pa.Table:
    return rows.filter(pa.compute.equal(rows.column("status"), str(status)))


def _since(rows: pa.Table, time: datetime) -> pa.Table:
    since = pa.scalar(time.replace(microsecond=time.microsecond // 1000 * 1000), pa.timestamp("ms", tz="UTC"))
    return rows.filter(pa.compute.greater_equal(rows.column("finished_at"), since))


# -- files -------------------------------------------------------------------------------------------------------------


def _page_name(page: int) -> str:
    return REPORT if page == 1 else f"report-{page}.html"


def _remove_stale(output_dir: Location, pages: int) -> None:
    for name in list_files(output_dir, ".html").column("name").to_pylist():
        match = re.fullmatch(r"report-(\d+)\.html", name)
        if match and int(match[1]) > pages:
            (output_dir / name).unlink()


# -- formats -----------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=_count, seconds=_seconds, percent=_percent, megabytes=_megabytes, spent=_spent)
    environment.globals.update(POSTERS=POSTERS)
    return environment


def _count(value: int) -> str:
    return f"{value:,}"


def _number(value: float) -> str:
    """Three digits that matter, or all before the point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{_number(value)} s"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{_number(size / 1e6)} MB"


def _duration(seconds: float) -> str:
    """The two largest units: "7 h 12 min"."""
    if round(seconds, 1) < 60:
        return f"{_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(index for index, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)
