"""The production policy: comparative advantage in bulk, earliest finish in the tail.

It follows the dual prices of a linear program over the remaining work (what one more task costs the makespan, what a
device-second is worth), corrected by how full the queues are. Near the end it asks where a clip ends soonest.
"""

import math
from dataclasses import dataclass

import numpy as np

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.allocation_lp import AllocationSolution, FloatArray, solve_allocation
from ovi_ray.scheduling.policies.base import (
    Allocation,
    Candidate,
    Cluster,
    Decision,
    IdleWorker,
    Snapshot,
    device_totals,
)
from ovi_ray.scheduling.task import Reason

_NO_ADVANTAGE_KNOWN = 0.5  # for work that the program has no price for


@dataclass(kw_only=True, slots=True, frozen=True)
class Production:
    """Comparative advantage in bulk, earliest finish in the tail."""

    name: str = "production"
    swap_batch: int = 8
    """Tasks over which the cost of a swap is spread at most."""
    low_latents: float = 0.85
    """Weight of a decode when no latents wait; below 1, the queue fills before devices leave denoise."""
    latents_slope: float = 0.8
    """How fast that weight grows with the queue."""
    slack: float = 0.01
    """Share of the makespan by which a clip may end late before it is left to a faster device."""
    groups_per_doubling: int = 4
    """Groups of interchangeable workers for each factor of two in speed."""
    whole_clips_below: int = 4
    """Denoises left per worker below which their end is computed with whole clips instead of fractions."""

    def group(self, worker: IdleWorker) -> int:
        """Workers of a class are interchangeable while their speeds are similar."""
        return round(self.groups_per_doubling * math.log2(worker.factor))

    def allocate(self, cluster: Cluster) -> Allocation:
        """Advantages from the linear program, and the time by which the last denoise should have ended."""
        capacity, committed = device_totals(cluster)
        solution = solve_allocation(cluster.seconds, cluster.amounts, capacity, committed)
        busy = float(cluster.available_s.max(initial=0.0))
        last = max(solution.makespan_s, busy, _last_denoise(cluster, self.whole_clips_below))
        advantage = _advantages(cluster, capacity, solution)
        return Allocation(makespan_s=last, advantage=advantage, denoise_by_s=last * (1 + self.slack))

    def choose(self, snapshot: Snapshot, allocation: Allocation) -> Decision:
        """The best use of a device among the tasks that a faster device would not end earlier."""
        eligible = [c for c in snapshot.candidates if not self._ends_late(c, snapshot, allocation)]
        if not eligible:
            reason = Reason.FASTER_DEVICE_SOON if snapshot.candidates else Reason.NOTHING_READY
            return Decision(candidate=None, reason=reason)
        if len(eligible) == 1:
            return Decision(candidate=eligible[0], reason=_reason(eligible[0], snapshot, Reason.ONLY_WORK))
        best = min(eligible, key=lambda c: self._rank(c, snapshot, allocation))
        return Decision(candidate=best, reason=_reason(best, snapshot, Reason.BEST_USE))

    def _ends_late(self, c: Candidate, snapshot: Snapshot, allocation: Allocation) -> bool:
        seconds = c.swap_s + c.work_s
        if c.stage is Stage.DENOISE:
            return snapshot.since_plan_s + seconds > allocation.denoise_by_s
        if c.stage is Stage.DECODE and snapshot.since_plan_s + seconds > allocation.makespan_s:
            ends = snapshot.end_times(c.stage, c.kind)
            return len(ends) >= c.waiting and seconds > ends[c.waiting - 1] * (1 + self.slack)
        return False

    def _rank(
        self, c: Candidate, snapshot: Snapshot, allocation: Allocation
    ) -> tuple[bool, float, float, int, int, int]:
        use = allocation.advantage.get((c.device_class, c.stage, c.kind), _NO_ADVANTAGE_KNOWN)
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


def _advantages(
    cluster: Cluster, capacity: FloatArray, solution: AllocationSolution
) -> dict[tuple[int, Stage, int], float]:
    advantage = {}
    for device_class in np.flatnonzero(capacity).tolist():
        for j, (stage, kind) in enumerate(cluster.work_types):
            seconds = cluster.seconds[device_class, j]
            if math.isfinite(seconds):
                worth = solution.values[device_class] * seconds
                use = min(1.0, solution.prices[j] / worth) if worth > 0 else _NO_ADVANTAGE_KNOWN
                advantage[device_class, stage, kind] = use
    return advantage


def _last_denoise(cluster: Cluster, whole_clips_below: int) -> float:
    """The earliest time by which all denoises can have ended with whole clips; 0 while there are too many to matter."""
    types = [j for j, (stage, _) in enumerate(cluster.work_types) if stage is Stage.DENOISE and cluster.amounts[j] > 0]
    types = [j for j in types if np.isfinite(cluster.seconds[:, j]).any()]
    total = sum(cluster.amounts[j] for j in types)
    if not types or total > whole_clips_below * len(cluster.numbers):
        return 0.0
    free = cluster.available_s + cluster.load_s
    types.sort(key=lambda j: -float(np.min(cluster.seconds[:, j])))
    seconds = [cluster.seconds[cluster.classes, j] * cluster.factors for j in types]
    amounts = [float(cluster.amounts[j]) for j in types]
    low, high = 0.0, float(free.max() + sum(n * s.min() for n, s in zip(amounts, seconds, strict=True)))
    for _ in range(24):  # bisection to 1e-7 of the first bound
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
