"""Heartbeats of busy workers: their progress, and which of them stopped answering."""

import heapq
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ovi_ray.protocol.messages import Activity


@dataclass(kw_only=True, slots=True, frozen=True)
class _Pending:
    """A heartbeat request without an answer yet."""

    worker: str
    sent_at: float


class Heartbeats:
    """Asks busy workers for their progress, at most one request per worker at a time. Never blocks."""

    def __init__(
        self, *, interval_s: float, timeout_s: float, at_a_time: int = 100, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A worker is unresponsive when a request has had no answer for `timeout_s`.

        At most `at_a_time` workers are asked in an interval, those first that were asked longest ago: a request costs the
        driver half a millisecond, and the pictures of a thousand devices need not all be of this second.
        """
        self._interval_s = interval_s
        self._at_a_time = at_a_time
        self._timeout_s = timeout_s
        self._clock = clock
        self._pending: dict[ray.ObjectRef, _Pending] = {}
        self._activities: dict[str, Activity] = {}
        self._asked_at = float("-inf")
        self._asked_last: dict[str, float] = {}  # worker -> when it was asked

    def ask(self, busy: Mapping[str, Any]) -> None:
        """Collect answers and send the next requests to busy workers (name -> actor); does nothing until it is due."""
        now = self._clock()
        if now < self._asked_at + self._interval_s:
            return
        self._asked_at = now
        self._collect()
        answered = busy.keys() - {pending.worker for pending in self._pending.values()}
        for worker in heapq.nsmallest(
            self._at_a_time, answered, key=lambda name: self._asked_last.get(name, -math.inf)
        ):
            self._pending[busy[worker].activity.remote()] = _Pending(worker=worker, sent_at=now)
            self._asked_last[worker] = now

    def activity_of(self, workers: Set[str]) -> dict[str, Activity]:
        """The last progress that each of these workers reported."""
        return {worker: self._activities[worker] for worker in workers if worker in self._activities}

    def unresponsive(self) -> set[str]:
        """Workers whose answer is overdue."""
        overdue = self._clock() - self._timeout_s
        return {pending.worker for pending in self._pending.values() if pending.sent_at <= overdue}

    def forget(self, worker: str) -> None:
        """Drop the requests to a lost worker."""
        self._pending = {ref: pending for ref, pending in self._pending.items() if pending.worker != worker}
        self._activities.pop(worker, None)
        self._asked_last.pop(worker, None)

    def _collect(self) -> None:
        pending = list(self._pending)
        answered, _ = ray.wait(pending, num_returns=len(pending), timeout=0) if pending else ([], [])
        for ref in answered:
            worker = self._pending.pop(ref).worker
            try:
                self._activities[worker] = ray.get(ref)
            except RayError:
                continue  # the executor learns of a worker's death from its task
