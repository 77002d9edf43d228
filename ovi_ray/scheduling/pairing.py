"""Denoises on two devices: an idle worker computes the negative pass of each step of a denoise that one like it runs.

That halves what is left of the clip, with equal numbers. The worker that runs the denoise, the *leader*, owns the clip; the
other, its *helper*, may come and go: when it fails or is lost, the leader goes on alone, and nothing is charged to the clip.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ovi.quality import Quality
from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel
from ovi_ray.scheduling.config import Pairing, PairingConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.task import Reason
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState

_NOBODY = -1


class Pair(NamedTuple):
    """A worker that runs a denoise, and an idle one that is to assist it."""

    leader: WorkerState
    helper: WorkerState


class PairedDenoises:
    """The denoises that are assisted, and the choice of further ones."""

    def __init__(self, job: JobState, pool: WorkerPool, retries: RetryTracker, config: PairingConfig) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._config = config
        self._pairs: dict[int, Pair] = {}
        """Clip -> the workers that share its denoise."""
        self._was_led_by: dict[int, int] = {}
        """Clip that is or was assisted -> number of the leader, which is not assisted twice; _NOBODY once that failed."""
        self._failures: Counter[frozenset[str]] = Counter()
        """Two slots -> assists that failed between them."""

    # --- queries

    @property
    def comes_first(self) -> bool:
        """Whether a denoise is assisted before another one begins."""
        return self._config.when is Pairing.ALWAYS

    def propose(self, idle: Iterable[int], now: float) -> Pair | None:
        """The pair that saves the most time, of a running denoise and one of the idle workers, given by their numbers."""
        if self._config.when is Pairing.OFF or (self._config.when is Pairing.TAIL and self._clips_are_left()):
            return None
        leaders = [worker for worker in self._pool.workers.values() if self._may_lead(worker)]
        if not leaders:
            return None
        helpers = [self._pool.workers[number] for number in idle]
        gains = {
            (self._gain_s(Pair(leader, helper), now), -leader.number, -helper.number): Pair(leader, helper)
            for leader in leaders
            for helper in helpers
            if self._may_share(leader, helper)
        }
        best = max(gains, default=None)
        least_s = -math.inf if self.comes_first else self._config.min_gain_s
        return gains[best] if best is not None and best[0] >= least_s else None

    def _clips_are_left(self) -> bool:
        """Whether there is or will be a clip to denoise for a worker that idles now."""
        return self._job.undenoised > 0

    def _may_lead(self, worker: WorkerState) -> bool:
        """Whether a worker runs a denoise alone. One that failed before, or that runs twice, is left as it is."""
        run = worker.running
        if run is None or not worker.node or not run.task.items or run.task.stage is not Stage.DENOISE:
            return False
        (clip,) = run.task.items
        return (
            not worker.is_copy
            and worker.superseded_s == math.inf
            and self._job.workload.kinds[worker.kind].quality is Quality.EXACT  # a lossy step may leave the pass out
            and clip not in self._pairs
            and self._was_led_by.get(clip) not in (worker.number, _NOBODY)
            and self._job.is_running(Stage.DENOISE, clip)
            and not self._retries.has_failed((Stage.DENOISE, clip))
        )

    def _may_share(self, leader: WorkerState, helper: WorkerState) -> bool:
        slots = frozenset((leader.slot, helper.slot))
        return (
            helper.node == leader.node
            and helper.device_class == leader.device_class
            and helper.health.of(Stage.DENOISE).is_trusted
            and self._pool.fits(helper, Stage.DENOISE, leader.kind)
            and self._failures[slots] < self._config.max_failures
        )

    def _gain_s(self, pair: Pair, now: float) -> float:
        """Seconds by which the clip ends sooner, less those that the helper loses if it decodes next."""
        leader, helper = pair
        joins_s = now + self._pool.swap_seconds(helper, Stage.DENOISE, leader.kind)
        saved_s = (1 - self._config.share) * (leader.expected_end_s - max(joins_s, leader.started_s + leader.load_s))
        return saved_s - self._decode_delay_s(pair)

    def _decode_delay_s(self, pair: Pair) -> float:
        """Seconds that loading the transformer adds to the helper's next decode, which it has the components of now."""
        leader, helper = pair
        capabilities = self._pool.capabilities
        if not capabilities.fits(helper.device_class, Stage.DECODE, leader.kind):
            return 0.0
        before_s = self._pool.swap_seconds(helper, Stage.DECODE, leader.kind)
        during = self._pool.swap(helper, Stage.DENOISE, leader.kind)
        after = capabilities.swap(helper.device_class, during.components, during.model_name, Stage.DECODE, leader.kind)
        return max(0.0, capabilities.swap_seconds(helper.device_class, after) - before_s)

    def spread(self, workers: Sequence[WorkerState], idle: Iterable[int]) -> Sequence[WorkerState]:
        """Interchangeable workers for a denoise, those first that leave most others idle on their node, to assist it."""
        if self._config.when is Pairing.OFF or len(workers) < 2:
            return workers
        free = Counter((w.node, w.device_class) for w in map(self._pool.workers.__getitem__, idle) if w.node)
        return sorted(workers, key=lambda worker: -free[worker.node, worker.device_class])

    # --- changes

    def begin(self, pair: Pair) -> None:
        """The helper has begun its task."""
        assert pair.leader.running is not None
        (clip,) = pair.leader.running.task.items
        self._pairs[clip] = pair
        self._was_led_by[clip] = pair.leader.number
        self._pool.assist(pair.leader, pair.helper, self._config.share)

    def leader_ended(self, leader: WorkerState, clip: int, now: float) -> list[Cancel]:
        """The leader's task has ended in any way: let its helper go. Called while what was expected of it is still known."""
        pair = self._pairs.get(clip)
        return self.let_go(clip, now) if pair is not None and pair.leader is leader else []

    def let_go(self, clip: int, now: float) -> list[Cancel]:
        """The helper of a clip, if it has one, is not needed any more."""
        pair = self._pairs.pop(clip, None)
        if pair is None:
            return []
        self._pool.end_assist(pair.leader, self._config.share, now)
        run = pair.helper.running
        return [] if run is None else [Cancel(worker=run.worker, task=run.task, reason=Reason.LEADER_ENDED)]

    def helper_ended(self, helper: WorkerState, clip: int, now: float, *, failed: bool) -> None:
        """The helper's task has ended: if the leader still runs, it goes on alone, or is at its end as well."""
        pair = self._pairs.get(clip)
        if pair is None or pair.helper is not helper:
            return  # the leader ended first
        del self._pairs[clip]
        self._pool.end_assist(pair.leader, self._config.share, now)
        pair.leader.is_ending = not failed
        if failed:
            self._was_led_by[clip] = _NOBODY
            self._failures[frozenset((pair.leader.slot, helper.slot))] += 1

    def forget(self, clip: int) -> None:
        """The denoise of a clip is done or given up."""
        self._was_led_by.pop(clip, None)
