"""Storage that is full, out of reach or gone: the job pauses instead of failing clips, and goes on when it is back.

There is one outage for the output folder, and one for each input whose storage is away as a whole. What ends an outage is a
probe that does what the work does: writing where the work writes, or asking for the file that the work reads.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ovi_ray.errors import OutputGone
from ovi_ray.output.folder_watch import FolderWatch
from ovi_ray.scheduling.events import TaskFailed
from ovi_ray.scheduling.task import FailureKind, Task
from ovi_ray.storage.diagnostics import away_reason, write_problem
from ovi_ray.storage.paths import Location, to_location


@dataclass(kw_only=True, slots=True, frozen=True)
class StoragePauseConfig:
    """Waiting times of a job that is paused by its storage."""

    probe_interval_s: float = 5.0
    """Seconds between two probes, and the first wait of a worker whose task failed; doubled for each failure in a row."""
    max_wait_s: float = 60.0
    """Longest wait of a worker before its task is tried again."""
    missing_s: float = 120.0
    """Seconds for which what is not there may be a share that is mounted again; after that it counts as removed. An input for
    which alone a store does not answer is waited for as long."""
    max_failures: int = 5
    """Failures of one task in a row, between which the probe succeeded, after which the task is at fault."""
    write_problem: Callable[[Location], str] = write_problem
    """Test write: the reason why a folder cannot be written to, or an empty string."""
    away_reason: Callable[[Location], str] = away_reason
    """The reason why the storage of an input is away as a whole, or an empty string."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Held:
    """A failure that the scheduler has not received yet, so that the worker counts as busy and gets no task."""

    event: TaskFailed
    until: float


@dataclass(kw_only=True, slots=True)
class _Outage:
    """Storage that is away since some time."""

    since: float
    what: str
    """Its name in messages: a path or URI."""
    missing_since: float | None = None
    """Since when it is not that it fails, but that it is not there."""
    is_given_up: bool = False
    """An input that was away for too long, on a disk or alone: what needs it fails."""
    held: list[_Held] = field(default_factory=list)


_OUTPUT = ""
"""Key of the outage of the output folder; the others are those of inputs, by path."""
_NEIGHBOUR = ".probe"
"""A file beside an input, which need not exist: a store that says so answers, and fails that input alone."""


