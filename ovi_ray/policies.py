"""Who gets what. A policy looks at a frozen snapshot and returns a decision with its reason. Pure, without state.

`Production` follows the prices of a linear program over the remaining work (what one more task costs the makespan, what
a device-second is worth), corrected by how full the queues are; near the end it asks where a clip ends soonest.
`StaticStriding` and `MeanSpeed` are what others do, for comparison.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ovi.stages import Stage
from ovi_ray.bounds import FloatArray, balance
from ovi_ray.events import Reason

_STAGE_RANK = {Stage.ENCODE_TEXT: 0, Stage.ENCODE_FIRST_FRAME: 1, Stage.DENOISE: 2, Stage.DECODE: 3}


class Candidate(NamedTuple):
    """Something that an idle worker could do now."""

    worker: int
    """Number of the worker; it stands for all idle workers like it."""
    device: int
    """Number of its class."""
    stage: Stage
    kind: int
    waiting: int
    """Tasks of this stage and kind that are ready."""
    work_s: float
    """Expected seconds of the work."""
    swap_s: float
    """Expected seconds of unloading and loading before it."""
    urgent: bool
    """Other devices will soon wait for its result."""
    denoises: int = 0
    """Begun by the worker since it joined."""
    owed: int = 0
    """Of these, how many more than it has decoded."""


class Worker(NamedTuple):
    """An idle worker as a policy sees it."""

    number: int
    factor: float
    """Times slower than its class."""
    denoises: int
    """Begun since it joined."""
    owed: int
    """Of these, how many more than it has decoded."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Cluster:
    """What a plan is made from."""

    jobs: tuple[tuple[Stage, int], ...]
    """(stage, kind) of what is left to start."""
    amounts: FloatArray
    """[jobs] tasks left to start."""
    seconds: FloatArray
    """[classes, jobs] expected seconds, infinite where a class cannot do it."""
    numbers: npt.NDArray[np.int64]
    """[workers]"""
    classes: npt.NDArray[np.int64]
    """[workers] class of each."""
    factors: FloatArray
    """[workers] times slower than its class."""
    available_s: FloatArray
    """[workers] seconds until each is free; 0 when idle."""
    load_s: FloatArray
    """[workers] seconds to load a transformer; 0 when it holds one."""
    denoises: int
    """Begun so far by all of them."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Plan:
    """What a policy works out now and then, for its choices until the next plan."""

    makespan_s: float
    """Expected seconds from the time of planning until the end."""
    advantage: dict[tuple[int, Stage, int], float] = field(default_factory=dict)
    """(class, stage, kind) -> how near the class's best use it is, 0 to 1."""
    quota: dict[int, int] = field(default_factory=dict)
    """Worker -> denoises that it may begin."""
    roles: dict[int, frozenset[Stage]] = field(default_factory=dict)
    """Worker -> stages that it may run."""
    denoise_by_s: float = math.inf
    """A denoise that would end later, counted from the time of planning, is better left to others."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Snapshot:
    """What a choice is made from."""

    since_plan_s: float
    candidates: tuple[Candidate, ...]
    latents_fill: float
    """Latents that wait for decode, over how many may wait."""
    others: Callable[[Stage, int], FloatArray]
    """Seconds in which each worker, after what it does now, would end one task of a stage and kind, ascending."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decision:
    """Which candidate runs, or that all of them wait."""

    candidate: Candidate | None
    reason: Reason


class Policy(Protocol):
    """What the scheduler asks of a policy."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def groups_follow_plan(self) -> bool:
        """Whether `group` may change with the plan."""
        ...

    def plan(self, cluster: Cluster) -> Plan:
        """Prepare for the choices to come."""
        ...

    def choose(self, snapshot: Snapshot, plan: Plan) -> Decision:
        """Pick one of the candidates, or none."""
        ...

    def group(self, worker: Worker, plan: Plan) -> int:
        """Idle workers of a class with equal numbers here are interchangeable."""
        ...


def device_totals(cluster: Cluster) -> tuple[FloatArray, FloatArray]:
    """[classes] devices' worth of speed, and device-seconds already given away."""
    classes = len(cluster.seconds)
    capacity, committed = np.zeros(classes), np.zeros(classes)
    np.add.at(capacity, cluster.classes, 1 / cluster.factors)
    np.add.at(committed, cluster.classes, cluster.available_s / cluster.factors)
    return capacity, committed


