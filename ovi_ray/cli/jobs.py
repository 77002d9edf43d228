"""`ovi-ray jobs`, `status`, `logs`, `stop` and `wait`: look after submitted jobs, in the same words for every target."""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from ovi_ray.answers import answer, answers
from ovi_ray.cli.common import command_console
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.cli.submit import exit_code_of
from ovi_ray.errors import ClusterError, InputError
from ovi_ray.output.progress_file import JobProgress, progress_json, read_progress
from ovi_ray.printing import Console
from ovi_ray.report.durations import format_remaining
from ovi_ray.storage.diagnostics import usable
from ovi_ray.storage.paths import to_location
from ovi_ray.submission.states import JobState, JobStatus

_LOOK_S = 2.0
_READERS = 8
_NO_LIMIT = 10_000
UNREACHABLE_S = 600.0
"""Seconds without an answer after which `wait` gives up."""

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or an output folder (a path or a URI).")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="TARGET",
        help="Target of the job, if it was not submitted from here. [default: where it was submitted]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON. [default: off]")]


@with_display_options
def jobs(
    display: DisplayOptions,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TARGET", help="Only the jobs of this target. [default: all]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs of every target that jobs were submitted to, or that targets.yaml names.

    Of jobs that run, and whose output folder can be read from here, also how far they are.

    Examples:

        ovi-ray jobs

        ovi-ray jobs --to slurm --json
    """
    from ovi_ray.submission.targets import find_target

    with command_console(display) as console:
        found: list[JobStatus] = []
        for name, options in [(to, {})] if to is not None else _places():
            try:
                found += find_target(name, options, given_by="--to" if to is not None else "a target").jobs()
            except (ClusterError, InputError) as error:
                if to is not None:
                    raise
                console.print(f"{name}: {error}", style="yellow", soft_wrap=True)
        # one cluster may have several names
        found = list({(job.job_id, job.native_id, job.submitted_at): job for job in reversed(found)}.values())[::-1]
        progress = _progress_of_all(found)
    if as_json:
        pairs = zip(found, progress, strict=True)
        answer(json.dumps([{**asdict(job), "progress": progress_json(known)} for job, known in pairs]))
    else:
        # a line a job where no terminal limits it: for grep
        _show(found, progress, Console(width=None if answers().isatty() or "COLUMNS" in os.environ else _NO_LIMIT))


@with_display_options
def status(
    job: JobId,
    display: DisplayOptions,
    to: To = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the job ends. [default: off]")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of a job, and how far it is: from any shell or machine that reaches its output folder.

    With --watch, --json prints one line for each change.

    Examples:

        ovi-ray status quickstart-3f9a0c2d71

        ovi-ray status demo/out --json

        ovi-ray status s3://bucket/out --watch
    """
    from ovi_ray.cli.status_view import show_status, watch_status
    from ovi_ray.submission.handles import find_job
    from ovi_ray.submission.journal import Journal

    with command_console(display) as console, usable(job):
        handle = find_job(job, to=to, journal=Journal())
        if watch:
            watch_status(handle, console, as_json=as_json)
        else:
            show_status(handle, console, as_json=as_json)


@with_display_options
def logs(
    job: JobId,
    display: DisplayOptions,
    to: To = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends. [default: off]")] = False,
) -> None:
    """Print what the driver of a job printed; of an output folder, the log of its runs. A dropped connection is opened again.

    Examples:

        ovi-ray logs -f quickstart-3f9a0c2d71
    """
    from ovi_ray.submission.handles import find_job
    from ovi_ray.submission.journal import Journal

    with command_console(display), usable(job):
        for piece in find_job(job, to=to, journal=Journal()).logs(follow=follow):
            answers().buffer.write(piece)
            answers().buffer.flush()


@with_display_options
def stop(job: JobId, display: DisplayOptions, to: To = None, as_json: AsJson = False) -> None:
    """Stop a job: it saves what runs, and ends. Submitted again, it continues. Returns at once; `ovi-ray wait` sees the end.

    Examples:

        ovi-ray stop quickstart-3f9a0c2d71

        ovi-ray stop out
    """
    from ovi_ray.submission.handles import find_job
    from ovi_ray.submission.journal import Journal

    with command_console(display) as console, usable(job):
        before = find_job(job, to=to, journal=Journal()).stop()
        told = f"{job} had {before.state} already" if before.state.is_over else f"{job} was asked to stop"
        console.print(told, soft_wrap=True)
    if as_json:
        answer(json.dumps({**asdict(before), "asked_to_stop": not before.state.is_over}))


@with_display_options
def wait(job: JobId, display: DisplayOptions, to: To = None, as_json: AsJson = False) -> None:
    """Wait for the end of a job. The exit code is the driver's; where that is not known, 143 for a job that was stopped, also
    before it began, and 3 for one that failed.

    Example:

        ovi-ray wait quickstart-3f9a0c2d71 && echo done
    """
    with command_console(display), usable(job):
        last = _last_status(job, to)
    if as_json:
        answer(json.dumps(asdict(last)))
    raise typer.Exit(exit_code_of(last))


def _last_status(job: str, to: str | None) -> JobStatus:
    """The status of a job that is over. A target that does not answer is asked again. Raises ClusterError, InputError."""
    from ovi_ray.submission.handles import find_job
    from ovi_ray.submission.journal import Journal

    handle = find_job(job, to=to, journal=Journal())
    found, answered = handle.status(), time.monotonic()
    while not found.state.is_over:
        time.sleep(_LOOK_S)
        try:
            found, answered = handle.status(), time.monotonic()
        except ClusterError:
            if time.monotonic() - answered > UNREACHABLE_S:
                raise
    return found


def _places() -> list[tuple[str, Mapping[str, str]]]:
    """Every target that has a name, or that a job was submitted to, with the options that say where its jobs are."""
    from ovi_ray.submission.journal import Journal
    from ovi_ray.submission.targets import target_names

    places: list[tuple[str, Mapping[str, str]]] = [(name, {}) for name in target_names()]
    places += [(entry.target, entry.options) for entry in Journal().entries()]
    return [place for number, place in enumerate(places) if place not in places[:number]]


def _progress_of_all(found: list[JobStatus]) -> list[JobProgress | None]:
    """Progress of each job; None for one that does not run, or whose output folder cannot be read from here."""
    with ThreadPoolExecutor(_READERS) as pool:  # a store that is away takes half a minute to say so
        return list(pool.map(_progress_of, found))


def _progress_of(job: JobStatus) -> JobProgress | None:
    if job.state is not JobState.RUNNING or not job.output_dir:
        return None
    with suppress(OSError, ValueError):
        return read_progress(to_location(job.output_dir), since=job.submitted_at)
    return None


def _show(found: list[JobStatus], progress: list[JobProgress | None], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "state", "clips", "left", "target", "submitted", "restarts", "output"):
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "state", "clips"))
    for job, known in zip(found, progress, strict=True):
        clips = f"{known.done + known.failed:,}/{known.clips:,}" if known else ""
        left = format_remaining(known.remaining) if known else ""
        place = (job.target, job.submitted_at, str(job.restarts), job.output_dir)
        table.add_row(job.job_id, job.state, clips, left, *place)
    console.print(table)
