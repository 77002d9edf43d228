"""Runs a checked job from the command line: progress display, signals, summary, exit codes."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, StoppedExit
from ovi_ray.cli.faults import faults_of_job, given_arguments
from ovi_ray.errors import HeadLost, InputError, JobStopped, Problem, hide_passwords
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.shard import Shard
from ovi_ray.output.job_files import REJECTED
from ovi_ray.printing import Console, counted, shell_command
from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals
from ovi_ray.storage.paths import Location

if TYPE_CHECKING:
    from ovi_ray.preparation import PreparedJob
    from ovi_ray.protocol.observer import JobObserver
    from ovi_ray.rendering import JobResult

_STOPPED_BY = {"SIGTERM": ExitCode.TERMINATED, "SIGHUP": ExitCode.HUNG_UP}


def run_job(
    prepared: "PreparedJob",
    console: Console,
    *,
    explain: bool,
    quiet: bool,
    options: dict[str, Any],
    metrics: str | None = None,
    notify: str | None = None,
    part: Shard | None = None,
) -> "JobResult":
    """Render a checked job; `options` are fields of `RenderOptions`, `explain` prints every decision.

    `metrics` is the address of a server for Prometheus, which the `part` of a job moves; `notify` is a URL that is told how the
    job goes. Raises InputError.
    """
    from ovi_ray.protocol.observer import Observers
    from ovi_ray.rendering import RenderOptions, render
    from ovi_ray.report.decisions import DecisionPrinter
    from ovi_ray.report.terminal import ProgressDisplay

    stop = StopRequest()
    output_dir = prepared.job.output_dir
    with (
        faults_of_job(output_dir),
        _stoppable(stop, console, prepared.job),
        ProgressDisplay(console, quiet=quiet) as display,
        _watchers(prepared.job, display.message, metrics=metrics, notify=notify, part=part) as watchers,
    ):
        for note in (*prepared.job.notes, *prepared.manifest.notes):
            display.message(f"note: {note}")
        observers: list[JobObserver] = [display, *([DecisionPrinter(console)] if explain else []), *watchers]
        result = render(prepared, options=RenderOptions(**options), stop=stop, observer=Observers(observers))
    _summarise(result, prepared.job, console)
    return result


def report_end(result: "JobResult", output_dir: Location, *, as_json: bool) -> NoReturn:
    """The end of a command that rendered. Raises typer.Exit."""
    if as_json:
        answer(json.dumps({**asdict(result), "output_dir": str(output_dir)}))
    raise typer.Exit(ExitCode.FAILED if result.failed or result.unreadable else ExitCode.OK)


def check_watchers(metrics: str | None, notify: str | None) -> None:
    """Raises InputError for addresses that `run_job` would refuse, before anything else is read."""
    from ovi_ray.report.metrics import host_and_port
    from ovi_ray.report.notification import check_url

    problems: list[Problem] = []
    for address, check in ((metrics, host_and_port), (notify, check_url)):
        try:
            if address is not None:
                check(address)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


@contextmanager
def _watchers(
    job: JobSpec, message: Callable[[str], None], *, metrics: str | None, notify: str | None, part: Shard | None
) -> "Iterator[list[JobObserver]]":
    """The observers that tell other programs how the job goes. Raises InputError."""
    with ExitStack() as open_watchers:
        watchers: list[JobObserver] = []
        if metrics is not None:
            from ovi_ray.report.metrics import address_of_part, metrics_server

            address = metrics if part is None else address_of_part(metrics, part.part)
            watchers.append(open_watchers.enter_context(metrics_server(address)))
        if notify is not None:
            from ovi_ray.report.notification import Notifier

            title = job.prompts.stem if job.prompts is not None else "one prompt"
            notifier = Notifier(notify, job=title, output_dir=str(job.output_dir), message=message)
            watchers.append(open_watchers.enter_context(notifier))
        yield watchers


def _summarise(result: "JobResult", job: JobSpec, console: Console) -> None:
    counts = {
        "finished before": result.finished_before,
        "left": result.left,
        "failed": result.failed,
        "with notes": result.noted,
        "with a video that cannot be read": result.unreadable,
        "superseded": result.superseded,
    }
    parts = [f"{result.done} rendered", *(f"{count} {what}" for what, count in counts.items() if count)]
    if result.bad_rows:
        parts.append(f"{counted(result.bad_rows, 'bad row')} in {REJECTED}")
    line = f"{counted(result.clips, 'clip')}: {', '.join(parts)}, in {result.seconds:.0f} s"
    console.print(line, style="bold red" if result.failed or result.unreadable else "bold green")
    console.print(f"videos {job.output_dir / 'videos'}  report {job.output_dir / 'report.html'}", soft_wrap=True)
    if result.failed:
        console.print(
            f"Fix the causes above, then run: {shell_command('ovi-ray', 'retry', job.output_dir)}",
            soft_wrap=True,
        )


@contextmanager
def _stoppable(stop: StopRequest, console: Console, job: JobSpec) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP stop the job; finished clips and checkpoints are kept. Raises StoppedExit.

    What goes on with a job whose cluster has lost its head is added to its error.
    """
    try:
        with stop_on_signals(stop):
            yield
    except HeadLost as error:
        command = hide_passwords(shell_command("ovi-ray", *given_arguments.get()))
        raise HeadLost(
            f"{error}. They are in {job.output_dir}; once a cluster is up again, the same submission goes on from there, or"
            f" this command: {command}"
        ) from error
    except (KeyboardInterrupt, JobStopped):
        message = f"stopped; finished clips are in {job.output_dir}, and the same command continues from there"
        console.print(message, style="yellow", soft_wrap=True)
        code = _STOPPED_BY.get(stop.reason, ExitCode.INTERRUPTED)
        raise StoppedExit(code, message, job.output_dir) from None
