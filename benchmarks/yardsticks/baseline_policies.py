"""Policies of other systems, for comparison: static striding (the published program) and mean speed per stage."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.policies.base import Candidate, Cluster, Decision, Plan, Snapshot, Worker
from ovi_ray.scheduling.task import Reason


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
        return sum(1 << STAGES[stage].order for stage in plan.roles.get(worker.number, ()))

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
    best = min(eligible, key=lambda c: (not c.urgent, -STAGES[c.stage].order, c.kind, c.worker))
    return Decision(candidate=best, reason=Reason.ONLY_WORK)
