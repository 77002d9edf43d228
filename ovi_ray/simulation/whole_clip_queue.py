"""A queue of whole clips, the scheduler that one would write first: what separate stages are compared with.

`dynamic_queue(workload)` makes a scheduler of one job. Other policies that keep state of their own can be built on
`BaselinePolicy` in the same way.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter

import numpy as np
import numpy.typing as npt

from ovi.stages import INPUT_STAGES, STAGES, Stage
from ovi_ray.scheduling.actions import Action, RunTask
from ovi_ray.scheduling.config import SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.policies.base import (
    Allocation,
    Candidate,
    Cluster,
    Decision,
    IdleWorker,
    Snapshot,
)
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
        """Number of assignments so far; groups of workers may change with it."""

    def allocate(
        self, cluster: Cluster, in_force: Allocation | None = None, *, little_changed: bool = False
    ) -> Allocation:
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


class DynamicQueue(BaselinePolicy):
    """A queue of whole clips: every device that can denoise and decode pulls the next one, swapping components in place.

    Texts are encoded in batches for all, which is more than such a program would do. Where no device that pulls clips can
    run an input stage, the others do.
    """

    name = "dynamic_queue"

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._kind_of = workload.clip_kind
        self._pulls: frozenset[int] = frozenset()
        self._encodes: dict[Stage, frozenset[int]] = {}
        self._held: dict[int, int] = {}
        """Worker -> kind of the clip that it has denoised and not decoded."""
        self._kept = Counter(self._kind_of[workload.clips_with_latents].tolist())
        """Kind -> clips that an earlier run has denoised."""

    def task_started(self, worker: int, task: Task) -> None:
        """A denoise is followed by a decode on the same worker."""
        if not task.items or task.stage in INPUT_STAGES:
            return
        kind = int(self._kind_of[task.items[0]])
        if task.stage is Stage.DENOISE:
            self._held[worker] = kind
        elif task.stage is Stage.DECODE and self._held.pop(worker, None) is None:
            self._kept[kind] -= 1

    def group(self, worker: IdleWorker) -> int:
        """By the clip that waits for the worker."""
        return 1 + self._held.get(worker.number, -1)

    def assign(self, cluster: Cluster) -> None:
        """Find the devices that pull clips: those that can denoise and decode a kind that is left."""
        able = {stage: self._able(cluster, stage) for stage in Stage}
        both = able[Stage.DENOISE] & able[Stage.DECODE]
        self._pulls = frozenset(cluster.numbers[both].tolist() if both.any() else cluster.numbers.tolist())
        for stage, can in able.items():
            here = frozenset(cluster.numbers[can].tolist())
            self._encodes[stage] = (here & self._pulls) or here

    @staticmethod
    def _able(cluster: Cluster, stage: Stage) -> npt.NDArray[np.bool_]:
        types = [j for j, (of, _) in enumerate(cluster.work_types) if of is stage]
        return np.asarray(np.isfinite(cluster.seconds[cluster.classes][:, types]).any(axis=1), dtype=bool)

    def is_assigned(self, c: Candidate) -> bool:
        """Its own decode, else a clip; one that an earlier run has denoised is pulled for its decode."""
        if c.stage in INPUT_STAGES:
            return c.urgent and c.worker in self._encodes.get(c.stage, ())
        if c.worker not in self._pulls:
            return False
        if c.worker in self._held:
            return c.stage is Stage.DECODE and self._held[c.worker] == c.kind
        return c.stage is Stage.DENOISE or self._kept[c.kind] > 0


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


def baseline_scheduler(workload: Workload, policy: BaselinePolicy, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with such a policy. It copies no tasks, whatever the configuration says."""
    config = dataclasses.replace(config or SchedulerConfig(), speculation=SpeculationConfig(enabled=False))
    return _BaselineScheduler(workload, policy=policy, config=config)


def dynamic_queue(workload: Workload, config: SchedulerConfig | None = None) -> Scheduler:
    """A scheduler of one job with a queue of whole clips."""
    return baseline_scheduler(workload, DynamicQueue(workload), config)
