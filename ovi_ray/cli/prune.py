"""`ovi-ray prune`: remove the clips of an output folder that its list does not ask for any more."""

import json
from typing import Annotated

import typer
from rich.prompt import Confirm
from rich.text import Text

from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, location
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.printing import Console, counted
from ovi_ray.storage.diagnostics import usable


@with_display_options
def prune(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job: a path or a URI.")],
    display: DisplayOptions,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking. [default: off]")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as JSON on standard output. [default: off]")
    ] = False,
) -> None:
    """Remove the superseded clips of an output folder: finished ones that the list of its last run does not ask for.

    Their videos, stills, latents and rows are removed. Nothing is, where the question is answered with no.

    Examples:

        ovi-ray prune out

        ovi-ray prune out --yes --json
    """
    with command_console(display) as console:
        folder = location(out, "OUT")
        from ovi_ray.output.lock import output_lock
        from ovi_ray.output.pruning import prune as remove
        from ovi_ray.output.pruning import superseded_clips

        with usable(folder):
            superseded_clips(folder)  # before anything is written there: it may be no output folder
            with output_lock(folder, tell=lambda text: console.print(text, soft_wrap=True)):
                clips = superseded_clips(folder)
                count = counted(len(clips), "superseded clip")
                stars = f", {clips.starred} of them starred," if clips.starred else ""
                question = f"Remove {count} ({clips.bytes / 1e6:.1f} MB){stars} from {folder}?"
                removes = bool(len(clips)) and (yes or _is_wanted(question, console))
                if removes:
                    remove(folder, clips)
        outcome = f"{count} removed" if removes else "nothing was removed" if len(clips) else "no clip is superseded"
        console.print(outcome, soft_wrap=True)
    if as_json:
        removed = len(clips) if removes else 0
        answer(
            json.dumps({"superseded": len(clips), "bytes": clips.bytes, "starred": clips.starred, "removed": removed})
        )
    raise typer.Exit(ExitCode.OK)


def _is_wanted(question: str, console: Console) -> bool:
    """The user's answer. Raises InputError where none can be given."""
    try:
        return Confirm.ask(Text(question), console=console, default=False)
    except EOFError:
        console.print()
        expected = "an answer on the terminal, or --yes"
        raise InputError([Problem(file=COMMAND_LINE, field="the answer", value="missing", expected=expected)]) from None
