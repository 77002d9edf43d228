"""The command line: a module for each command of `ovi-ray`, or for several that belong together.

May import every other package.
"""

import os
import platform
import signal
from types import FrameType
from typing import Annotated

import typer

from ovi_ray import __version__
from ovi_ray.answers import answer
from ovi_ray.cli.common import EXIT_CODE_HELP, ExitCode
from ovi_ray.cli.compare import compare
from ovi_ray.cli.doctor import doctor
from ovi_ray.cli.explain import explain
from ovi_ray.cli.export import export
from ovi_ray.cli.faults import Command, Program, StoppedBySignal
from ovi_ray.cli.init import init
from ovi_ray.cli.job import job
from ovi_ray.cli.jobs import jobs, logs, status, stop, wait
from ovi_ray.cli.plan import plan
from ovi_ray.cli.prune import prune
from ovi_ray.cli.render import render
from ovi_ray.cli.retry import retry
from ovi_ray.cli.serve import serve
from ovi_ray.cli.submit import submit
from ovi_ray.cli.weights import weights
from ovi_ray.runtime.shutdown import end_process, hang_up_signals

app = typer.Typer(
    cls=Program,
    help="Render lists of prompts into videos with sound, on all the GPUs there are.",
    epilog=EXIT_CODE_HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(
        init,
        render,
        retry,
        prune,
        plan,
        compare,
        submit,
        jobs,
        status,
        logs,
        stop,
        wait,
        serve,
        explain,
        export,
        doctor,
    ),
):
    app.command(cls=Command, epilog=EXIT_CODE_HELP)(command)
app.add_typer(job, name="job")
app.add_typer(weights, name="weights")


def main() -> None:
    """Run `ovi-ray`."""
    # Ray prints many lines about every worker that dies, to standard output, which is for JSON.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    for number in (signal.SIGTERM, *hang_up_signals()):
        signal.signal(number, _terminate)
    try:
        app(prog_name="ovi-ray")
    except SystemExit as ended:
        if ended.code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.HUNG_UP):
            end_process(int(ended.code))  # without waiting for threads that ask a store which does not answer
        raise


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM or SIGHUP outside of a running job: end with its exit code, after clean-up."""
    raise StoppedBySignal(number)


def _print_version(requested: bool) -> None:
    if requested:
        answer(f"ovi-ray {__version__} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Render lists of prompts into videos with sound, on all the GPUs there are."""
