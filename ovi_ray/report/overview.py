"""The overview on the first page of the HTML report: headline figures, failures, workers and times per stage."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi.stages import CLIP_STAGES, STAGES, TIME_GROUPS
from ovi_ray.printing import counted
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.report.durations import format_duration_in_words, format_number
from ovi_ray.report.result_queries import (
    Batches,
    count_noted,
    count_status,
    finished_since,
    first_rows,
    read_columns,
    with_status,
)
from ovi_ray.report.work_text import work_text
from ovi_ray.scheduling.task import ClipStatus

ACTIVITIES = (*TIME_GROUPS, "load")
"""The parts of a worker's time, in the order of its bar."""
_PATH_CHARS = r"""[^\s"'():;,]"""
_PARTICULARS = (
    rf"(^|\s)/{_PATH_CHARS}+ on [\w.-]+$",  # a log, and its node
    rf"""(^|[\s"'(=])(?:[a-z][a-z0-9+.-]*://|[A-Za-z]:[\\/]|/){_PATH_CHARS}*[/\\]{_PATH_CHARS}+""",
    rf"""(^|[\s"'(=]){_PATH_CHARS}+[/\\]{_PATH_CHARS}*\.\w+""",
    r"(\b)(?:0x)?[0-9a-f]*[0-9][0-9a-f]{7,}\b",
    r"(\b)[0-9]+(?:\.[0-9]+)? ?[KMGT]i?B\b",
)
"""Parts that differ between errors of one cause (RE2). The first group stays."""
_TIMED_GROUPS = tuple(STAGES[stage].time_group for stage in CLIP_STAGES)  # their time belongs to a single clip
_COLUMNS = ["status", "finished_at", "worker", "attention_backend", *(f"{group}_s" for group in _TIMED_GROUPS)]


@dataclass(kw_only=True, slots=True, frozen=True)
class ReportSummary:
    """The facts of a run that its results do not contain."""

    clips: int
    """Clips of the job."""
    finished_before: int
    """Clips that an earlier run finished and this one kept."""
    started_at: datetime
    """Start of the run, with a time zone. Results that finished earlier belong to an earlier run."""
    seconds: float
    """Duration of the run."""
    workers: tuple[WorkerTime, ...]
    is_running: bool = False
    """The report is written while the run goes on."""
    cost: float | None = None
    """Of the devices of the run so far, in `currency`; None where a device has no price."""
    currency: str = ""

    def __post_init__(self) -> None:
        if self.started_at.tzinfo is None:
            raise ValueError(f"started_at is {self.started_at!r}; expected a time with a time zone")


@dataclass(kw_only=True, slots=True, frozen=True)
class TableLimits:
    """Limits of the overview's tables, so that a page stays small."""

    rows: int = 100
    """Rows of the tables of failures and of workers."""
    reasons: int = 5
    """Reasons in the summary of failures."""
    histogram_bins: int = 40


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipCounts:
    """Clips of a job, of all its runs."""

    done: int
    failed: int
    superseded: int = 0
    """Clips with a row that are not in the list any more; in none of the others."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Figure:
    """A headline number."""

    label: str
    value: str
    note: str = ""
    is_bad: bool = False


@dataclass(kw_only=True, slots=True, frozen=True)
class Segment:
    """One activity in a worker's bar."""

    stage: str
    start: float
    """Start, as a share of the worker's time."""
    share: float
    """Length, as a share of the worker's time."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerLine:
    """A row of the table of workers."""

    time: WorkerTime
    backends: str
    """Attention backends of its clips, separated by commas."""
    work: str
    """Items that it finished in this run, by stage."""
    segments: tuple[Segment, ...]

    @property
    def busy(self) -> float:
        """Share of the worker's time that it was busy."""
        return sum(segment.share for segment in self.segments)


