"""The progress of a job in words, for `ovi-ray status`."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from ovi_ray.output.progress_file import LOADING, DeviceProgress, DeviceState, JobProgress, RunState
from ovi_ray.report.durations import (
    format_duration,
    format_duration_in_words,
    format_number,
    format_remaining,
)
from ovi_ray.report.work_text import work_text

SILENT_S = 30.0
"""Seconds without news after which a running job is said to be silent."""
MAX_DEVICES = 64
MAX_PROBLEMS = 5


def progress_lines(progress: JobProgress, *, lives: bool) -> Iterator[tuple[str, str]]:
    """(name, text) of each fact. `lives`: a driver works on the job now."""
    yield "clips", _counts(progress)
    if lives:
        if progress.state is not RunState.ENDED:
            yield "left", format_remaining(progress.remaining)
        if progress.error:
            yield str(progress.state), progress.error
        silent_s = _age_s(progress)
        if silent_s > SILENT_S:
            yield "silent", f"for {format_duration_in_words(silent_s)}"
    elif progress.left and progress.state is not RunState.ENDED:
        yield "died", f"{progress.updated_at}; the command that started it continues the job"
    if progress.clips_per_hour is not None:
        yield "rate", f"{format_number(progress.clips_per_hour)} clips an hour"
    yield "elapsed", f"{format_duration(_elapsed_s(progress))}, since {progress.started_at}"


def device_table(progress: JobProgress) -> Table | None:
    """A line a device; None where there is none."""
    if not progress.devices:
        return None
    table = Table(box=None, pad_edge=False, show_header=False)
    for device in progress.devices[:MAX_DEVICES]:
        done = work_text(device.work)
        table.add_row(
            device.worker,
            device.node,
            device.device,
            _doing(device),
            f"done: {done}" if done else "",
            _memory(device),
            device.attention_backend,
        )
    if (hidden := len(progress.devices) - MAX_DEVICES) > 0:
        table.add_row("...", f"and {hidden} more", "", "", "", "", "")
    return table


def problem_lines(progress: JobProgress) -> Iterator[Text]:
    """The last problems, oldest first."""
    for problem in progress.problems[-MAX_PROBLEMS:]:
        yield Text(f"{problem.at}  {problem.text}", style="yellow")


def headline(progress: JobProgress) -> str:
    """The progress in one line, for a log."""
    rate = "" if progress.clips_per_hour is None else f", {format_number(progress.clips_per_hour)} an hour"
    left = "" if progress.remaining is None else f", left {format_remaining(progress.remaining)}"
    return f"{_counts(progress)}{rate}{left}"


def _counts(progress: JobProgress) -> str:
    parts = [f"{progress.done:,} of {progress.clips:,} done"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.running:
        parts.append(f"{progress.running:,} running")
    return ", ".join(parts)


def _doing(device: DeviceProgress) -> str:
    if device.state is not DeviceState.BUSY:
        return f"{device.state}{f': {device.idle_reason}' if device.idle_reason else ''}"
    if device.stage == LOADING:
        return "loading components"
    step = f" {device.unit} {device.done}/{device.total}" if device.total else ""
    return f"{device.stage} {device.clip_id}{step}"


def _memory(device: DeviceProgress) -> str:
    if device.memory_gb is None:
        return ""
    return f"{format_number(device.memory_gb)} of {format_number(device.memory_total_gb)} GB"


def _elapsed_s(progress: JobProgress) -> float:
    """Of the run up to its last word, with the time that its workers took to start."""
    times = (datetime.fromisoformat(moment) for moment in (progress.updated_at, progress.started_at))
    return (next(times) - next(times)).total_seconds()


def _age_s(progress: JobProgress) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(progress.updated_at)).total_seconds()
