"""Deadlines that a loaded machine can keep.

A test polls for a condition and never asserts by the clock. A deadline here only ends a test that hangs, so it is minutes
long; `OVI_RAY_TEST_PATIENCE=3` makes every deadline three times as long.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SCALE = float(os.environ.get("OVI_RAY_TEST_PATIENCE", "1"))
PATIENCE_S = 900.0 * SCALE
"""Seconds for anything that one test waits for: a process, a worker, a server."""


def wait_until(
    condition: Callable[[], T],
    *,
    give_up: Callable[[], str] = lambda: "",
    timeout_s: float = PATIENCE_S,
    every_s: float = 0.02,
) -> T:
    """The first true value of `condition`.

    Raises AssertionError with the reason that `give_up` returns, once it returns one (it is asked only while the condition is
    false), and TimeoutError after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if reason := give_up():
            if value := condition():  # it became true in between
                return value
            raise AssertionError(reason)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s")
        time.sleep(every_s)


def under_load(seconds: float) -> float:
    """A time limit of the product, longer by as much as this machine is overloaded now.

    For limits that a test must wait out, such as the silence of a frozen worker: short on an idle machine, and on a busy one
    still longer than a healthy worker needs.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * max(1.0, 2 * load) * SCALE
