"""The command line: `ovi-ray render`, `retry`, `plan`, `explain`, `doctor` and `weights`. It may import every other package.

Exit codes: 0 all is well, 1 some clips failed, 2 the input is wrong, 3 the cluster or the machine is,
130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import os

import typer

from ovi_ray.cli.doctor import doctor
from ovi_ray.cli.explain import explain
from ovi_ray.cli.plan import plan
from ovi_ray.cli.render import render
from ovi_ray.cli.retry import retry
from ovi_ray.cli.weights import weights

app = typer.Typer(
    help="Render lists of prompts into videos with sound, on all the GPUs there are.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(render)
app.command()(doctor)
app.command()(explain)
app.command()(plan)
app.command()(retry)
app.add_typer(weights, name="weights")


def main() -> None:
    """The program's entry point."""
    # Ray prints an essay about every worker that dies, to standard output, where the JSON belongs.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    app()


@app.callback()
def _program() -> None:
    """Render lists of prompts into videos with sound, on all the GPUs there are."""
