"""Shared by the commands: exit codes, error reporting, logging options, job loading."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import typer

from ovi.errors import OviError
from ovi_ray.cli.console import message_console
from ovi_ray.cli.options import DisplayOptions
from ovi_ray.errors import (
    COMMAND_LINE,
    InputError,
    JobStopped,
    OutputError,
    OviRayError,
    Problem,
    show,
    show_path,
)
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.path_checks import neighbours
from ovi_ray.inputs.prompt_or_path import Meaning, meaning_of
from ovi_ray.inputs.text_files import readable_problem
from ovi_ray.logs import configure_logging
from ovi_ray.printing import Console, is_utf8
from ovi_ray.storage.paths import Location, to_location

_Spec = TypeVar("_Spec", bound=BatchSpec)


class ExitCode(IntEnum):
    """Exit codes; the same numbers in every command."""

    OK = 0
    FAILED = 1
    """Some clips of the job failed, or `explain --verify` found a difference."""
    BAD_INPUT = 2
    """The options, the job file, the prompts, the weights or the output folder cannot be used."""
    UNAVAILABLE = 3
    """The cluster, its workers or the storage cannot be used."""
    FAULT = 70
    """An error that nothing raises on purpose: a fault in ovi-ray (EX_SOFTWARE of sysexits.h)."""
    HUNG_UP = 129
    """Stopped by SIGHUP, when the terminal was closed (128 + SIGHUP)."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C (128 + SIGINT)."""
    BROKEN_PIPE = 141
    """The reader of the output has left, as `| head` does (128 + SIGPIPE)."""
    TERMINATED = 143
    """Stopped by SIGTERM (128 + SIGTERM)."""

    @classmethod
    def of(cls, error: OviRayError | OviError) -> "ExitCode":
        """The code of a command that ends with this error."""
        match error:
            case InputError() | OutputError() | OviError():
                return cls.BAD_INPUT
            case JobStopped():
                return cls.INTERRUPTED
            case _:
                return cls.UNAVAILABLE


class StoppedExit(typer.Exit):
    """The end of a command whose job was stopped by a signal, as far as it was."""

    def __init__(self, code: ExitCode, message: str, output_dir: Location) -> None:
        super().__init__(code)
        self.message = message
        self.output_dir = output_dir


EXIT_CODE_HELP = (
    "Exit codes: 0 success; 1 some clips failed; 2 the input or the output folder cannot be used; "
    "3 the cluster or the storage cannot be used; 70 a fault in ovi-ray; 129 stopped because the terminal was closed; "
    "130 stopped by Ctrl-C; 141 the reader of the output left; 143 stopped by SIGTERM."
)


@contextmanager
def command_console(display: DisplayOptions) -> Iterator[Console]:
    """The console for messages (standard error), with logging set up. Errors are reported by `ovi_ray.cli.faults`."""
    console = message_console()
    configure_logging(display.level, console)
    _check_working_folder()
    yield console


def _check_working_folder() -> None:
    """Raises InputError for a working folder in which no path can be named."""
    try:
        folder = str(Path.cwd())
    except OSError as error:  # it was removed
        found = f"a working folder without a path ({error.strerror})"
    else:
        if is_utf8(folder):
            return
        found = f"the working folder {show_path(folder)}"
    raise InputError([Problem(file=COMMAND_LINE, value=found, expected="a working folder whose path is UTF-8")])


def read_job(spec: type[_Spec], prompts: str | None, options: Mapping[str, Any]) -> _Spec:
    """A job from a job file with the options over it, or from the options alone. Raises InputError.

    `prompts` is a job file or a prompt list; a text that reads as prose is a prompt. The option `prompt` always is one.
    """
    if prompts is None:
        return spec.from_options(**options)
    if options.get("prompt") is None and meaning_of(prompts, to_location(Path.cwd())) is Meaning.PROMPT:
        return spec.from_options(**{**options, "prompt": prompts})
    path = location(prompts, "PROMPTS")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return spec.from_options(prompts=prompts, **options)
    if (found := readable_problem(path)) is not None:
        expected = f"a job file that can be read{neighbours(path)}"
        raise InputError([Problem(file=str(path), value=found, expected=expected)])
    return spec.from_yaml(path, options)


def unused(options: Mapping[str, Any], reason: str) -> list[Problem]:
    """A problem for each of the options, by name (None or false: not given), which have no use for this `reason`."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return [
        Problem(
            file=COMMAND_LINE,
            field=name,
            value="given" if value is True else show(str(value)),
            expected=f"no {name} {reason}",
        )
        for name, value in given.items()
    ]


def refuse(problems: Sequence[Problem]) -> None:
    """Raises InputError where there are problems."""
    if problems:
        raise InputError(problems)


def location(given: str, option: str) -> Location:
    """The path or URI that an option names. Raises InputError for a URI that cannot be used."""
    try:
        return to_location(given)
    except ValueError as error:
        problem = Problem(file=COMMAND_LINE, field=option, value=show_path(given), expected=str(error))
        raise InputError([problem]) from None


def local_path(given: Path, option: str) -> Path:
    """The path on a disk that an option names. Raises InputError for a name that is not UTF-8."""
    location(str(given), option)
    return given