@dataclass(kw_only=True, slots=True, frozen=True)
class Production:
    """Comparative advantage in bulk, earliest finish in the tail."""

    name: str = "production"
    groups_follow_plan: bool = False
    swap_batch: int = 8
    """Tasks over which the cost of a swap is spread at most."""
    low_latents: float = 0.85
    """Weight of a decode when no latents wait; above 1 minus this the queue is being filled."""
    latents_slope: float = 0.8
    """How fast that weight grows with the queue."""
    slack: float = 0.01
    """Share of the makespan by which a clip may end late before it is left to a faster device."""

    def group(self, worker: Worker, plan: Plan) -> int:
        """Workers of a class are interchangeable while their speeds are."""
        return round(4 * math.log2(worker.factor))

    def plan(self, cluster: Cluster) -> Plan:
        """Prices from the linear program; the time by which the last denoise should have ended."""
        capacity, committed = device_totals(cluster)
        best = balance(cluster.seconds, cluster.amounts, capacity, committed)
        advantage = {}
        for device in np.flatnonzero(capacity).tolist():
            for j, (stage, kind) in enumerate(cluster.jobs):
                if not math.isfinite(cluster.seconds[device, j]):
                    continue
                worth = best.values[device] * cluster.seconds[device, j]
                advantage[device, stage, kind] = min(1.0, best.prices[j] / worth) if worth > 0 else 0.5
        busy = float(cluster.available_s.max(initial=0.0))
        last = max(best.makespan_s, busy, _last_denoise(cluster))
        return Plan(makespan_s=last, advantage=advantage, denoise_by_s=last * (1 + self.slack))

    def choose(self, snapshot: Snapshot, plan: Plan) -> Decision:
        """The best use of a device among what is not better left to a faster one."""
        eligible = [c for c in snapshot.candidates if not self._ends_late(c, snapshot, plan)]
        if not eligible:
            reason = Reason.FASTER_DEVICE_SOON if snapshot.candidates else Reason.NOTHING_READY
            return Decision(candidate=None, reason=reason)
        if len(eligible) == 1:
            return Decision(candidate=eligible[0], reason=_reason(eligible[0], snapshot, Reason.ONLY_WORK))
        best = min(eligible, key=lambda c: self._rank(c, snapshot, plan))
        return Decision(candidate=best, reason=_reason(best, snapshot, Reason.BEST_USE))

    def _ends_late(self, c: Candidate, snapshot: Snapshot, plan: Plan) -> bool:
        ends = c.swap_s + c.work_s
        if c.stage is Stage.DENOISE:
            return snapshot.since_plan_s + ends > plan.denoise_by_s
        if c.stage is Stage.DECODE and snapshot.since_plan_s + ends > plan.makespan_s:
            others = snapshot.others(c.stage, c.kind)
            return len(others) >= c.waiting and ends > others[c.waiting - 1] * (1 + self.slack)
        return False

    def _rank(self, c: Candidate, snapshot: Snapshot, plan: Plan) -> tuple[bool, float, float, int, int, int]:
        use = plan.advantage.get((c.device, c.stage, c.kind), 0.5)
        use *= c.work_s / (c.work_s + c.swap_s / min(c.waiting, self.swap_batch))
        if c.stage is Stage.DECODE:
            use *= self.low_latents + self.latents_slope * snapshot.latents_fill
        return not c.urgent, -use, c.swap_s + c.work_s, _STAGE_RANK[c.stage], c.kind, c.worker


def _reason(best: Candidate, snapshot: Snapshot, otherwise: Reason) -> Reason:
    if best.urgent:
        return Reason.FEEDS_DENOISE
    if best.stage is Stage.DECODE and snapshot.latents_fill >= 1:
        return Reason.DRAINS_LATENTS
    return otherwise


def _last_denoise(cluster: Cluster) -> float:
    """The earliest time by which all denoises can have ended when clips are not cut."""
    denoises = [j for j, (stage, _) in enumerate(cluster.jobs) if stage is Stage.DENOISE and cluster.amounts[j] > 0]
    denoises = [j for j in denoises if np.isfinite(cluster.seconds[:, j]).any()]
    total = sum(cluster.amounts[j] for j in denoises)
    if not denoises or total > 4 * len(cluster.numbers):
        return 0.0  # cutting or not cutting makes no difference yet
    free = cluster.available_s + cluster.load_s
    denoises.sort(key=lambda j: -float(np.min(cluster.seconds[:, j])))
    seconds = [cluster.seconds[cluster.classes, j] * cluster.factors for j in denoises]
    amounts = [float(cluster.amounts[j]) for j in denoises]
    low, high = 0.0, float(free.max() + sum(n * s.min() for n, s in zip(amounts, seconds, strict=True)))
    for _ in range(24):
        middle = (low + high) / 2
        if _all_fit(middle - free, seconds, amounts):
            high = middle
        else:
            low = middle
    return high


