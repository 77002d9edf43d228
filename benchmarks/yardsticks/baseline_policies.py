"""Policies of other systems, for comparison: static striding (the published program) and pools by mean speed.

They keep state of their own (a share or a role per worker), so each schedules one job: `static_striding(workload)` and
`mean_speed(workload)` make a scheduler with a new policy. The queue of whole clips, which is what one would write first, is in
`ovi_ray.simulation.whole_clip_queue`, because `ovi-ray plan` compares with it.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.policies.base import Candidate, Cluster, IdleWorker
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import Task
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.whole_clip_queue import BaselinePolicy, baseline_scheduler, dynamic_queue


class StaticStriding(BaselinePolicy):
    """The published way: every rank that can run all stages gets every n-th clip, and works through its own."""

    name = "static_striding"

    def __init__(self) -> None:
        super().__init__()
        self.quota: dict[int, int] = {}
        """Worker -> denoises that it may start in total."""
        self._denoises: Counter[int] = Counter()
        self._decodes: Counter[int] = Counter()

    def task_started(self, worker: int, task: Task) -> None:
        """Count denoises and decodes per worker."""
        if task.items:
            self._denoises[worker] += task.stage is Stage.DENOISE
            self._decodes[worker] += task.stage is Stage.DECODE

    def _has_undecoded(self, worker: int) -> bool:
        return self._denoises[worker] > self._decodes[worker]

    def group(self, worker: IdleWorker) -> int:
        """By whether the worker may start a denoise, and whether it has to decode."""
        may_denoise = self._denoises[worker.number] < self.quota.get(worker.number, 0)
        return 2 * may_denoise + self._has_undecoded(worker.number)

    def assign(self, cluster: Cluster) -> None:
        """Equal shares for the workers that can run every stage."""
        types = np.flatnonzero(cluster.amounts > 0)
        able = np.isfinite(cluster.seconds[cluster.classes][:, types]).all(axis=1)
        whole = cluster.numbers[able if able.any() else slice(None)].tolist()
        left = sum(cluster.amounts[j] for j in types if cluster.work_types[j][0] is Stage.DENOISE)
        clips = int(left) + sum(self._denoises[number] for number in cluster.numbers.tolist())
        self.quota = {number: clips // len(whole) + (i < clips % len(whole)) for i, number in enumerate(whole)}

    def is_assigned(self, c: Candidate) -> bool:
        """Encode for all, denoise up to the quota, decode what was denoised here."""
        if c.stage is Stage.DENOISE:
            return self._denoises[c.worker] < self.quota.get(c.worker, 0)
        return c.worker in self.quota and (c.stage is not Stage.DECODE or self._has_undecoded(c.worker))


class MeanSpeed(BaselinePolicy):
    """Pools per stage, sized by one mean speed per stage; within a pool, the next free worker takes the next task."""

    name = "mean_speed"

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[int, frozenset[Stage]] = {}
        """Worker -> stages that it may run."""

    def group(self, worker: IdleWorker) -> int:
        """By role."""
        return sum(1 << STAGES[stage].order for stage in self.roles.get(worker.number, ()))

    def assign(self, cluster: Cluster) -> None:
        """A pool for denoise and one for the rest, in proportion to the work at the mean speed of all devices."""
        work = dict.fromkeys(Stage, 0.0)
        denoisers = np.zeros(len(cluster.numbers), bool)
        for j, (stage, _) in enumerate(cluster.work_types):
            seconds = cluster.seconds[cluster.classes, j]
            able = np.isfinite(seconds)
            if able.any():
                work[stage] += float(seconds[able].mean() * cluster.amounts[j])
            if stage is Stage.DENOISE:
                denoisers |= able
        self.roles = _pools(cluster.numbers, denoisers, work)

    def is_assigned(self, c: Candidate) -> bool:
        """Tasks of the worker's pool."""
        return c.stage in self.roles.get(c.worker, ())


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


def static_striding(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with static striding."""
    return baseline_scheduler(workload, StaticStriding(), config)


def mean_speed(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with pools by mean speed."""
    return baseline_scheduler(workload, MeanSpeed(), config)


def production(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """The production scheduler, for comparison with the others."""
    return Scheduler(workload, config=config)


SCHEDULERS = {
    "production": production,
    "dynamic_queue": dynamic_queue,
    "static_striding": static_striding,
    "mean_speed": mean_speed,
}
