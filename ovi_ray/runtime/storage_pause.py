"""Storage that is full or out of reach: told from other failures, waited for, never the clip's fault. Pure but for a probe."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi_ray.scheduling.events import Event
from ovi_ray.storage.diagnostics import write_problem
from ovi_ray.storage.paths import Location

PROBE_S = 5.0
MAX_REST_S = 60.0


@dataclass(kw_only=True, slots=True, frozen=True)
class _Held:
    event: Event
    worker: str
    until: float


class StoragePause:
    """Holds back the failures of tasks that storage failed, so that their workers rest, until it can be written again."""

    def __init__(self, folder: Location, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell
        self._held: list[_Held] = []
        self._in_a_row: dict[str, int] = {}
        self._since: float | None = None
        self._probed_at = float("-inf")

    def note(self, why: str, now: float) -> None:
        """Storage failed. Told once a pause."""
        if self._since is None:
            self._since = now
            self._tell(f"paused: {self._folder}: {why}; nothing is lost, and it goes on when that is mended")

    def hold(self, event: Event, worker: str, why: str, now: float) -> None:
        """Keep back the failure of a worker's task; the worker rests longer the more of them there are in a row."""
        self.note(why, now)
        times = self._in_a_row[worker] = self._in_a_row.get(worker, 0) + 1
        self._held.append(
            _Held(event=event, worker=worker, until=now + min(MAX_REST_S, PROBE_S * 2 ** min(times - 1, 10)))
        )

    def worked(self, worker: str) -> None:
        """A worker's task ended well."""
        self._in_a_row.pop(worker, None)

    def lost(self, worker: str) -> None:
        """A worker is gone, and with it what was held back of it."""
        self._held = [held for held in self._held if held.worker != worker]

    def release(self, now: float) -> list[Event]:
        """What need not be held back any longer."""
        if self._since is None or now < self._probed_at + PROBE_S:
            return []
        self._probed_at = now
        if write_problem(self._folder):
            return []
        events = [held.event for held in self._held if held.until <= now]
        self._held = [held for held in self._held if held.until > now]
        if not self._held:
            self._tell(f"goes on after {now - self._since:.0f} s: {self._folder} can be written again")
            self._since = None
        return events
