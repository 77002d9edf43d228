"""Notices that Ray's head does not answer any more, before Ray ends this process for it.

Ray ends a process that is connected to a cluster and cannot reach its head for a minute: in C++, so that no Python runs any
more, and with an exit code that would say that clips failed. The same happens to the nodes, and their workers go with them. A
head that is started again within that time, which takes a store of its own for its state, finds all as it was. So the job waits
for a good half of it, has saved what runs, which does not need the head, and ends by itself. What does need the head waits
within Ray until then, so nothing of the sort is begun while it is silent.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import ray

from ovi_ray.runtime.cluster_probe import CLIENT
from ovi_ray.runtime.shutdown import end_process

_UNAVAILABLE = 3  # the exit code of `ovi-ray` when its cluster cannot be used
_RECONNECT_VARIABLE, _RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
_LEAST_RECONNECT_S = 5.0  # within less, nothing can be saved


def reconnect_s() -> float:
    """Seconds without the head after which Ray ends a process; 5 if there are less."""
    with suppress(KeyError, ValueError):  # Ray itself refuses what is no whole number
        return max(_LEAST_RECONNECT_S, float(int(os.environ[_RECONNECT_VARIABLE])))
    return _RECONNECT_S


@dataclass(kw_only=True, slots=True, frozen=True)
class HeadConfig:
    """Reactions to a silent head, in seconds since it was first asked in vain.

    Raises ValueError for times that are out of order.
    """

    save_after_s: float = field(default_factory=lambda: 0.6 * reconnect_s())
    """Running work is saved, and the job ends."""
    save_s: float = field(default_factory=lambda: 0.2 * reconnect_s())
    """The longest that saving may take."""
    end_after_s: float = field(default_factory=lambda: 0.9 * reconnect_s())
    """The process is ended, whatever it does: the driver may be within a call to Ray that does not return."""
    interval_s: float = 1.0
    """Seconds between two looks."""
    answer_s: float = 1.0
    """Seconds for the head's port to accept a connection."""

    def __post_init__(self) -> None:
        if not 0 < self.interval_s <= self.save_after_s < self.save_after_s + self.save_s <= self.end_after_s:
            raise ValueError(
                f"save_after_s {self.save_after_s:g}, save_s {self.save_s:g}, end_after_s {self.end_after_s:g}; expected"
                " times in that order, the first of them not before interval_s"
            )


class HeadWatch:
    """Connects to the head's port, on a thread of its own and when it is asked."""

    def __init__(
        self,
        address: str,
        config: HeadConfig | None = None,
        *,
        on_overdue: Callable[[str], None] = lambda what: None,
        accepts: Callable[[str, float], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address` is HOST:PORT. `on_overdue` is called on the thread, with what has happened, after `end_after_s`."""
        self.address = address
        self.config = config or HeadConfig()
        self._on_overdue = on_overdue
        self._accepts = accepts or accepts_connections
        self._clock = clock
        self._silent_since: float | None = None  # when it was first asked in vain
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)
        self._thread.start()

    def answers(self) -> bool:
        """Whether the head accepts a connection now."""
        asked_at = self._clock()
        if self._accepts(self.address, self.config.answer_s):
            self._silent_since = None
            return True
        if self._silent_since is None:
            self._silent_since = asked_at
        return False

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer when it was asked last."""
        return self._silent_since is not None

    @property
    def silent_s(self) -> float:
        """Seconds since it was first asked in vain; 0 while it answers."""
        since = self._silent_since
        return 0.0 if since is None else self._clock() - since

    @property
    def is_lost(self) -> bool:
        """Whether it has been silent for too long to go on."""
        return self.silent_s >= self.config.save_after_s

    def __str__(self) -> str:
        return f"Ray's head at {self.address} has not answered for {self.silent_s:.0f} s: it died, or cannot be reached"

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self.config.interval_s):
            if not self.answers() and self.silent_s >= self.config.end_after_s:
                self._on_overdue(str(self))
                return


@contextmanager
def head_watch(address: str | None, config: HeadConfig) -> Iterator[HeadWatch]:
    """Watch the head of the cluster that Ray has joined at an address, or started, for the time of the block."""
    is_client = address is not None and address.startswith(CLIENT)
    head = address.removeprefix(CLIENT) if address and is_client else ray.get_runtime_context().gcs_address
    watch = HeadWatch(head, config, on_overdue=end_unsaved)
    try:
        yield watch
    finally:
        watch.close()


def end_unsaved(what: str) -> None:
    """End the process, which is within a call to Ray, before Ray does."""
    with suppress(OSError, ValueError):  # nobody reads it any more
        print(f"{what}. Finished clips are kept, and the same command continues from there.", file=sys.stderr)
    end_process(_UNAVAILABLE)


def accepts_connections(address: str, timeout_s: float) -> bool:
    """Whether a port accepts connections, as that of a process that lives does, however busy it is."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except OSError:
        return False
