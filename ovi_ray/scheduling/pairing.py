"""Denoises on two devices: an idle worker computes the negative pass of each step of a denoise that one like it runs.

That halves what is left of the clip, with equal numbers. The worker that runs the denoise, the *leader*, owns the clip; the
other, its *helper*, may come and go: when it fails or is lost, the leader goes on alone, and nothing is charged to the clip.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ovi.quality import Quality
from ovi.stages import CLIP_STAGES, Stage
from ovi_ray.scheduling.actions import Cancel
from ovi_ray.scheduling.config import Pairing, PairingConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.speculation import SpeculativeExecution
from ovi_ray.scheduling.task import Reason
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState

_NOBODY = -1


class Pair(NamedTuple):
    """A worker that runs a denoise, and one that assists it."""

    leader: WorkerState
    helper: WorkerState
    share: float
    """Seconds of a step on both over those on the leader alone."""
    late_s: float
    """When the denoise would be late on the leader alone."""


class _Clip(NamedTuple):
    """A clip of which a worker runs a task, those that end last first."""

    minus_end_s: float
    number: int
    """Of the worker."""
    worker: WorkerState


class PairedDenoises:
    """The denoises that are assisted, and the choice of further ones."""

    def __init__(
        self,
        *,
        job: JobState,
        pool: WorkerPool,
        retries: RetryTracker,
        speculation: SpeculativeExecution,
        config: PairingConfig,
    ) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._speculation = speculation
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

    def is_possible(self, idle: Iterable[int]) -> bool:
        """Whether an idle worker, given by its number, may assist now."""
        if self._config.when is Pairing.OFF or (not self.comes_first and self._job.undenoised):
            return False
        return any(self._pool.workers[number].node for number in idle)

    def proposals(self, idle: Collection[int], now: float) -> Iterator[Pair]:
        """Pairs of a running denoise and an idle worker, given by its number; each must begin before the next is asked for.

        At the end of a job, the clip that ends last is looked at first, and again with its new end. Once it cannot end sooner,
        neither can the job, and the clips that end before it are left alone.
        """
        if not self.is_possible(idle):
            return
        helpers = [self._pool.workers[number] for number in idle if self._pool.workers[number].node]
        running = [worker for worker in self._pool.workers.values() if _is_awaited(worker)]
        decode_s = {kind: self._pool.fastest_s(Stage.DECODE, kind) for kind in {worker.kind for worker in running}}
        clips = [_clip(worker, decode_s) for worker in running]
        heapq.heapify(clips)
        while helpers and clips:
            leader = heapq.heappop(clips).worker
            pair = self._best_pair(leader, helpers, now) if self._may_lead(leader, now) else None
            if pair is not None:
                yield pair
                helpers.remove(pair.helper)
                heapq.heappush(clips, _clip(leader, decode_s))
            elif not self.comes_first and leader.expected_end_s > now:  # one that is late may end at once
                return

    def _may_lead(self, worker: WorkerState, now: float) -> bool:
        """Whether a worker runs a denoise alone. One that failed before, or whose copy may end first, is left as it is."""
        run = worker.running
        if run is None or not worker.node or run.task.stage is not Stage.DENOISE:
            return False
        (clip,) = run.task.items
        return (
            self._speculation.is_pointless(worker, now)
            and self._job.workload.kinds[worker.kind].quality is Quality.EXACT  # a lossy step may leave the pass out
            and clip not in self._pairs
            and self._was_led_by.get(clip) not in (worker.number, _NOBODY)
            and self._job.is_running(Stage.DENOISE, clip)
            and not self._retries.has_failed((Stage.DENOISE, clip))
        )

    def _best_pair(self, leader: WorkerState, helpers: Iterable[WorkerState], now: float) -> Pair | None:
        """The pair with the helper that saves the most time; None if none saves enough."""
        late_s = self._speculation.late_s(leader)
        able = [helper for helper in helpers if self._may_share(leader, helper)]
        pairs = [Pair(leader, helper, self._share(leader, helper), late_s) for helper in able]
        gains = [(self._gain_s(pair, now), -pair.helper.number) for pair in pairs]
        if not gains:
            return None
        best = max(gains)
        return pairs[gains.index(best)] if self._is_enough(best[0], leader) else None

    def _is_enough(self, gain_s: float, leader: WorkerState) -> bool:
        """Any gain is, if two devices are asked for; they are then tried before it is known what a denoise takes."""
        if self.comes_first:
            return gain_s > 0 or not self._pool.costs.is_measured(leader.device_class, Stage.DENOISE)
        return gain_s >= self._config.min_gain_s

    def _may_share(self, leader: WorkerState, helper: WorkerState) -> bool:
        slots = frozenset((leader.slot, helper.slot))
        return (
            helper.node == leader.node
            and helper.device_class == leader.device_class
            and helper.health.of(Stage.DENOISE).is_trusted
            and self._pool.fits(helper, Stage.DENOISE, leader.kind)
            and self._failures[slots] < self._config.max_failures
        )

    def _share(self, leader: WorkerState, helper: WorkerState) -> float:
        """A step takes as long as the slower of its two passes."""
        factor = self._pool.costs.worker_factor
        return self._config.share * max(1.0, factor(helper.number) / factor(leader.number))

    def _gain_s(self, pair: Pair, now: float) -> float:
        """Seconds by which the clip ends sooner, less those that the helper loses at the end of a job if it decodes next."""
        leader, helper, share, _ = pair
        joins_s = now + self._pool.swap_seconds(helper, Stage.DENOISE, leader.kind)
        saved_s = (1 - share) * (leader.expected_end_s - max(joins_s, leader.started_s + leader.load_s))
        return saved_s if self.comes_first else saved_s - self._decode_delay_s(leader, helper)

    def _decode_delay_s(self, leader: WorkerState, helper: WorkerState) -> float:
        """Seconds that loading the transformer adds to the helper's next decode, which it has the components of now."""
        capabilities = self._pool.capabilities
        if not capabilities.fits(helper.device_class, Stage.DECODE, leader.kind):
            return 0.0
        before_s = self._pool.swap_seconds(helper, Stage.DECODE, leader.kind)
        during = self._pool.swap(helper, Stage.DENOISE, leader.kind)
        after = capabilities.swap(helper.device_class, during.components, during.model_name, Stage.DECODE, leader.kind)
        return max(0.0, capabilities.swap_seconds(helper.device_class, after) - before_s)

    def spread(self, workers: Sequence[WorkerState]) -> Sequence[WorkerState]:
        """Interchangeable workers for a denoise, those first that leave most others idle on their node, to assist it."""
        if self._config.when is Pairing.OFF or len(workers) < 2:
            return workers
        spare = Counter[tuple[str, int]]()
        for worker in self._pool.workers.values():
            if worker.running is None:
                spare[worker.node, worker.device_class] += 1
            elif worker.runs(Stage.DENOISE) and not worker.is_assisted and not worker.assists:
                spare[worker.node, worker.device_class] -= 1
        return sorted(workers, key=lambda worker: -spare[worker.node, worker.device_class])

    # --- changes

    def begin(self, pair: Pair) -> None:
        """The helper has begun its task."""
        assert pair.leader.running is not None
        (clip,) = pair.leader.running.task.items
        self._pairs[clip] = pair
        self._was_led_by[clip] = pair.leader.number
        self._pool.assist(pair.leader, pair.helper, pair.share)

    def leader_ended(self, leader: WorkerState, clip: int, now: float) -> list[Cancel]:
        """The leader's task has ended in any way: let its helper go. Called while what was expected of it is still known."""
        pair = self._pairs.get(clip)
        return self.let_go(clip, now) if pair is not None and pair.leader is leader else []

    def let_go(self, clip: int, now: float, reason: Reason = Reason.LEADER_ENDED) -> list[Cancel]:
        """The helper of a clip, if it has one, is not needed any more."""
        pair = self._pairs.pop(clip, None)
        if pair is None:
            return []
        self._pool.end_assist(pair.leader, pair.share, now)
        run = pair.helper.running
        return [] if run is None else [Cancel(worker=run.worker, task=run.task, reason=reason)]

    def part_late(self, now: float) -> list[Cancel]:
        """Of two devices that take longer than one should, one is slow: the leaders go on alone, and can be copied."""
        late = [clip for clip, pair in self._pairs.items() if now >= pair.late_s]
        return [cancel for clip in late for cancel in self.part(clip, now)]

    def part(self, clip: int, now: float) -> list[Cancel]:
        """The leader of a clip goes on alone, for good: the two are late, or the clip is copied."""
        if clip not in self._pairs:
            return []
        self._was_led_by[clip] = _NOBODY
        return self.let_go(clip, now, Reason.BETTER_ALONE)

    def helper_ended(self, helper: WorkerState, clip: int, now: float, *, failed: bool) -> None:
        """The helper's task has ended: if the leader still runs, it goes on alone, or is at its end as well."""
        pair = self._pairs.get(clip)
        if pair is None or pair.helper is not helper:
            return  # the leader ended first
        del self._pairs[clip]
        self._pool.end_assist(pair.leader, pair.share, now)
        pair.leader.is_ending = not failed
        if failed:
            self._was_led_by[clip] = _NOBODY
            self._failures[frozenset((pair.leader.slot, helper.slot))] += 1

    def forget(self, clip: int) -> None:
        """The denoise of a clip is done or given up."""
        self._was_led_by.pop(clip, None)


def _is_awaited(worker: WorkerState) -> bool:
    """Whether a worker runs a task of a clip whose end is waited for: not a copy, and not part of another worker's."""
    task = worker.running.task if worker.running else None
    return task is not None and bool(task.items) and task.stage in CLIP_STAGES and not worker.is_copy


def _clip(worker: WorkerState, decode_s: Mapping[int, float]) -> _Clip:
    """`decode_s`: kind -> seconds of its decode."""
    end_s = min(worker.expected_end_s, worker.superseded_s)
    return _Clip(-end_s - (decode_s[worker.kind] if worker.runs(Stage.DENOISE) else 0.0), worker.number, worker)
