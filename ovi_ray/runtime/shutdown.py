"""Requests to stop a job: the first one saves what is running, the second one ends the program at once.

Ctrl-C: running tasks are finished or saved, however long that takes. SIGTERM, which Slurm, Kubernetes and spot machines
send: the same within a grace period, because SIGKILL follows. SIGHUP, which a closed terminal sends: like SIGTERM, unless it
is ignored from the start (`nohup`).
"""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

TERM_GRACE_S = 20.0  # Kubernetes and Slurm wait 30 s before they kill
END_S = 1.5  # of an orderly end after the last signal
_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """Set by signals or another thread, read by the driver."""

    def __init__(self) -> None:
        self.reason = ""
        """The source of the request, such as "SIGTERM"; empty while there is none."""
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


def end_process(code: int) -> None:
    """End the process now, with the cursor shown that a progress display may have hidden."""
    with suppress(OSError, ValueError):  # nobody reads them any more
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")
        sys.stderr.flush()
    os._exit(code)


@contextmanager
def stop_on_signals(
    stop: StopRequest,
    *,
    grace_s: float = TERM_GRACE_S,
    end_s: float = END_S,
    end: Callable[[int], None] = end_process,
) -> Iterator[None]:
    """Turn the first of Ctrl-C, SIGTERM and SIGHUP into a request to stop, and a further one into a KeyboardInterrupt.

    A further SIGHUP is ignored: the shell and the kernel both send one when a terminal is closed.

    `grace_s` is the time that SIGTERM and SIGHUP leave. When the block has not ended `end_s` after the KeyboardInterrupt was
    due, `end` is called with the exit code. Call it on the main thread only, like all signal handling.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, *hang_up_signals())

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_asked and number == _HANG_UP:
            return
        if stop.is_asked or not stop.is_watched:
            stop.reason = stop.reason or signal.Signals(number).name
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name, math.inf if number == signal.SIGINT else grace_s)

    def install() -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, handle) for number in numbers}

    before = install()
    stop.on_watch(install)
    try:
        with _ended_in_time(numbers, lambda signals: signals > 1 or not stop.is_watched, end_s, end):
            yield
    finally:
        stop.on_watch(lambda: None)
        for number, handler in before.items():
            signal.signal(number, handler)


def hang_up_signals() -> tuple[signal.Signals, ...]:
    """The signal of a terminal that is closed; none where it is ignored, as nohup leaves it, and on Windows."""
    is_heard = _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN
    return (_HANG_UP,) if _HANG_UP is not None and is_heard else ()


@contextmanager
def _ended_in_time(
    numbers: Sequence[signal.Signals], is_last: Callable[[int], bool], end_s: float, end: Callable[[int], None]
) -> Iterator[None]:
    """Call `end` when the block goes on for `end_s` after the last signal; `is_last` says so of how many have arrived.

    Of `numbers`, SIGHUP counts only as the first.

    A handler runs between two steps of the main thread, which may wait for minutes within one: for the answer of a store,
    or for Ray. So a thread reads the signals as they arrive, from the socket that Python writes their numbers to.
    """
    arrived, arrives = socket.socketpair()
    arrives.setblocking(False)
    has_ended = threading.Event()

    def watch() -> None:
        signals = 0
        while number := arrived.recv(1):
            if number[0] not in numbers or (signals and number[0] == _HANG_UP):
                continue
            signals += 1
            if is_last(signals):
                if not has_ended.wait(end_s):
                    end(128 + number[0])
                return

    before = signal.set_wakeup_fd(arrives.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(before)
        arrives.close()
        thread.join()
        arrived.close()
