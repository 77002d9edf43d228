"""The production policy: comparative advantage in bulk, earliest finish in the tail.

It follows the prices of a linear program over the remaining work (what one more task costs the makespan, what a
device-second is worth), corrected by how full the queues are; near the end it asks where a clip ends soonest.
"""

import math
from dataclasses import dataclass

import numpy as np

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.allocation_lp import FloatArray, balance
from ovi_ray.scheduling.policies.base import (
    Candidate,
    Cluster,
    Decision,
    Plan,
    Snapshot,
    Worker,
    device_totals,
)
from ovi_ray.scheduling.task import Reason


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
        return not c.urgent, -use, c.swap_s + c.work_s, STAGES[c.stage].order, c.kind, c.worker


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
