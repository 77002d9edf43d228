"""Storage that is full or unreachable: the job pauses instead of failing clips, and resumes when a write succeeds again."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi_ray.scheduling.events import Event
from ovi_ray.storage.diagnostics import write_problem
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class StoragePauseConfig:
    """How a paused job waits for its storage."""

    probe_interval_s: float = 5.0
    """Seconds between two test writes, and the first wait of a worker whose task failed; doubled for each failure in a row."""
    max_wait_s: float = 60.0
    """Longest wait of a worker before its task is tried again."""
    write_problem: Callable[[Location], str] = write_problem
    """Test write: the reason why a folder cannot be written to, or an empty string."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Held:
    """A failure that the scheduler has not received yet, so that the worker counts as busy and gets no task."""

    event: Event
    worker: str
    until: float


class StoragePause:
    """Holds back task failures that storage caused until it can be written to again."""

    def __init__(self, folder: Location, message: Callable[[str], None], config: StoragePauseConfig) -> None:
        """`message` receives what the user should know: once when a pause begins, once when it ends."""
        self._folder = folder
        self._message = message
        self._config = config
        self._held: list[_Held] = []
        self._failures_in_a_row: dict[str, int] = {}
        self._since: float | None = None
        self._probed_at = float("-inf")

    def begin(self, reason: str, now: float) -> None:
        """Storage failed. Does nothing during a pause."""
        if self._since is None:
            self._since = now
            self._message(
                f"paused: {self._folder}: {reason}; nothing is lost, and the job resumes when it can be written again"
            )

    def hold(self, event: Event, worker: str, reason: str, now: float) -> None:
        """Hold back the failure of a worker's task, longer the more often the worker failed in a row."""
        self.begin(reason, now)
        failures = self._failures_in_a_row[worker] = self._failures_in_a_row.get(worker, 0) + 1
        wait_s = min(self._config.max_wait_s, self._config.probe_interval_s * 2 ** min(failures - 1, 10))
        self._held.append(_Held(event=event, worker=worker, until=now + wait_s))

    def task_done(self, worker: str) -> None:
        """A worker's task succeeded."""
        self._failures_in_a_row.pop(worker, None)

    def worker_lost(self, worker: str) -> None:
        """A worker is gone; its failures need not be reported any more."""
        self._held = [held for held in self._held if held.worker != worker]

    def release(self, now: float) -> list[Event]:
        """The failures to report now; none while storage cannot be written to. Ends the pause when none is left."""
        if self._since is None or now < self._probed_at + self._config.probe_interval_s:
            return []
        self._probed_at = now
        if self._config.write_problem(self._folder):
            return []
        events = [held.event for held in self._held if held.until <= now]
        self._held = [held for held in self._held if held.until > now]
        if not self._held:
            self._message(f"resumed after {now - self._since:.0f} s: {self._folder} can be written again")
            self._since = None
        return events
