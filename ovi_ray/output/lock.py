"""One driver at a time in an output folder, which notices within a heartbeat when its lease was taken over.

On one machine the lease of a dead driver is free at once. A driver on another machine counts as alive until
`LeaseConfig.stale_s` have passed without a renewal; a driver that waits for that sees within seconds whether it is.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ovi_ray.errors import OutputInUse
from ovi_ray.output.lease import Lease, LeaseConfig, Sighting, in_use_message, lease_of
from ovi_ray.storage.paths import Location, PathOrUri, to_location

Tell = Callable[[str], None]


class OutputLock:
    """A lease that is held, and renewed by a thread."""

    def __init__(self, lease: Lease, config: LeaseConfig, on_lost: Callable[[], None]) -> None:
        self.is_lost = False
        """Another driver has taken the folder over, because this one did not renew the lease for too long."""
        self._lease = lease
        self._config = config
        self._on_lost = on_lost
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="output-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the next driver in."""
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # storage that cannot be reached: the lease grows stale
            self._lease.release()

    def _keep(self) -> None:
        while not self._released.wait(self._config.heartbeat_s):
            with suppress(OSError):  # storage that cannot be reached: renewed when it is back
                if not self._lease.renew():
                    self.is_lost = True
                    self._on_lost()
                    return


@contextmanager
def output_lock(
    output_dir: PathOrUri,
    *,
    on_lost: Callable[[], None] = lambda: None,
    tell: Tell = lambda text: None,
    config: LeaseConfig | None = None,
) -> Iterator[OutputLock]:
    """Hold an output folder for the time of a job. Raises OutputInUse when another driver has it, and OSError.

    Waits, and says so with `tell`, for a driver on another machine that may be dead. `on_lost` is called from another
    thread when such a driver took this one for dead.
    """
    config = config or LeaseConfig()
    lock = OutputLock(_acquired(to_location(output_dir), tell, config), config, on_lost)
    try:
        yield lock
    finally:
        lock.release()


def _acquired(output_dir: Location, tell: Tell, config: LeaseConfig) -> Lease:
    """A lease that is held, once no other driver shows a sign of life."""
    first: Sighting | None = None
    seen_at = time.monotonic()
    while True:
        lease = lease_of(output_dir, config)
        was_watched = first is not None and time.monotonic() >= seen_at + config.stale_s
        try:
            seen = lease.acquire(dead=first.version if first is not None and was_watched else "")
        except BaseException:
            lease.release()
            raise
        if seen is None:
            return lease
        lease.release()
        if first is None:
            first, seen_at = seen, time.monotonic()
            wait_s = config.stale_s - max(0.0, seen.silent_s)  # negative where the clock was set back
            tell(f"{seen.owner} has used {output_dir}: waiting up to {wait_s:.0f} s to see if it is alive")
        elif (seen.owner, seen.version) != (first.owner, first.version):
            raise OutputInUse(in_use_message(str(output_dir), seen.owner, config))
        time.sleep(config.watch_s)
