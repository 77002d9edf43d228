"""Heartbeats of busy workers: their progress, which of them stopped answering, and which answer but hang."""

import heapq
import math
import time
from collections import Counter
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


@dataclass(kw_only=True, slots=True, frozen=True)
class StallConfig:
    """When a worker that answers counts as hanging."""

    first_s: float
    """Seconds without progress of a task that has not gone on yet, or is about to end."""
    next_s: float
    """The same between two steps; never less than `longest_times` the longest that this task has taken for one."""
    longest_times: float = 20.0
    answers: int = 10
    """Answers in a row that must say so: after the driver itself was held up, what it hears first is old."""


class Stalls:
    """The workers whose task does not go on although they answer, as a GPU whose kernel never ends."""

    def __init__(self, config: StallConfig) -> None:
        self._config = config
        self._answers: Counter[str] = Counter()

    def note(self, worker: str, activity: Activity) -> None:
        """A worker has answered."""
        if activity.quiet_s > self._limit_s(activity):
            self._answers[worker] += 1
        else:
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """A worker goes on, or is lost."""
        self._answers.pop(worker, None)

    def stalled(self) -> set[str]:
        """The workers that hang."""
        return {worker for worker, answers in self._answers.items() if answers >= self._config.answers}

    def _limit_s(self, activity: Activity) -> float:
        config = self._config
        if not 0 < activity.done < activity.total:
            return config.first_s
        return max(config.next_s, config.longest_times * activity.longest_quiet_s)


class Heartbeats:
    """Asks busy workers for their progress, at most one request per worker at a time. Never blocks."""

    def __init__(
        self,
        *,
        interval_s: float,
        timeout_s: float,
        stalls: StallConfig,
        at_a_time: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A worker is unresponsive when a request has had no answer for `timeout_s`.

        At most `at_a_time` workers are asked in an interval, those first that were asked longest ago: a request costs the
        driver half a millisecond, and the progress of a thousand devices need not all be of this second.
        """
        self._stalls = Stalls(stalls)
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

    def stalled(self) -> set[str]:
        """Workers that answer, and whose task does not go on."""
        return self._stalls.stalled()

    def forget(self, worker: str) -> None:
        """Drop the requests to a lost worker."""
        self._stalls.forget(worker)
        self._pending = {ref: pending for ref, pending in self._pending.items() if pending.worker != worker}
        self._activities.pop(worker, None)
        self._asked_last.pop(worker, None)

    def _collect(self) -> None:
        pending = list(self._pending)
        answered, _ = ray.wait(pending, num_returns=len(pending), timeout=0) if pending else ([], [])
        for ref in answered:
            worker = self._pending.pop(ref).worker
            try:
                activity = self._activities[worker] = ray.get(ref)
            except RayError:
                continue  # the executor learns of a worker's death from its task
            self._stalls.note(worker, activity)
