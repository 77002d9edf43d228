"""Stopping a job safely: asked once, it saves what is running; asked twice, it ends now. Pure but for the signals.

Ctrl-C: everything that runs is finished or saved, however long that takes. SIGTERM, which Slurm, Kubernetes and spot
machines send: the same within a grace period, because SIGKILL follows.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERM_GRACE_S = 20.0  # Kubernetes and Slurm wait 30 s before they kill


class Stop:
    """A request to stop: signals make it, the driver looks at it."""

    def __init__(self) -> None:
        self.reason = ""
        """Who asked; empty while nobody has."""
        self.deadline = math.inf
        """When everything must be saved, on the monotonic clock."""
        self.is_watched = False
        """Whether a driver looks at it now; while none does, a signal ends the program at once."""
        self._listen: Callable[[], object] = lambda: None

    @property
    def is_asked(self) -> bool:
        """Whether the job is to stop."""
        return bool(self.reason)

    def ask(self, reason: str, grace_s: float = math.inf) -> None:
        """Ask for a stop, with at most `grace_s` to save what is running."""
        self.reason = reason
        self.deadline = time.monotonic() + grace_s

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A driver looks at it for the time of the block."""
        self._listen()  # again: Ray has put a handler of its own for SIGTERM in place when it started
        self.is_watched = True
        try:
            yield
        finally:
            self.is_watched = False

    def listen_with(self, listen: Callable[[], object]) -> None:
        """Have `listen` called whenever a driver begins to look."""
        self._listen = listen


@contextmanager
def stop_on_signals(stop: Stop, *, grace_s: float = TERM_GRACE_S) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a request, and any further one into a KeyboardInterrupt.

    `grace_s` is what SIGTERM leaves. Only the main thread may call it, as with every signal handler.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_asked or not stop.is_watched:
            stop.reason = stop.reason or signal.Signals(number).name
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name, math.inf if number == signal.SIGINT else grace_s)

    def listen() -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    before = listen()
    stop.listen_with(listen)
    try:
        yield
    finally:
        stop.listen_with(lambda: None)
        for number, handler in before.items():
            signal.signal(number, handler)
