"""Requests to stop a job: the first one saves what is running, the second one ends the program at once.

Ctrl-C: running tasks are finished or saved, however long that takes. SIGTERM, which Slurm, Kubernetes and spot machines
send: the same within a grace period, because SIGKILL follows. SIGHUP, which a closed terminal sends: like SIGTERM, unless it
is ignored from the start (`nohup`).
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERM_GRACE_S = 20.0  # Kubernetes and Slurm wait 30 s before they kill


class StopRequest:
    """Set by signals or another thread, read by the driver."""

    def __init__(self) -> None:
        self.reason = ""
        """Who asked, such as "SIGTERM"; empty while nobody has."""
        self.deadline = math.inf
        """When running tasks must be saved, on the monotonic clock."""
        self.is_watched = False
        """Whether a driver reads the request now; while none does, a signal ends the program at once."""
        self._install_handlers: Callable[[], object] = lambda: None

    @property
    def is_asked(self) -> bool:
        """Whether the job should stop."""
        return bool(self.reason)

    @property
    def is_overdue(self) -> bool:
        """Whether the grace period is over."""
        return time.monotonic() >= self.deadline

    def ask(self, reason: str, grace_s: float = math.inf) -> None:
        """Ask the job to stop, with at most `grace_s` to save what is running."""
        self.reason = reason
        self.deadline = time.monotonic() + grace_s

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A driver reads the request for the time of the block."""
        self._install_handlers()  # again: Ray has replaced the handler for SIGTERM when it started
        self.is_watched = True
        try:
            yield
        finally:
            self.is_watched = False

    def on_watch(self, install_handlers: Callable[[], object]) -> None:
        """Have `install_handlers` called whenever a driver begins to read the request."""
        self._install_handlers = install_handlers


@contextmanager
def stop_on_signals(stop: StopRequest, *, grace_s: float = TERM_GRACE_S) -> Iterator[None]:
    """Turn the first of Ctrl-C, SIGTERM and SIGHUP into a request to stop, and any further one into a KeyboardInterrupt.

    `grace_s` is the time that SIGTERM and SIGHUP leave. Call it on the main thread only, like all signal handling.
    """

    is_hang_up_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = (signal.SIGINT, signal.SIGTERM, *(() if is_hang_up_ignored else (signal.SIGHUP,)))

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_asked or not stop.is_watched:
            stop.reason = stop.reason or signal.Signals(number).name
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name, math.inf if number == signal.SIGINT else grace_s)

    def install() -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, handle) for number in numbers}

    before = install()
    stop.on_watch(install)
    try:
        yield
    finally:
        stop.on_watch(lambda: None)
        for number, handler in before.items():
            signal.signal(number, handler)
