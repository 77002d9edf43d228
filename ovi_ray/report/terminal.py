"""Progress of a job on a terminal: a live panel, or plain lines where output is redirected."""

from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ovi.stages import STAGES
from ovi_ray.printing import Console, counted
from ovi_ray.protocol.observer import JobObserver
from ovi_ray.protocol.progress import ClipEnded, JobSnapshot, RunningTask
from ovi_ray.report.durations import format_duration, format_remaining
from ovi_ray.report.work_text import work_text
from ovi_ray.scheduling.progress import Progress
from ovi_ray.scheduling.task import ClipStatus

PLAIN_INTERVAL_S = 30.0
MAX_WORKERS_SHOWN = 16


class ProgressDisplay(JobObserver):
    """Shows a job for the time of a `with` block. The panel disappears at its end; messages and failed clips stay."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        shows = console.is_terminal and not quiet
        self._live = Live(console=console, refresh_per_second=4, transient=True) if shows else None
        self._plain_at = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._live.update(Text("starting workers ..."))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str) -> None:
        """Print a message, in quiet mode too."""
        self._console.print(text, style="yellow", soft_wrap=True)

    def progress(self, snapshot: JobSnapshot) -> None:
        """Update the panel, or print a line if the last one is a while ago."""
        for clip in snapshot.ended:
            if clip.status is ClipStatus.FAILED or (self._live is None and not self._quiet):
                style = "red" if clip.status is ClipStatus.FAILED else None
                self._console.print(_ended_line(clip), style=style, soft_wrap=True)
        if self._live is not None:
            self._live.update(_panel(snapshot))
        elif not self._quiet and snapshot.elapsed_s >= self._plain_at:
            self._plain_at = snapshot.elapsed_s + PLAIN_INTERVAL_S
            self._console.print(_headline(snapshot))


def _panel(snapshot: JobSnapshot) -> Group:
    progress = snapshot.progress
    bar = ProgressBar(total=max(1, progress.clips), completed=progress.done + progress.failed, width=40)
    return Group(_headline(snapshot), bar, Text(_stages(progress), style="dim"), _workers(snapshot))


def _headline(snapshot: JobSnapshot) -> Text:
    progress = snapshot.progress
    line = Text(f"{progress.done}/{counted(progress.clips, 'clip')}")
    if progress.failed:
        line.append(f", {progress.failed} failed", style="bold red")
    line.append(f"  elapsed {format_duration(snapshot.elapsed_s)}")
    return line.append(f"  left {format_remaining(snapshot.remaining)}")


def _stages(progress: Progress) -> str:
    parts = [
        f"{STAGES[stage].label} {state.done}/{state.total}" for stage, state in progress.stages.items() if state.total
    ]
    return "  ".join(parts)


def _workers(snapshot: JobSnapshot) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for worker, info in list(snapshot.workers.items())[:MAX_WORKERS_SHOWN]:
        done = work_text(snapshot.work[worker])
        table.add_row(worker, info.device, _doing(snapshot.running.get(worker)), f"done: {done}" if done else "")
    hidden = len(snapshot.workers) - MAX_WORKERS_SHOWN
    if hidden > 0:
        table.add_row("...", f"and {hidden} more", "", "")
    return table


def _doing(running: RunningTask | None) -> str:
    if running is None:
        return "idle"
    if not running.task.items:
        return "loading components"
    what = running.clip_id or f"{len(running.task.items)} {STAGES[running.task.stage].label}"
    if running.activity is None or not running.activity.done:
        return f"{running.task.stage} {what}"
    unit = STAGES[running.task.stage].progress_unit
    total = f"/{running.activity.total}" if running.activity.total else ""
    return f"{running.task.stage} {what}, {unit} {running.activity.done}{total}"


def _ended_line(clip: ClipEnded) -> str:
    if clip.status is ClipStatus.FAILED:
        return f"failed  {clip.clip_id}  {clip.place}: {clip.error}"
    return f"done    {clip.video_path}  {clip.place}"
