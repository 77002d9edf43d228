"""The outermost layer of the program: how it ends when an error escapes that no part of it raises on purpose."""

import contextlib
import functools
import json
import logging
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
import typer
import typer.core

from ovi.errors import OviError
from ovi_ray import __version__
from ovi_ray.answers import answer, answers, kept_for_answers
from ovi_ray.cli.common import ExitCode, StoppedExit
from ovi_ray.cli.console import message_console
from ovi_ray.errors import HeadLost, InputError, JobStopped, OviRayError, StorageUnavailable, hide_passwords
from ovi_ray.logs import MESSAGES, RUN_LOG, run_log
from ovi_ray.printing import shell_command
from ovi_ray.report_address import report_address
from ovi_ray.runtime.shutdown import end_process
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location

FAULT_LOG = "faults.log"
"""In the user's folder for state: where a fault is recorded that belongs to no job."""

given_arguments: ContextVar[tuple[str, ...]] = ContextVar("given_arguments", default=())
"""The arguments of the command that runs, as they were typed."""


class JobFault(Exception):
    """Carries an unexpected error, its cause, out of a job, with the job's output folder."""

    def __init__(self, output_dir: Location) -> None:
        super().__init__(output_dir)
        self.output_dir = output_dir


class StoppedBySignal(SystemExit):
    """SIGTERM or SIGHUP outside of a running job."""

    def __init__(self, number: int) -> None:
        self.exit_code = ExitCode.TERMINATED if number == signal.SIGTERM else ExitCode.HUNG_UP
        super().__init__(self.exit_code)
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self._name}"


class Command(typer.core.TyperCommand):
    """A command, which prints nothing but answers on standard output."""

    def invoke(self, ctx: Any) -> Any:
        """See typer."""
        with kept_for_answers():
            return super().invoke(ctx)


