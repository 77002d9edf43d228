"""Writes something in the background now and then, so that slow storage never holds the driver up."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True, frozen=True)
class WriteInterval:
    """Interval at which something is written. Raises ValueError for a value out of range."""

    seconds: float
    """Shortest time between two writes."""
    share: float = 0.05
    """Largest share of the time that is spent on writing: slow writes become rarer."""

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds is {self.seconds!r}; expected 0 or more")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share!r}; expected more than 0, up to 1")


class BackgroundWriter:
    """Runs one write at a time on a thread of its own. A write that fails is reported once, and the next one is tried."""

    def __init__(self, name: str, interval: WriteInterval, on_problem: Callable[[OSError], None]) -> None:
        """`on_problem` is called on the thread that asks `is_due` or calls `close`."""
        self._name = name
        self._interval = interval
        self._on_problem = on_problem
        self._thread: threading.Thread | None = None
        self._due_at = float("-inf")
        self._problem: OSError | None = None
        self._has_told = False

    @property
    def is_due(self) -> bool:
        """Whether no write runs and the last one was a while ago."""
        if self._thread is not None and not self._thread.is_alive():
            self._finish()
        return self._thread is None and time.monotonic() >= self._due_at

    def start(self, write: Callable[[], None]) -> None:
        """Start a write; one that is due."""
        self._thread = threading.Thread(target=self._run, args=(write,), name=self._name, daemon=True)
        self._thread.start()

    def close(self, write: Callable[[], None] | None = None, timeout_s: float = 10.0) -> None:
        """Wait for the write that runs, and do a last one; storage that hangs is left alone."""
        if self._joined(timeout_s) and write is not None:
            self.start(write)
            self._joined(timeout_s)

    def _joined(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        self._thread = None
        if self._problem is not None and not self._has_told:
            self._has_told = True
            self._on_problem(self._problem)
        self._problem = None

    def _run(self, write: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            write()
        except OSError as error:
            self._problem = error
        ended = time.monotonic()
        self._due_at = ended + max(self._interval.seconds, (ended - started) / self._interval.share)
