"""One driver at a time on an output location, and never two for longer than a heartbeat.

On one machine a dead driver's claim is free at once. One of another machine is taken for alive until it was silent for
`claims.STALE_S`; whoever waits for that sees within seconds whether it is.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ovi_ray.errors import OutputInUse
from ovi_ray.output.lease import STALE_S, Claim, FileClaim, Sighting, StoreClaim, refusal
from ovi_ray.storage.paths import Location

HEARTBEAT_S = 5.0
WATCH_S = 1.0  # between two looks at a claim whose owner may be dead

Tell = Callable[[str], None]


class OutputLock:
    """A held lock."""

    def __init__(self, claim: Claim, on_lost: Callable[[], None]) -> None:
        self.is_lost = False
        """Another driver has taken the location over, because this one was silent for too long."""
        self._claim = claim
        self._on_lost = on_lost
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="output-lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Let the next driver in."""
        self._released.set()
        self._heart.join()
        with suppress(OSError):  # storage that cannot be reached: the claim grows stale
            self._claim.release()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(OSError):  # storage that cannot be reached: it beats when that is back
                if not self._claim.beat():
                    self.is_lost = True
                    self._on_lost()
                    return


@contextmanager
def output_lock(
    output_dir: Location, *, on_lost: Callable[[], None] = lambda: None, tell: Tell = lambda text: None
) -> Iterator[OutputLock]:
    """Hold an output location for the time of a job. Raises OutputInUse when another driver has it, and OSError.

    Waits, and says so with `tell`, for a driver of another machine that may be dead. `on_lost` is called, from another
    thread, when such a driver took this one for dead.
    """
    lock = OutputLock(_taken(output_dir, tell), on_lost)
    try:
        yield lock
    finally:
        lock.release()


def _taken(output_dir: Location, tell: Tell) -> Claim:
    """A claim that is held, once no driver elsewhere shows a sign of life."""
    first: Sighting | None = None
    while True:
        claim: Claim = FileClaim(output_dir) if isinstance(output_dir, Path) else StoreClaim(output_dir)
        try:
            seen = claim.take()
        except BaseException:
            claim.release()
            raise
        if seen is None:
            return claim
        claim.release()
        if first is None:
            first = seen
            tell(
                f"{seen.owner} has used {output_dir}: waiting up to {STALE_S - seen.silent_s:.0f} s to see if it is alive"
            )
        elif (seen.owner, seen.beat_at) != (first.owner, first.beat_at):
            raise OutputInUse(refusal(str(output_dir), seen.owner))
        time.sleep(WATCH_S)
