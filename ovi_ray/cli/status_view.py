"""The output of `ovi-ray status`: the state of a job and, as far as its output folder can be read, its progress."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ovi_ray.answers import answer
from ovi_ray.errors import ClusterError
from ovi_ray.output.progress_file import PROGRESS, JobProgress, progress_json, read_progress
from ovi_ray.printing import Console
from ovi_ray.report.progress_text import device_table, headline, problem_lines, progress_lines
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import to_location
from ovi_ray.submission.handles import Handle
from ovi_ray.submission.states import JobState, JobStatus

LOOK_S = 2.0
_FACTS = ("job_id", "state", "target", "native_id", "submitted_at", "exit_code", "message", "restarts")


@dataclass(kw_only=True, slots=True, frozen=True)
class _Look:
    """State and progress of a job at one moment."""

    status: JobStatus
    progress: JobProgress | None
    unreadable: str = ""
    """Why the output folder cannot be read from here."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self.status), "progress": progress_json(self.progress)})


def show_status(handle: Handle, console: Console, *, as_json: bool) -> None:
    """Print the state of a job once, on standard output; why its progress is unknown, on the console."""
    look = _look(handle)
    if look.unreadable:
        console.print(look.unreadable, style="yellow", soft_wrap=True)
    if as_json:
        answer(look.as_json())
    else:
        Console().print(_view(look), soft_wrap=True)


def watch_status(handle: Handle, console: Console, *, as_json: bool) -> None:
    """Show the state of a job until it is over. Raises KeyboardInterrupt."""
    output = Console()
    if as_json or not output.is_terminal:
        for look in _changes(handle, console):
            answer(look.as_json() if as_json else _line(look))
        return
    with Live(console=output, auto_refresh=False) as live:
        for look in _changes(handle, console):
            live.update(_view(look), refresh=True)


def _changes(handle: Handle, console: Console) -> Iterator[_Look]:
    """A look each time that something has changed, until the job is over. A target that does not answer is asked again."""
    last, complaint = None, ""
    while True:
        try:
            look = _look(handle)
        except (ClusterError, OSError) as error:
            if last is None:
                raise
            if str(error) != complaint:
                complaint = str(error)
                console.print(f"no answer: {complaint}; asking again", style="yellow", soft_wrap=True)
        else:
            if look != last:
                yield look
            if look.status.state.is_over:
                return
            last, complaint = look, ""
        time.sleep(LOOK_S)


def _look(handle: Handle) -> _Look:
    status = handle.status()
    if not status.output_dir:
        return _Look(status=status, progress=None)
    try:
        folder = to_location(status.output_dir)
        # until its driver has begun, a job that continues in a folder has none of its own
        progress = read_progress(folder, since="" if status.state.is_over else status.submitted_at)
        if progress is None and (folder / PROGRESS).exists():
            found = f"{folder / PROGRESS} is not of this version of ovi-ray, so that the counts of clips are not known"
            return _Look(status=status, progress=None, unreadable=found)
        if progress is not None and status.state is not JobState.RUNNING:
            progress = progress.at_rest()
        return _Look(status=status, progress=progress)
    except (OSError, ValueError) as error:
        reason = plain_reason(error) if isinstance(error, OSError) else str(error)
        return _Look(status=status, progress=None, unreadable=f"{status.output_dir} cannot be read here: {reason}")


def _view(look: _Look) -> Group:
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    known = asdict(look.status)
    for name in _FACTS:
        if known[name] not in (None, "", 0) or (name == "exit_code" and known[name] == 0):
            facts.add_row(name, str(known[name]))
    if look.status.output_dir and look.status.output_dir != look.status.target:
        facts.add_row("output_dir", look.status.output_dir)
    parts: list[Table | Text] = [facts]
    if (progress := look.progress) is not None:
        for name, text in progress_lines(progress, lives=look.status.state is JobState.RUNNING):
            facts.add_row(name, text)
        devices = device_table(progress) if look.status.state is JobState.RUNNING else None
        parts += [devices] if devices is not None else []
        parts += problem_lines(progress)
    return Group(*parts)


def _line(look: _Look) -> str:
    return f"{look.status.state}  {headline(look.progress)}" if look.progress else str(look.status.state)
