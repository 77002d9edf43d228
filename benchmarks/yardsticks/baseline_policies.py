"""Policies of other systems, for comparison: static striding (the published program) and mean speed per stage.

They keep state of their own (a share or a role per worker), so each schedules one job: `static_striding(workload)` and
`mean_speed(workload)` make a scheduler with a new policy.
"""

from abc import ABC, abstractmethod
from collections import Counter

import numpy as np
import numpy.typing as npt

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.actions import Action, RunTask
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.policies.base import Allocation, Candidate, Cluster, Decision, IdleWorker, Snapshot
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import Reason, Task
from ovi_ray.scheduling.worker_pool import WorkerState
from ovi_ray.scheduling.workload import Workload

_NOTHING_ALLOCATED = Allocation(makespan_s=0.0)


class BaselinePolicy(ABC):
    """A policy that assigns work to single workers and is told which tasks each of them started."""

    name: str

    def __init__(self) -> None:
        self.assignments = 0
        """How often work was assigned; groups of workers may change with it."""

    def allocate(self, cluster: Cluster) -> Allocation:
        """Assign work to the workers. The core's allocation stays empty."""
        self.assign(cluster)
        self.assignments += 1
        return _NOTHING_ALLOCATED

    def choose(self, snapshot: Snapshot, allocation: Allocation) -> Decision:
        """The candidate of the latest stage among those assigned to its worker."""
        eligible = [c for c in snapshot.candidates if self.is_assigned(c)]
        if not eligible:
            return Decision(candidate=None, reason=Reason.NOTHING_READY)
        best = min(eligible, key=lambda c: (not c.urgent, -STAGES[c.stage].order, c.kind, c.worker))
        return Decision(candidate=best, reason=Reason.ONLY_WORK)

    def task_started(self, worker: int, task: Task) -> None:
        """A worker was given a task."""
        return

    @abstractmethod
    def assign(self, cluster: Cluster) -> None:
        """Assign the remaining work."""

    @abstractmethod
    def is_assigned(self, c: Candidate) -> bool:
        """Whether a worker may run a candidate."""

    @abstractmethod
    def group(self, worker: IdleWorker) -> int:
        """Idle workers with equal assignments are interchangeable."""


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


class _BaselineDispatcher(Dispatcher):
    """Tells the policy which tasks start, and groups the idle workers anew when it has assigned work."""

    _policy: BaselinePolicy
    _grouped_at = 0

    def dispatch(self, now: float) -> list[Action]:
        """Group the idle workers by their present assignments first."""
        if self._grouped_at != self._policy.assignments:
            self._grouped_at = self._policy.assignments
            for number in self._idle.numbers():
                self._idle.remove(number)
                self._add_idle(self._pool.workers[number])
        return super().dispatch(now)

    def _run(self, worker: WorkerState, task: Task, kind: int, reason: Reason, now: float) -> RunTask:
        self._policy.task_started(worker.number, task)
        return super()._run(worker, task, kind, reason, now)


class _BaselineScheduler(Scheduler):
    dispatcher_type = _BaselineDispatcher


def static_striding(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with static striding."""
    return _BaselineScheduler(workload, policy=StaticStriding(), config=config)


def mean_speed(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with pools by mean speed."""
    return _BaselineScheduler(workload, policy=MeanSpeed(), config=config)


def production(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """The production scheduler, for comparison with the others."""
    return Scheduler(workload, config=config)


SCHEDULERS = {"production": production, "static_striding": static_striding, "mean_speed": mean_speed}