@dataclass(kw_only=True, slots=True, frozen=True)
class StageTiming:
    """Distribution of the seconds that a stage took per clip."""

    stage: str
    clips: int
    median: float
    p90: float
    longest: float
    start: float
    """Lower end of the histogram: the shortest time."""
    end: float
    """Upper end of the histogram: the 99th percentile; the last bin includes everything longer."""
    bins: tuple[float, ...]
    """Heights from 0 to 1; empty if all clips took the same time."""

    @classmethod
    def of(cls, stage: str, rows: pa.Table, *, histogram_bins: int) -> Self | None:
        """The timing of a stage; None if no clip went through it."""
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
            bins=_histogram(values, start, p99, bins=histogram_bins),
        )


def _histogram(values: np.ndarray, start: float, end: float, *, bins: int) -> tuple[float, ...]:
    if end <= start:
        return ()
    counts, _ = np.histogram(values.clip(start, end), bins=bins, range=(start, end))
    return tuple((counts / counts.max()).round(3).tolist())


@dataclass(kw_only=True, slots=True, frozen=True)
class Overview:
    """The part of the first page above its clips."""

    finished_at: datetime
    models: str
    """Models and dtypes of the results, separated by commas."""
    is_running: bool
    figures: tuple[Figure, ...]
    failures: list[dict[str, Any]]
    """The first failed results, as many as the table has rows."""
    more_failures: int
    """Failures that are not in `failures`."""
    reasons: tuple[tuple[str, int], ...]
    """The most frequent failure reasons with their counts; empty if nearly every failure has its own."""
    workers: tuple[WorkerLine, ...]
    more_workers: int
    """Workers that are not in `workers`."""
    stages: tuple[str, ...]
    """Activities that any worker spent time on."""
    timings: tuple[StageTiming, ...]
    superseded: int
    """Finished clips that the list does not ask for."""

    @classmethod
    def of(
        cls, results: Batches, listed: Batches, *, summary: ReportSummary, limits: TableLimits, counts: ClipCounts
    ) -> Self:
        """The overview of a job and its last run. `listed` are the results of the list's clips; both may be in any order."""
        run = finished_since(read_columns(results, _COLUMNS), summary.started_at)
        done, failed = with_status(run, ClipStatus.DONE), count_status(listed, ClipStatus.FAILED)
        times = summary.workers
        timings = (StageTiming.of(group, done, histogram_bins=limits.histogram_bins) for group in _TIMED_GROUPS)
        return cls(
            finished_at=summary.started_at + timedelta(seconds=summary.seconds),
            models=_models(listed),
            is_running=summary.is_running,
            figures=tuple(_figures(summary, counts, len(done), count_noted(listed))),
            failures=first_rows(listed, ClipStatus.FAILED, limits.rows).to_pylist(),
            more_failures=max(0, failed - limits.rows),
            reasons=_reasons(listed, limits),
            workers=_worker_lines(times[: limits.rows], done),
            more_workers=max(0, len(times) - limits.rows),
            stages=tuple(activity for activity in ACTIVITIES if any(_seconds(time, activity) > 0 for time in times)),
            timings=tuple(timing for timing in timings if timing is not None),
            superseded=counts.superseded,
        )


def _models(results: Batches) -> str:
    columns = ["model_name", "dtype"]
    models = read_columns(results, columns).group_by(columns).aggregate([]).to_pylist()
    return ", ".join(sorted(f"{model['model_name']} in {model['dtype']}" for model in models))


