"""What the commands share: reading a job, and plain errors with their exit codes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from ovi.errors import OviError
from ovi_ray.errors import InputError, OutputError, OviRayError, Problem, show
from ovi_ray.inputs.job_spec import COMMAND_LINE, JobSpec
from ovi_ray.storage.paths import Location, to_location

PLACE = "PATH|URI"
EXIT_FAILED_CLIPS = 1
EXIT_BAD_INPUT = 2
EXIT_CLUSTER = 3
EXIT_INTERRUPTED = 130


def read_job(prompts: str, options: Mapping[str, Any]) -> JobSpec:
    """A job file with the options over it, or a job of the options alone. Raises InputError.

    A text with spaces that is no file is a prompt.
    """
    path = location(prompts, "PROMPTS")
    if path.suffix.lower() in (".yaml", ".yml"):
        return JobSpec.from_yaml(path, options)
    is_prompt = " " in prompts.strip() and path.is_local and not _exists(path)
    source = {"text_prompt": prompts} if is_prompt else {"prompts": prompts}
    return JobSpec.from_options(**source, **options)


def location(given: str, option: str) -> Location:
    """The path or URI that an option names. Raises InputError for a URI that cannot be used."""
    try:
        return to_location(given)
    except ValueError as error:
        problem = Problem(file=COMMAND_LINE, field=option, value=show(given), expected=str(error))
        raise InputError([problem]) from None


@contextmanager
def plain_errors(console: Console) -> Iterator[None]:
    """Errors that are raised on purpose become a message and an exit code; any other keeps its traceback."""
    try:
        yield
    except (OviRayError, OviError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(
            EXIT_BAD_INPUT if isinstance(error, InputError | OutputError | OviError) else EXIT_CLUSTER
        ) from None


def _exists(path: Location) -> bool:
    try:
        return path.exists()
    except OSError:  # a prompt longer than a path can be
        return False
