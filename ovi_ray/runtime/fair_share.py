"""Shares a Ray cluster between the jobs on it, by their priorities.

Each driver writes a record into a table on the cluster's head and reads those of the others. All compute the same shares from
the same records, so nobody has to decide. The record of a driver that Ray knows has ended does not count, and neither does
one that does not change any more: its driver is out of reach, or died unnoticed.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import ray
from ray._private.state import state
from ray.experimental import internal_kv

from ovi_ray.runtime.cluster_watch import UNREACHABLE
from ovi_ray.runtime.head_calls import HeadCalls

_NAMESPACE = "ovi-ray-jobs"
_PRIORITY_OF_DOUBLE_SHARE = 100


class Table(Protocol):
    """Texts under keys, the same for all drivers of a cluster. Methods raise what Ray raises when the head does not answer."""

    def put(self, key: str, text: str) -> None:
        """Write a record."""

    def read(self) -> Mapping[str, str]:
        """All records."""

    def remove(self, key: str) -> None:
        """Remove a record; a missing one is no error."""


class HeadTable:
    """The table in the key-value store of Ray's head, which forgets it when it ends."""

    def __init__(self, calls: HeadCalls | None = None) -> None:
        self._calls = calls or HeadCalls()

    def put(self, key: str, text: str) -> None:
        """See Table."""
        self._calls(lambda: internal_kv._internal_kv_put(key, text, namespace=_NAMESPACE))

    def read(self) -> Mapping[str, str]:
        """See Table."""
        return self._calls(_records)

    def remove(self, key: str) -> None:
        """See Table."""
        self._calls(lambda: internal_kv._internal_kv_del(key, namespace=_NAMESPACE))


def _records() -> dict[str, str]:
    keys: list[bytes] = internal_kv._internal_kv_list("", namespace=_NAMESPACE)
    found = {key: internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys}
    return {key.decode(): text.decode() for key, text in found.items() if text is not None}


@dataclass(kw_only=True, slots=True, frozen=True)
class Demand:
    """Devices that a job would use now if it were alone."""

    priority: int
    workers: Mapping[str, int]
    """By the kind of device that each occupies."""
    driver: str = ""
    """Ray's id of the driver's job; empty in the records of older versions."""


def this_driver() -> str:
    """Ray's id of the job of this process."""
    return ray.get_runtime_context().get_job_id()


def ended_drivers() -> Set[str]:
    """Ray's ids of the jobs whose drivers have ended, killed ones too; none where Ray does not tell, as to its clients."""
    try:
        return frozenset(job["JobID"] for job in state.job_table() if job["IsDead"])
    except UNREACHABLE:
        return frozenset()


class FairShare:
    """The share of one job. Publishes its demand, and computes what it may have beside the others."""

    def __init__(
        self,
        *,
        priority: int,
        table: Table | None = None,
        devices: Callable[[], Mapping[str, int]],
        driver: str = "",
        ended: Callable[[], Set[str]] = frozenset,
        interval_s: float = 2.0,
        silent_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`devices` counts those of the cluster by kind. A record that has not changed for `silent_s` does not count.

        `driver` is what the others know this one by, and `ended` returns those that are gone.
        """
        self._priority = priority
        self._table = table or HeadTable()
        self._devices = devices
        self._driver = driver
        self._ended = ended
        self._interval_s = interval_s
        self._silent_s = silent_s
        self._clock = clock
        self._key = uuid4().hex
        self._beat = 0
        self._asked_at = float("-inf")
        self._seen: dict[str, tuple[str, float]] = {}  # key -> the record, and when it was first read

    def allowed(self, workers: Mapping[str, int]) -> dict[str, float] | None:
        """The job's share of workers, by kind of device, when it has use for these; infinite where it is alone.

        None before it is due, and while the head does not answer.
        """
        now = self._clock()
        if now < self._asked_at + self._interval_s:
            return None
        self._asked_at = now
        self._beat += 1
        record = {
            "priority": self._priority,
            "workers": dict(workers),
            "driver": self._driver,
            "beat": self._beat,
        }
        try:
            self._table.put(self._key, json.dumps(record))
            others, devices = self._others(now), self._devices()
        except UNREACHABLE:
            return None
        if not others:
            return dict.fromkeys(workers, math.inf)
        demands = {**others, self._key: Demand(priority=self._priority, workers=workers)}
        return {kind: shares(devices.get(kind, 0), demands, kind)[self._key] for kind in workers}

    def leave(self) -> None:
        """Take the record back."""
        with suppress(*UNREACHABLE):
            self._table.remove(self._key)

    def _others(self, now: float) -> dict[str, Demand]:
        records = {key: text for key, text in self._table.read().items() if key != self._key}
        self._seen = {key: self._seen.get(key, ("", now)) for key in records}
        for key, text in records.items():
            if self._seen[key][0] != text:
                self._seen[key] = (text, now)
        demands = {key: _parsed(text) for key, text in records.items()}
        ended = self._ended() if records else frozenset()
        gone = {key for key, (_, since) in self._seen.items() if now >= since + self._silent_s}
        gone |= {key for key, demand in demands.items() if demand is not None and demand.driver in ended}
        for key in gone:
            self._table.remove(key)
        return {key: demand for key, demand in demands.items() if demand is not None and key not in gone}


def shares(devices: int, demands: Mapping[str, Demand], kind: str) -> dict[str, int]:
    """Workers of each job: one for each while there are enough, the rest in proportion to the priorities.

    100 more of priority are twice the share. What one job does not need goes to the others.
    """
    wanted = {key: demand.workers.get(kind, 0) for key, demand in demands.items()}
    weights = {key: 2.0 ** (demand.priority / _PRIORITY_OF_DOUBLE_SHARE) for key, demand in demands.items()}
    given = dict.fromkeys(demands, 0)

    def order(key: str) -> tuple[bool, float, float, str]:
        return given[key] > 0, (given[key] + 1) / weights[key], -weights[key], key

    for _ in range(min(devices, sum(wanted.values()))):
        given[min((key for key in demands if given[key] < wanted[key]), key=order)] += 1
    return given


def _parsed(text: str) -> Demand | None:
    """A record of another driver; None for one of another version."""
    with suppress(ValueError):
        record: Any = json.loads(text)
        match record:
            case {"priority": int(priority), "workers": dict(workers)} if all(
                isinstance(n, int) for n in workers.values()
            ):
                return Demand(priority=priority, workers=workers, driver=str(record.get("driver", "")))
    return None