def _figures(summary: ReportSummary, counts: ClipCounts, run_done: int, noted: int) -> Iterator[Figure]:
    in_run = f", {run_done:,} in {_this_run(summary)}" if counts.done != run_done else ""
    yield Figure(label="Done", value=f"{counts.done:,}", note=f"of {summary.clips:,}{in_run}")
    yield Figure(label="Failed", value=f"{counts.failed:,}", is_bad=counts.failed > 0)
    if noted:
        yield Figure(label="With notes", value=f"{noted:,}", note="see their cards", is_bad=True)
    if counts.superseded:
        yield Figure(label="Superseded", value=f"{counts.superseded:,}", note="not in the list any more")
    left = summary.clips - counts.done - counts.failed
    if left > 0 and summary.is_running:
        yield Figure(label="Left", value=f"{left:,}")
    elif left > 0:
        yield Figure(label="Not rendered", value=f"{left:,}", note="run the same command to continue", is_bad=True)
    yield Figure(
        label="Wall time",
        value=format_duration_in_words(summary.seconds),
        note=f"of {_this_run(summary)}" if in_run else "",
    )
    hours = summary.seconds / 3600
    yield Figure(label="Clips per hour", value=format_number(run_done / hours) if hours > 0 else "–")
    if summary.workers:
        yield _device_hours(summary.workers)
    if summary.cost is not None:
        note = f"of {_this_run(summary)}" if in_run else ""
        yield Figure(label="Cost", value=f"{summary.cost:,.2f} {summary.currency}".strip(), note=note)


def _this_run(summary: ReportSummary) -> str:
    return "this run" if summary.is_running else "the last run"


def _device_hours(times: tuple[WorkerTime, ...]) -> Figure:
    held, busy = sum(time.held_s for time in times), sum(time.busy_s for time in times)
    workers = counted(len(times), "worker")
    note = f"{workers}, {min(1.0, busy / held):.0%} busy" if held > 0 else workers
    return Figure(label="Device-hours", value=format_number(held / 3600), note=note)


def _reasons(results: Batches, limits: TableLimits) -> tuple[tuple[str, int], ...]:
    """Failures with one cause count together, though each names a file, an id or an amount of memory of its own."""
    failed = with_status(read_columns(results, ["status", "error"]), ClipStatus.FAILED)
    texts = failed.group_by("error").aggregate([([], "count_all")])
    texts = texts.append_column("cause", _causes(texts.column("error")))
    counts = texts.group_by("cause").aggregate([("count_all", "sum"), ("error", "count"), ("error", "min")])
    is_shorter_than_the_table = limits.reasons < len(failed) > len(counts)
    if not is_shorter_than_the_table:
        return ()
    frequent = counts.sort_by([("count_all_sum", "descending"), ("cause", "ascending")]).slice(0, limits.reasons)
    return tuple((_reason(line), line["count_all_sum"]) for line in frequent.to_pylist())


def _causes(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """Errors with an ellipsis in place of what is particular to a clip, a process or a moment."""
    for pattern in _PARTICULARS:
        errors = pc.replace_substring_regex(errors, pattern, r"\1…")
    return errors


def _reason(line: dict[str, Any]) -> str:
    """The text of a cause: the error itself where all its clips have the same one."""
    return (line["error_min"] if line["error_count"] == 1 else line["cause"]) or "no reason was given"


def _worker_lines(times: Iterable[WorkerTime], done: pa.Table) -> tuple[WorkerLine, ...]:
    backends: defaultdict[str, set[str]] = defaultdict(set)
    for line in done.group_by(["worker", "attention_backend"]).aggregate([]).to_pylist():
        if line["attention_backend"] is not None:
            backends[line["worker"]].add(line["attention_backend"])
    return tuple(
        WorkerLine(
            time=time,
            backends=", ".join(sorted(backends[time.worker])),
            work=work_text(time.work),
            segments=tuple(_segments(time)),
        )
        for time in times
    )


def _segments(time: WorkerTime) -> Iterator[Segment]:
    whole = max(time.held_s, time.busy_s)  # overlapping activities may add up to more than the time held
    start = 0.0
    for activity in ACTIVITIES:
        seconds = _seconds(time, activity)
        if seconds > 0:
            yield Segment(stage=activity, start=start / whole, share=seconds / whole)
            start += seconds


def _seconds(time: WorkerTime, activity: str) -> float:
    return float(getattr(time, f"{activity}_s"))
