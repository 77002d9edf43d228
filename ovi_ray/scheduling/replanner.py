"""When to plan anew, and what a plan is made from. Pure."""

import math

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.job_state import Board, ClipState
from ovi_ray.scheduling.policies.base import Cluster, Plan, Policy
from ovi_ray.scheduling.worker_pool import Fleet

_PLAN_EVERY = 0.02  # of the remaining work


class Planner:
    """Keeps the policy's plan fresh: after joins and losses, after the first measurements, and as work is done."""

    def __init__(self, board: Board, fleet: Fleet, policy: Policy) -> None:
        self._board = board
        self._fleet = fleet
        self._policy = policy
        self.plan = Plan(makespan_s=0.0)
        self.planned_at = -math.inf
        self.placeable: list[bool] = []
        """[kinds] whether every stage of a kind fits on a present worker."""
        self.denoisers = 0
        """Workers that can denoise."""
        self._due = True
        self._changes = 0
        self._ends = 0
        self._next_ends = 1
        self._kinds = range(len(board.workload.kinds))
        tokens = board.workload.text_tokens
        self.mean_tokens = max(1.0, float(tokens.mean())) if len(tokens) else 1.0

    def membership_changed(self) -> None:
        """Workers came or went."""
        self._due = True
        self.placeable = []

    def reconsider(self) -> None:
        """Plan anew at the next occasion."""
        self._due = True

    def task_started(self) -> None:
        """Work left the queues."""
        self._changes += 1

    def task_ended(self) -> None:
        """Something may have been learned."""
        self._changes += 1
        self._ends += 1

    def refresh_placeable(self) -> None:
        """See which kinds can be rendered by the workers that are there."""
        if self.placeable:
            return
        self.placeable = [not self._fleet.missing_stages(kind) for kind in self._kinds]
        able = [device for device in self._fleet.devices() if self._fleet.can_denoise(device)]
        self.denoisers = int(np.isin(self._fleet.classes(), able).sum())

    def text_kind(self) -> int:
        """Texts have no kind; any one that is placeable stands for them."""
        return next((kind for kind in self._kinds if self.placeable[kind]), 0)

    def plan_if_due(self, now: float) -> bool:
        """Plan anew when that is worth while. True when there is a new plan."""
        if self._ends >= self._next_ends:
            self._next_ends = 2 * self._ends
            self._due = True
        left = self._board.workload.clips - self._board.ended
        if not self._due and self._changes <= _PLAN_EVERY * left:
            return False
        self.plan = self._policy.plan(self._cluster(now))
        self.planned_at, self._due, self._changes = now, False, 0
        return True

    def eta(self, now: float) -> float | None:
        """Seconds until the end as planned; None while there is no plan."""
        if self.plan.makespan_s <= 0:
            return None
        return max(0.0, self.planned_at + self.plan.makespan_s - now)

    def _cluster(self, now: float) -> Cluster:
        jobs = self._jobs_left()
        fleet, costs = self._fleet, self._fleet.costs
        seconds = np.full((len(costs.profiles), len(jobs)), math.inf)
        for device in fleet.devices():
            for j, (stage, kind, _, units) in enumerate(jobs):
                if fleet.fits(device, stage, kind):
                    seconds[device, j] = costs.seconds(device, stage, kind) * units
        return Cluster(
            jobs=tuple((stage, kind) for stage, kind, _, _ in jobs),
            amounts=np.array([amount for _, _, amount, _ in jobs], dtype=np.float64),
            seconds=seconds,
            numbers=fleet.numbers(),
            classes=fleet.classes(),
            factors=fleet.factors(),
            available_s=fleet.available(now),
            load_s=fleet.transformer_loads(),
            denoises=sum(worker.denoises for worker in fleet.workers.values()),
        )

    def _jobs_left(self) -> list[tuple[Stage, int, int, float]]:
        """(stage, kind, tasks, units of a task) of what is left to start."""
        board = self._board
        texts = len(board.texts.state) - board.texts.encoded - board.texts.running
        jobs = [(Stage.ENCODE_TEXT, self.text_kind(), max(0, texts), self.mean_tokens)]
        for kind in self._kinds:
            if not self.placeable[kind]:
                continue
            counts = board.counts[kind]
            denoise = counts[ClipState.UNSEEN] + counts[ClipState.WAITING] + counts[ClipState.READY]
            jobs.append((Stage.DENOISE, kind, denoise, 1.0))
            jobs.append((Stage.DECODE, kind, denoise + counts[ClipState.DENOISING] + counts[ClipState.LATENTS], 1.0))
            if board.workload.kinds[kind].has_image:
                jobs.append((Stage.ENCODE_FIRST_FRAME, kind, len(board.frame_queue[kind]), 1.0))
        return jobs