def _all_fit(left: FloatArray, seconds: list[FloatArray], amounts: list[float]) -> bool:
    """Whether whole clips fit into the seconds left on each worker: long clips first, on the fastest workers first."""
    left = left.copy()
    for each, amount in zip(seconds, amounts, strict=True):
        order = np.argsort(each, kind="stable")
        possible = np.maximum(np.floor(left[order] / each[order]), 0)
        possible[~np.isfinite(each[order])] = 0
        before = np.cumsum(possible) - possible
        taken = np.clip(amount - before, 0, possible)
        if taken.sum() < amount:
            return False
        left[order] -= taken * np.where(np.isfinite(each[order]), each[order], 0.0)
    return True


@dataclass(kw_only=True, slots=True, frozen=True)
class StaticStriding:
    """The published way: every rank that can run all the stages gets every n-th clip, and works through its own."""

    name: str = "static_striding"
    groups_follow_plan: bool = True

    def group(self, worker: Worker, plan: Plan) -> int:
        """Workers whose share is begun in full are alike."""
        return 2 * (worker.denoises < plan.quota.get(worker.number, 0)) + (worker.owed > 0)

    def plan(self, cluster: Cluster) -> Plan:
        """Equal shares for the workers that can run every stage."""
        jobs = np.flatnonzero(cluster.amounts > 0)
        able = np.isfinite(cluster.seconds[cluster.classes][:, jobs]).all(axis=1)
        whole = cluster.numbers[able if able.any() else slice(None)].tolist()
        left = sum(cluster.amounts[j] for j in jobs if cluster.jobs[j][0] is Stage.DENOISE)
        clips = int(left) + cluster.denoises
        quota = {number: clips // len(whole) + (i < clips % len(whole)) for i, number in enumerate(whole)}
        return Plan(makespan_s=0.0, quota=quota)

    def choose(self, snapshot: Snapshot, plan: Plan) -> Decision:
        """Decode what is denoised, then begin the next clip of the worker's own share."""
        return _first_allowed(snapshot, lambda c: self._is_own(c, plan))

    def _is_own(self, c: Candidate, plan: Plan) -> bool:
        if c.stage is Stage.DENOISE:
            return c.denoises < plan.quota.get(c.worker, 0)
        return c.worker in plan.quota and (c.stage is not Stage.DECODE or c.owed > 0)


@dataclass(kw_only=True, slots=True, frozen=True)
class MeanSpeed:
    """Stage pools sized by one mean speed per stage; within a pool, whoever is free takes the next task."""

    name: str = "mean_speed"
    groups_follow_plan: bool = True

    def group(self, worker: Worker, plan: Plan) -> int:
        """Workers of one role are alike."""
        return sum(1 << _STAGE_RANK[stage] for stage in plan.roles.get(worker.number, ()))

    def plan(self, cluster: Cluster) -> Plan:
        """Pools for denoise and for the rest, in proportion to the work at the mean speed of all devices."""
        work = dict.fromkeys(Stage, 0.0)
        denoisers = np.zeros(len(cluster.numbers), bool)
        for j, (stage, _) in enumerate(cluster.jobs):
            seconds = cluster.seconds[cluster.classes, j]
            able = np.isfinite(seconds)
            if able.any():
                work[stage] += float(seconds[able].mean() * cluster.amounts[j])
            if stage is Stage.DENOISE:
                denoisers |= able
        return Plan(makespan_s=0.0, roles=_pools(cluster.numbers, denoisers, work))

    def choose(self, snapshot: Snapshot, plan: Plan) -> Decision:
        """The first ready task of the worker's pool."""
        return _first_allowed(snapshot, lambda c: c.stage in plan.roles.get(c.worker, ()))


_NOT_DENOISE = frozenset(Stage) - {Stage.DENOISE}


def _pools(
    numbers: npt.NDArray[np.int64], denoisers: npt.NDArray[np.bool_], work: dict[Stage, float]
) -> dict[int, frozenset[Stage]]:
    total = sum(work.values()) or 1.0
    wanted = round(len(numbers) * (1 - work[Stage.DENOISE] / total))
    roles = dict.fromkeys(numbers[~denoisers].tolist(), _NOT_DENOISE)
    able = numbers[denoisers].tolist()
    if len(able) == 1:
        return roles | {able[0]: frozenset(Stage)}
    taken = max(0, max(wanted, 1) - len(roles))
    kept = able[: max(1, len(able) - taken)]
    roles |= dict.fromkeys(able[len(kept) :], _NOT_DENOISE)
    return roles | dict.fromkeys(kept, frozenset({Stage.DENOISE}))


def _first_allowed(snapshot: Snapshot, allowed: Callable[[Candidate], bool]) -> Decision:
    eligible = [c for c in snapshot.candidates if allowed(c)]
    if not eligible:
        return Decision(candidate=None, reason=Reason.OWN_SHARE_DONE)
    best = min(eligible, key=lambda c: (not c.urgent, -_STAGE_RANK[c.stage], c.kind, c.worker))
    return Decision(candidate=best, reason=Reason.ONLY_WORK)