class Program(typer.core.TyperGroup):
    """The group of all commands. An error that escapes from one ends with ExitCode.FAULT, a message and a log."""

    def main(self, args: Sequence[str] | None = None, *other: Any, **options: Any) -> Any:
        """See typer. Raises SystemExit."""
        words = list(sys.argv[1:] if args is None else args)
        given_arguments.set(tuple(words))
        try:
            with contextlib.redirect_stdout(answers()):  # for help and the version
                return super().main(words, *other, **options)
        except SystemExit as end:
            if not isinstance(cause := end.__context__, BrokenPipeError):
                _report_end(end, words)
                raise
            if not _reader_has_left():
                sys.exit(report_fault(cause, words))
            _drop_output()
            sys.exit(ExitCode.BROKEN_PIPE)
        except HeadLost as error:
            code = report_error(error, words)
            answers().flush()
            # At an orderly end Ray would wait for its head, and end the process with a code of its own.
            end_process(code)
        except (OviRayError, OviError) as error:
            sys.exit(report_error(error, words))
        except Exception as error:
            sys.exit(report_fault(error, words))

    def invoke(self, ctx: Any) -> Any:
        """See typer, which takes an EOFError for an end of input at a question."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"unexpected end of a file: {error}") from error


@contextlib.contextmanager
def faults_of_job(output_dir: Location) -> Iterator[None]:
    """Name the job in whose log an unexpected error of the block belongs."""
    try:
        yield
    except (OviRayError, OviError, typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        raise JobFault(output_dir) from error


def _report_end(end: SystemExit, arguments: Sequence[str]) -> None:
    """With --json, tell a program of a command that ended early: by its options, or by a signal."""
    cause = end.__context__
    if isinstance(end, StoppedBySignal):
        _print_json(end.exit_code, JobStopped.__name__, str(end), arguments)
    elif isinstance(cause, StoppedExit):
        place = {"output_dir": str(cause.output_dir)}
        _print_json(ExitCode(cause.exit_code), JobStopped.__name__, cause.message, arguments, **place)
    elif isinstance(cause, typer.Exit) and isinstance(cause.__cause__, KeyboardInterrupt):
        _print_json(ExitCode.INTERRUPTED, JobStopped.__name__, "stopped by Ctrl-C", arguments)
    elif cause is not None and hasattr(cause, "format_message"):  # typer's: of options that cannot be read
        _print_json(ExitCode.BAD_INPUT, "UsageError", cause.format_message(), arguments)


def report_error(error: OviRayError | OviError, arguments: Sequence[str]) -> ExitCode:
    """Tell the user of an error that is raised on purpose: on standard error, with --json on standard output too."""
    message = _of_store(error) if isinstance(error, StorageUnavailable) else str(error)
    message_console().print(message, style="red", soft_wrap=True)
    problems = [asdict(problem) for problem in error.problems] if isinstance(error, InputError) else None
    code = ExitCode.of(error)
    _print_json(code, type(error).__name__, message, arguments, problems=problems)
    return code


def _of_store(error: StorageUnavailable) -> str:
    """The reason in plain words, where it is known, with the place that the error begins with."""
    place, _, said = str(error).partition(": ")
    reason = plain_reason(error)
    return f"{place}: {reason}" if said and reason not in str(error) else str(error)


def report_fault(error: Exception, arguments: Sequence[str]) -> ExitCode:
    """Record an unexpected error and tell the user where: on standard error, with --json on standard output too."""
    output_dir = None
    if isinstance(error, JobFault) and isinstance(error.__cause__, Exception):
        output_dir, error = error.output_dir, error.__cause__
    command = hide_passwords(shell_command("ovi-ray", *arguments))
    trace = hide_passwords("".join(traceback.format_exception(error)))
    what = f"{type(error).__name__}: {hide_passwords(str(error))}".rstrip(": ")
    log = _record(f"fault in ovi-ray {__version__} while running {command}\n{trace}", output_dir)
    is_verbose = any(re.fullmatch(r"--verbose|-[a-z]*v[a-z]*", word) for word in arguments)
    _print_fault(what, command, output_dir, log, trace if is_verbose or log is None else "")
    place = {"log": log and str(log), "report_to": report_address()}
    _print_json(ExitCode.FAULT, type(error).__name__, hide_passwords(str(error)), arguments, **place)
    return ExitCode.FAULT


def _print_json(code: ExitCode, name: str, message: str, arguments: Sequence[str], **details: Any) -> None:
    """With --json, an error for a program that reads standard output."""
    if "--json" in arguments:
        error = {"kind": code.name.lower(), "type": name, "message": message, **details}
        answer(json.dumps({"error": {key: value for key, value in error.items() if value is not None}}))


def _print_fault(what: str, command: str, output_dir: Location | None, log: Path | None, trace: str) -> None:
    console = message_console()
    if trace:
        console.print(trace, style="dim", soft_wrap=True)
    place = f"the log {log}" if log else "the lines above"
    lines = [f"{what}", f"This is a fault in ovi-ray, met while running: {command}"]
    if output_dir is not None:
        lines.append(f"Finished clips are kept in {output_dir}, and the same command continues from there.")
    lines.append(f"Please report it to {report_address()}, with {place}.")
    console.print("\n".join(lines), style="red", soft_wrap=True)


def _record(text: str, output_dir: Location | None) -> Path | None:
    """Append to the job's log, or else to a file of the user's; the path, or None if nothing can be written."""
    folder = None if output_dir is None else output_dir.local_path
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError), run_log(folder):
            logging.getLogger(MESSAGES).critical("%s", text)
            return folder / RUN_LOG
    try:
        log = platformdirs.user_state_path("ovi-ray", ensure_exists=True) / FAULT_LOG
        with log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {text}\n")
    except OSError:
        return None
    return log


# -- standard output whose reader has left ---------------------------------------------------------------------------


def _reader_has_left() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more, or rich has met one and put /dev/null there."""
    poll = select.poll()
    for stream in (answers(), sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream without a file
            if os.path.sameopenfile(stream.fileno(), _devnull()):
                return True
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@functools.cache
def _devnull() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def _drop_output() -> None:
    """Keep Python from writing, as it ends, what is left of standard output."""
    for stream in (answers(), sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(_devnull(), stream.fileno())
