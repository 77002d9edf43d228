"""When a new allocation is made, and the view of the remaining work that it is made from."""

import dataclasses
import math
from collections.abc import Sequence, Set

import numpy as np

from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, Stage, stages_of
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.policies.base import Allocation, Cluster, Policy
from ovi_ray.scheduling.states import CLIP_STAGE_STATES, ClipState
from ovi_ray.scheduling.worker_pool import WorkerPool


class Replanner:
    """Keeps the allocation fresh: renewed when workers come or go, after the first measurements, and as work is done."""

    def __init__(self, job: JobState, pool: WorkerPool, policy: Policy, config: SchedulerConfig) -> None:
        self._job = job
        self._pool = pool
        self._policy = policy
        self._config = config
        self.allocation = Allocation(makespan_s=0.0)
        self.planned_at = -math.inf
        self._expected = np.empty((0, 0))
        """[classes, types] seconds per task that the allocation was made with."""
        self.placeable: list[bool] = []
        """[kinds] whether each stage of a kind fits on a worker in service."""
        self.denoisers = 0
        """Workers in service that can denoise."""
        self.clips_ahead: dict[Stage, float] = {}
        """Input stage -> clips that the cluster may denoise in the time in which all devices that encode it do other work."""
        self._due = True
        self._changes = 0  # tasks started or ended since the last allocation
        self._ends = 0
        self._replan_at_ends = 1  # doubled each time: early measurements change the most
        self._kinds = range(len(job.workload.kinds))
        tokens = job.workload.text_tokens
        self.mean_tokens = max(1.0, float(tokens.mean())) if len(tokens) else 1.0

    # --- notes

    def membership_changed(self) -> None:
        """Workers came or went."""
        self._due = True
        self.placeable = []

    def request(self) -> None:
        """Make a new allocation at the next opportunity."""
        self._due = True

    def task_started(self) -> None:
        """Work left the queues."""
        self._changes += 1

    def task_ended(self) -> None:
        """Something may have been learned."""
        self._changes += 1
        self._ends += 1

    @property
    def is_due(self) -> bool:
        """Whether a new allocation was asked for."""
        return self._due

    # --- planning

    def refresh_placeable(self) -> None:
        """After a change of membership, find out which kinds the workers in service can render."""
        if self.placeable:
            return
        pool = self._pool
        pool.apply_memory_limits()
        self.placeable = [not pool.missing_stages(kind) for kind in self._kinds]
        able = [c for c in pool.present_classes() if pool.capabilities.can_denoise(c)]
        self.denoisers = int(np.isin(pool.arrays.classes(), able).sum())

    def replan_if_due(self, now: float) -> None:
        """Make a new allocation when enough has changed."""
        if self._ends >= self._replan_at_ends:
            self._replan_at_ends = 2 * self._ends
            self._due = True
        left = self._job.workload.clips - self._job.ended
        if self._due or self._changes > self._config.replan_share * left:
            cluster = self._cluster(now)
            in_force = self._in_force(now) if not self._due or self._is_as_expected(cluster) else None
            self.allocation = self._policy.allocate(cluster, in_force, little_changed=not self._due)
            self._expected = cluster.seconds
            self.clips_ahead = {stage: _clips_ahead(cluster, stage) for stage in INPUT_STAGES}
            self.planned_at, self._due, self._changes = now, False, 0

    def replan_without(self, numbers: Set[int], kinds: Sequence[int], now: float) -> bool:
        """Make a plan in which workers stop denoises of these kinds, which are begun anew, if the job ends sooner by it."""
        if not all(self.placeable[kind] for kind in kinds):
            return False
        cluster = self._cluster(now)
        amounts, stopped = cluster.amounts.copy(), np.isin(cluster.numbers, list(numbers))
        for kind in kinds:
            amounts[cluster.work_types.index((Stage.DENOISE, kind))] += 1
        without = dataclasses.replace(
            cluster,
            amounts=amounts,
            available_s=np.where(stopped, 0.0, cluster.available_s),
            running=[None if stop else task for task, stop in zip(cluster.running, stopped.tolist(), strict=True)],
        )
        allocation = self._policy.allocate(without)
        if allocation.makespan_s >= self._config.much_sooner * self._policy.allocate(cluster).makespan_s:
            return False
        self.allocation, self.planned_at, self._changes = allocation, now, 0
        self._expected = cluster.seconds
        return True

    def _is_as_expected(self, cluster: Cluster) -> bool:
        """Whether the same devices are present, and as fast as the allocation in force assumes."""
        before, seconds = self._expected, cluster.seconds
        return before.shape == seconds.shape and np.allclose(seconds, before, rtol=self._config.surprise, atol=0.0)

    def _in_force(self, now: float) -> Allocation:
        """The allocation made last, with the target as seen from now."""
        old = self.allocation.preferences
        preferences = dataclasses.replace(old, target_s=self.planned_at + old.target_s - now)
        return dataclasses.replace(self.allocation, preferences=preferences)

    # --- queries

    @property
    def kind_of_texts(self) -> int:
        """The kind that stands for texts, which have none: any that is placeable."""
        return next((kind for kind, placeable in enumerate(self.placeable) if placeable), 0)

    def eta(self, now: float) -> float | None:
        """Seconds until the end by the allocation; None while there is none."""
        if self.allocation.makespan_s <= 0:
            return None
        return max(0.0, self.planned_at + self.allocation.makespan_s - now)

    def _cluster(self, now: float) -> Cluster:
        work = self._work_left()
        pool, costs, arrays = self._pool, self._pool.costs, self._pool.arrays
        seconds = np.full((len(costs.profiles), len(work)), math.inf)
        for device_class in pool.present_classes():
            for j, (stage, kind, _, units) in enumerate(work):
                if pool.capabilities.fits(device_class, stage, kind):
                    seconds[device_class, j] = costs.seconds(device_class, stage, kind) * units
        return Cluster(
            work_types=tuple((stage, kind) for stage, kind, _, _ in work),
            amounts=np.array([amount for _, _, amount, _ in work], dtype=np.float64),
            seconds=seconds,
            numbers=arrays.numbers(),
            classes=arrays.classes(),
            factors=arrays.factors(),
            available_s=arrays.available(now),
            load_s=pool.transformer_loads(),
            holdings=pool.holdings(),
            running=pool.running_kinds(),
            swap=pool.swap_of,
            inputs_s=self._inputs_s(now),
            doubt=costs.doubt,
            latents_scale=self.latents_scale,
        )

    @property
    def latents_scale(self) -> float:
        """Waiting latents at which their queue is worth draining: half of one for each worker, and two more."""
        return 0.5 * len(self._pool.workers) + 2

    def _inputs_s(self, now: float) -> float:
        """Seconds until a clip has its inputs; 0 when one has them, or none is left to denoise."""
        job, totals = self._job, self._job.totals
        if totals[ClipState.READY] or not totals[ClipState.PENDING] + totals[ClipState.WAITING]:
            return 0.0
        if job.inputs_running:
            return self._pool.first_input_s(now)
        waiting = [(stage, self.mean_tokens) for stage in INPUT_STAGES if STAGES[stage].batched]
        ends = [self._pool.end_times(stage, self.kind_of_texts, now, units).min() for stage, units in waiting]
        return float(max((end for end in ends if math.isfinite(end)), default=0.0))

    def _work_left(self) -> list[tuple[Stage, int, int, float]]:
        """(stage, kind, tasks, units per task) left to start. An item of a batched stage counts as a task here."""
        batched = [stage for stage in INPUT_STAGES if STAGES[stage].batched]
        work = [(stage, self.kind_of_texts, self._unencoded(stage), self.mean_tokens) for stage in batched]
        for kind in (kind for kind in self._kinds if self.placeable[kind]):
            work += [(stage, kind, self._clips_before(stage, kind), 1.0) for stage in CLIP_STAGES]
            for stage in stages_of(has_image=self._job.workload.kinds[kind].has_image):
                if stage in INPUT_STAGES and stage not in batched:
                    work.append((stage, kind, len(self._job.queue(stage, kind)), 1.0))
        return work

    def _unencoded(self, stage: Stage) -> int:
        table = self._job.inputs[stage]
        return max(0, len(table) - table.encoded - table.running)

    def _clips_before(self, stage: Stage, kind: int) -> int:
        """Clips that have yet to start a stage: the states are in the order of a clip's life."""
        return sum(self._job.counts[kind][: CLIP_STAGE_STATES[stage].running])


def _clips_ahead(cluster: Cluster, stage: Stage) -> float:
    """Clips that the cluster may denoise until a device that can encode for a stage, and does other work, is free again.

    One that does nothing but encode is free at once; of those that denoise or decode, one is free after its longest task.
    """
    stages = np.array([stage for stage, _ in cluster.work_types])
    encodes = np.isfinite(cluster.seconds[:, stages == stage].min(axis=1, initial=math.inf))
    is_able = encodes[cluster.classes]
    if not is_able.any():
        return 0.0
    of_clips = np.where(cluster.amounts > 0, cluster.seconds, math.inf)[:, np.isin(stages, CLIP_STAGES)]
    longest = np.where(np.isfinite(of_clips), of_clips, 0.0).max(axis=1, initial=0.0)[cluster.classes] * cluster.factors
    denoise = np.where(cluster.amounts > 0, cluster.seconds, math.inf)[:, stages == Stage.DENOISE]
    rates = 1 / (denoise.min(axis=1, initial=math.inf)[cluster.classes] * cluster.factors)
    return float(longest[is_able].min() * rates.sum())
