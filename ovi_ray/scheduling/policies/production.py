"""The production policy: comparative advantage in bulk, projected ends in the tail.

It follows the dual prices of a linear program over the remaining work (what one more task costs the makespan, what a
device-second is worth), corrected by how full the queues are. When few tasks are left, the fractions of the program say
little: the rest of the job is projected with whole tasks, swaps included, for several targets, and a task that would
end too late for the best one is left to faster devices.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, Stage
from ovi_ray.scheduling.allocation_lp import AllocationSolution, FloatArray, solve_allocation
from ovi_ray.scheduling.policies.base import (
    Allocation,
    Candidate,
    Cluster,
    Decision,
    IdleWorker,
    Preferences,
    Snapshot,
    device_totals,
)
from ovi_ray.scheduling.policies.projection import (
    NO_ADVANTAGE_KNOWN,
    Projection,
    Rules,
    best_preferences,
    end_if_followed,
    order,
)
from ovi_ray.scheduling.task import Reason


@dataclass(kw_only=True, slots=True, frozen=True)
class Production:
    """Comparative advantage in bulk, projected ends in the tail."""

    name: str = "production"
    rules: Rules = field(default_factory=Rules)
    slack: float = 0.003
    """Share of the target by which a task may end late before it is left to a faster device."""
    sooner: float = 0.999
    """The allocation in force is followed further if it ends in less than this share of the time that a new one takes."""
    measurement_share: float = 0.1
    """Share of the time left that the first decode on a doubtful device may take."""
    groups_per_doubling: int = 4
    """Groups of interchangeable workers for each factor of two in speed."""
    projected_tasks: int = 400
    """Tasks of clips below which the end is projected."""
    projected_per_worker: int = 60
    """The same, for each worker."""
    projected_workers: int = 256
    """Workers up to which the end is projected: a projection takes time for each, and one of many matters little."""
    whole_clips_below: int = 4
    """Denoises left per worker below which, when there are too many to project, their end is computed with whole clips."""

    def group(self, worker: IdleWorker) -> int:
        """Workers of a class are interchangeable while their speeds are similar."""
        return round(self.groups_per_doubling * math.log2(worker.factor))

    def allocate(
        self, cluster: Cluster, in_force: Allocation | None = None, *, little_changed: bool = False
    ) -> Allocation:
        """Advantages from the linear program, and the end to aim for.

        In the tail, an allocation in force in which devices wait rather than load is followed further where it ends sooner than
        a new one: prices change while tasks start, and know nothing of loads, but to load after all would make the wait a loss.
        Once only decodes are left to start, each goes where it ends first anyway.
        """
        capacity, committed = device_totals(cluster)
        solution = solve_allocation(cluster.seconds, cluster.amounts, capacity, committed)
        advantage = _advantages(cluster, capacity, solution)
        fastest = cluster.seconds[cluster.classes].min(axis=0, initial=math.inf)
        fastest_s = dict(zip(cluster.work_types, fastest.tolist(), strict=True))
        wait_s = cluster.inputs_s + _longest(Stage.DENOISE, cluster, fastest_s)
        if self._is_tail(cluster):
            projection = Projection(cluster, advantage, self.rules, wait_s)
            near = in_force.preferences if in_force and little_changed else None
            preferences, end_s = best_preferences(projection, solution.makespan_s, near)
            if in_force and in_force.preferences.longest_swap_s < math.inf and not _only_decodes(cluster):
                as_before = Projection(cluster, in_force.advantage, self.rules, wait_s)
                followed, followed_s = end_if_followed(as_before, in_force.preferences)
                if followed_s < self.sooner * end_s:
                    preferences, end_s, advantage = followed, followed_s, dict(in_force.advantage)
        if not self._is_tail(cluster) or not math.isfinite(end_s):
            end_s = max(solution.makespan_s + _loads(cluster, solution), _last_denoise(cluster, self.whole_clips_below))
            preferences = Preferences(target_s=float(max(end_s, cluster.available_s.max(initial=0.0))), wait_s=wait_s)
        return Allocation(
            makespan_s=float(max(end_s, cluster.available_s.max(initial=0.0))),
            advantage=advantage,
            preferences=preferences,
            only_decodes=_only_decodes(cluster),
            fastest_s=fastest_s,
        )

    def _is_tail(self, cluster: Cluster) -> bool:
        tasks = sum(
            n
            for (stage, _), n in zip(cluster.work_types, cluster.amounts.tolist(), strict=True)
            if stage in CLIP_STAGES
        )
        workers = len(cluster.numbers)
        most = min(self.projected_tasks, self.projected_per_worker * workers)
        return workers <= self.projected_workers and 0 < tasks <= most

    def choose(self, snapshot: Snapshot, allocation: Allocation) -> Decision:
        """The best use of a device among the tasks that other devices would not end earlier."""
        ranked = sorted(snapshot.candidates, key=lambda c: self._rank(c, snapshot, allocation))
        reason = Reason.NOTHING_READY
        for c in ranked:
            if self._is_measurement(c, snapshot, allocation):
                return Decision(candidate=c, reason=Reason.MEASUREMENT)
            if self._is_worth_a_try(c, snapshot, allocation):
                return Decision(candidate=c, reason=Reason.TRIED)
            if self._is_poor(c, allocation):
                reason = Reason.BETTER_WORK_SOON
            elif self._is_for_others(c, snapshot, allocation):
                reason = Reason.FASTER_DEVICE_SOON
            else:
                return Decision(candidate=c, reason=_reason(c, snapshot, only=len(ranked) == 1))
        return Decision(candidate=None, reason=reason)

    def _is_poor(self, c: Candidate, allocation: Allocation) -> bool:
        if c.stage in INPUT_STAGES:
            return False
        advantage = allocation.advantage.get((c.device_class, c.stage, c.kind), NO_ADVANTAGE_KNOWN)
        return self.rules.is_poor(advantage, c.work_s, c.swap_s, allocation.preferences)

    def _is_measurement(self, c: Candidate, snapshot: Snapshot, allocation: Allocation) -> bool:
        """Whether a task tells what a doubtful device is worth, for a small part of its time."""
        if c.measured_doubt == 1.0:
            return False
        left_s = allocation.preferences.target_s - snapshot.since_plan_s
        return c.swap_s + c.work_s <= self.measurement_share * left_s and c.work_s * c.measured_doubt <= left_s

    def _is_worth_a_try(self, c: Candidate, snapshot: Snapshot, allocation: Allocation) -> bool:
        """Whether a task would be in time if the device were as fast as it may be."""
        if c.hope == 1.0:
            return False
        after_s = allocation.fastest_s.get((Stage.DECODE, c.kind), 0.0)
        return snapshot.since_plan_s + c.swap_s + c.work_s / c.hope + after_s <= allocation.preferences.target_s

    def _is_for_others(self, c: Candidate, snapshot: Snapshot, allocation: Allocation) -> bool:
        """Whether a task ends too late here, and other devices would end all such tasks earlier.

        Once nothing but decodes is left, the faster devices have nothing better to do: too late is then later than there.
        """
        if c.stage not in INPUT_STAGES and not (allocation.only_decodes and c.stage is Stage.DECODE):
            target_s = allocation.preferences.target_s * (1 + self.slack)
            after_s = allocation.fastest_s.get((Stage.DECODE, c.kind), 0.0) if c.stage is Stage.DENOISE else 0.0
            if snapshot.since_plan_s + c.swap_s + c.work_s * c.doubt + after_s <= target_s:
                return False
        return snapshot.others_end(c) >= c.waiting

    def _rank(
        self, c: Candidate, snapshot: Snapshot, allocation: Allocation
    ) -> tuple[bool, bool, float, float, float, float, int, int, int]:
        use = self.rules.use(
            allocation.advantage.get((c.device_class, c.stage, c.kind), NO_ADVANTAGE_KNOWN),
            c.stage,
            c.work_s,
            c.swap_s,
            c.waiting,
            min(snapshot.latents_fill, self.rules.most_fill),
            allocation.preferences.decode_weight,
        )
        length_s = allocation.fastest_s.get((c.stage, c.kind), 0.0)
        by_use = order(allocation.preferences, use, length_s, c.swap_s + c.work_s)
        scarce = c.begun if c.urgent else 0.0  # a clip needs all of its inputs
        return not c.urgent, c.measured_doubt == 1.0, scarce, *by_use, STAGES[c.stage].order, c.kind, c.worker


def _reason(best: Candidate, snapshot: Snapshot, *, only: bool) -> Reason:
    if best.urgent:
        return Reason.FEEDS_DENOISE
    if best.stage is Stage.DECODE and snapshot.latents_fill >= 1:
        return Reason.DRAINS_LATENTS
    return Reason.ONLY_WORK if only else Reason.BEST_USE


def _longest(stage: Stage, cluster: Cluster, fastest_s: Mapping[tuple[Stage, int], float]) -> float:
    """Seconds of the longest task of a stage that is left, on the device that is fastest at it."""
    left = [w for w, n in zip(cluster.work_types, cluster.amounts.tolist(), strict=True) if n > 0 and w[0] is stage]
    return max((fastest_s[work] for work in left if math.isfinite(fastest_s[work])), default=0.0)


def _only_decodes(cluster: Cluster) -> bool:
    return not any(
        amount and stage is not Stage.DECODE
        for (stage, _), amount in zip(cluster.work_types, cluster.amounts.tolist(), strict=True)
    )


def _loads(cluster: Cluster, solution: AllocationSolution) -> float:
    """Mean seconds that the workers of the classes that denoise spend on loading a transformer."""
    columns = [j for j, (stage, _) in enumerate(cluster.work_types) if stage is Stage.DENOISE]
    denoises = solution.share[:, columns].sum(axis=1) > 0
    loads = cluster.load_s[denoises[cluster.classes]]
    return float(loads.mean()) if len(loads) else 0.0


def _advantages(
    cluster: Cluster, capacity: FloatArray, solution: AllocationSolution
) -> dict[tuple[int, Stage, int], float]:
    advantage = {}
    for device_class in np.flatnonzero(capacity).tolist():
        for j, (stage, kind) in enumerate(cluster.work_types):
            seconds = cluster.seconds[device_class, j]
            if math.isfinite(seconds):
                worth = float(solution.values[device_class] * seconds)
                use = min(1.0, float(solution.prices[j]) / worth) if worth > 0 else NO_ADVANTAGE_KNOWN
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