class StoragePause:
    """Holds back task failures that storage caused until it works again."""

    def __init__(
        self,
        output_dir: Location,
        message: Callable[[str], None],
        config: StoragePauseConfig,
        *,
        token: str = "",
        write_rows: Callable[[], str] = lambda: "",
        on_begin: Callable[[str], None] = lambda reason: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`message` receives what the user should know: once when a pause begins, once when it ends.

        `on_begin` gets the reason when the first storage is away, `on_end` is called when none is. `token` is the folder's.
        `write_rows` writes the rows that wait and returns why that failed, or an empty string.
        """
        self._output_dir = output_dir
        self._message = message
        self._config = config
        self._write_rows = write_rows
        self._on_begin = on_begin
        self._on_end = on_end
        self._watch = FolderWatch(output_dir=output_dir, token=token, probe=config.write_problem)
        self._outages: dict[str, _Outage] = {}
        self._worker_failures: Counter[str] = Counter()  # in a row
        self._task_failures: Counter[Task] = Counter()  # in a row, while the storage worked
        self._probed_at = float("-inf")

    @property
    def output_is_missing(self) -> bool:
        """Whether there is no output folder now, or another one in its place: nothing may be written there."""
        return _OUTPUT in self._outages and self._outages[_OUTPUT].missing_since is not None

    def begin(self, reason: str, now: float) -> None:
        """The output failed. Does nothing during its pause."""
        self._begin(_OUTPUT, reason, now)

    def hold(self, event: TaskFailed, reason: str, now: float, *, input_path: str = "") -> None:
        """Hold back a task's failure, longer the more often its worker failed in a row.

        `input_path` is the input whose storage is away; without one it is the output.
        """
        outage = self._begin(input_path, reason, now)
        self._worker_failures[event.worker] += 1
        self._task_failures[_same(event.task)] += 1
        doublings = min(self._worker_failures[event.worker] - 1, 10)
        wait_s = min(self._config.max_wait_s, self._config.probe_interval_s * 2**doublings)
        outage.held.append(_Held(event=event, until=now + wait_s))

    def task_done(self, worker: str, task: Task) -> None:
        """A worker's task succeeded."""
        self._worker_failures.pop(worker, None)
        self._task_failures.pop(_same(task), None)

    def worker_lost(self, worker: str) -> None:
        """A worker is gone; its failures need not be reported any more."""
        for outage in self._outages.values():
            outage.held = [held for held in outage.held if held.event.worker != worker]

    def release(self, now: float) -> list[TaskFailed]:
        """The failures to report now; none of storage that does not work. Ends a pause when none of its failures is left.

        Raises OutputGone when the output folder was removed or replaced.
        """
        if now < self._probed_at + self._config.probe_interval_s:
            return []
        self._probed_at = now
        self._look_for_output(now)
        events: list[TaskFailed] = []
        for key, outage in list(self._outages.items()):
            if self._is_back(key, outage, now):
                events += self._released(key, outage, now)
        return events

    # -- the beginning and the end of an outage --------------------------------------------------------------------

    def _begin(self, key: str, reason: str, now: float) -> _Outage:
        if key not in self._outages:
            what = key or str(self._output_dir)
            verb = "read" if key else "written"
            self._outages[key] = _Outage(since=now, what=what)
            self._message(f"paused: {what}: {reason}; nothing is lost, and the job goes on when it can be {verb} again")
            if len(self._outages) == 1:
                self._on_begin(f"{what}: {reason}")
        return self._outages[key]

    def _released(self, key: str, outage: _Outage, now: float) -> list[TaskFailed]:
        if outage.is_given_up:
            self._end(key)
            return [replace(held.event, kind=FailureKind.BAD_INPUT) for held in outage.held]
        due = [self._charged(held.event) for held in outage.held if held.until <= now]
        outage.held = [held for held in outage.held if held.until > now]
        if not outage.held:
            self._end(key)
            self._message(f"resumed after {now - outage.since:.0f} s: {outage.what} works again")
        return due

    def _end(self, key: str) -> None:
        del self._outages[key]
        if not self._outages:
            self._on_end()

    def _charged(self, event: TaskFailed) -> TaskFailed:
        """The failure, which is the task's own if it came back again and again while everything else could be written."""
        if self._task_failures[_same(event.task)] < self._config.max_failures:
            return event
        return replace(event, kind=FailureKind.ERROR)

    # -- probes ----------------------------------------------------------------------------------------------------

    def _look_for_output(self, now: float) -> None:
        """Notice, on a clock, a folder on a disk that is not the job's any more, before anything is written into it."""
        if self._output_dir.is_local and _OUTPUT not in self._outages and (reason := self._missing()):
            self._begin(_OUTPUT, reason, now)

    def _is_back(self, key: str, outage: _Outage, now: float) -> bool:
        is_back = self._input_is_back(key, outage, now) if key else self._output_is_back(outage, now)
        if not is_back:
            self._task_failures.clear()  # it was the storage
        return is_back

    def _output_is_back(self, outage: _Outage, now: float) -> bool:
        if reason := self._missing():
            outage.missing_since = now if outage.missing_since is None else outage.missing_since
            if now - outage.missing_since >= self._config.missing_s:
                raise OutputGone(
                    f"{self._output_dir}: {reason}, for {now - outage.missing_since:.0f} s. It was removed or replaced while"
                    " the job rendered into it; the same command renders what is missing"
                )
            return False
        outage.missing_since = None
        return not (self._watch.write_problem() or self._write_rows())

    def _missing(self) -> str:
        try:
            return self._watch.missing()
        except OSError:  # it fails; the test write says how
            return ""

    def _input_is_back(self, key: str, outage: _Outage, now: float) -> bool:
        """Whether the storage of an input answers, or has not for so long, while the rest of it does, that it is given up."""
        path = to_location(key)
        if not self._config.away_reason(path):
            return True
        is_late = now - outage.since >= self._config.missing_s
        outage.is_given_up = is_late and (path.is_local or self._is_away_alone(path))
        return outage.is_given_up

    def _is_away_alone(self, path: Location) -> bool:
        """Whether a store answers for the neighbour of a file, and then not for the file."""
        away_reason = self._config.away_reason
        return not away_reason(path.with_name(_NEIGHBOUR)) and bool(away_reason(path))


def _same(task: Task) -> Task:
    """The same for every attempt at the same work."""
    return replace(task, attempt=1)
