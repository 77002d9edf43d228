"""Takes devices off the stages that they fail at, and puts them back after a cooldown.

The evidence and the state are the circuit breakers' (circuit_breaker.py); this module applies them to the workers.
"""

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, WakeAt
from ovi_ray.scheduling.circuit_breaker import CircuitBreaker
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.retry_tracker import Item, RetryTracker
from ovi_ray.scheduling.task import BreakerChange, BreakerReason
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


class Quarantine:
    """Applies the circuit breakers to the workers of the pool."""

    def __init__(self, pool: WorkerPool, retries: RetryTracker, dispatcher: Dispatcher) -> None:
        self._pool = pool
        self._retries = retries
        self._dispatcher = dispatcher
        self._open: dict[tuple[str, Stage], CircuitBreaker] = {}  # by slot, with a worker or without

    # --- queries

    @property
    def ends_at(self) -> float | None:
        """The time at which the next stage of a present worker is put back; None when there is none."""
        present = (b.open_until_s for b in self._open.values() if self._pool.occupant(b.slot) is not None)
        return min(present, default=None)

    def may_be_at_fault(self, worker: WorkerState, item: Item) -> bool:
        """Whether a device that never finished a task of the stage may be at fault, and another one can tell, or may come."""
        if worker.health.of(item[0]).is_proven:
            return False
        return self._another_can_tell(worker, item, more_than_gb=0.0) or self._another_may_come(item)

    def is_owed_a_try(self, worker: WorkerState, item: Item) -> bool:
        """Whether a flawless device is there for an item that failed on few devices, or only on those that fail others too."""
        stage, number = item
        failed_on = self._retries.failed_on(item)
        others_failed = all(self._pool.health(slot).fails_others(stage, number) for slot in failed_on)
        if len(failed_on) >= self._retries.config.max_attempts and not others_failed:
            return False
        return any(
            other.health.of(stage).is_trusted
            and other.health.is_flawless
            and other.slot not in failed_on
            and self._pool.fits(other, stage, worker.kind)
            and self._retries.allows(item, other.slot)
            for other in self._pool.workers.values()
        )

    def may_have_too_little_memory(self, worker: WorkerState, item: Item) -> bool:
        """The same, or whether another device has more memory."""
        more_than_gb = self._pool.memory_gb(worker)
        return self.may_be_at_fault(worker, item) or self._another_can_tell(worker, item, more_than_gb=more_than_gb)

    def _another_may_come(self, item: Item) -> bool:
        """Whether a worker is expected; it is not waited for without end, because it may never come."""
        return bool(self._pool.expected) and self._retries.next_attempt(item) <= 2 * self._retries.config.max_attempts

    def _another_can_tell(self, worker: WorkerState, item: Item, *, more_than_gb: float) -> bool:
        """Whether a credible device, with more memory than that, has not tried the item yet."""
        stage = item[0]
        return any(
            other.number != worker.number
            and other.health.of(stage).is_credible
            and self._pool.memory_gb(other) > more_than_gb
            and self._pool.fits(other, stage, worker.kind)
            and self._retries.allows(item, other.slot)
            for other in self._pool.workers.values()
        )

    def _others_go_on(self, worker: WorkerState, stage: Stage, kind: int) -> bool:
        """Whether another device can run the stage: it is not on probation, and did not run out of memory at it as well."""
        too_small = self._pool.memory_limits.slots(stage, kind)
        return any(
            other.number != worker.number
            and other.health.of(stage).is_closed
            and self._pool.fits(other, stage, kind)
            and not (other.slot in too_small and worker.slot in too_small)
            for other in self._pool.workers.values()
        )

    # --- changes

    def worker_joined(self, worker: WorkerState, now: float) -> list[Action]:
        """A worker starts without the stages of its device that are in cooldown."""
        actions = self._half_open([b for b in worker.health if b.is_open and b.open_until_s <= now])
        self._pool.apply_health(worker)
        self._dispatcher.worker_available(worker)
        return actions

    def reinstate(self, now: float) -> list[Action]:
        """Put the stages whose cooldown is over back into service, on probation."""
        if not self._open:
            return []
        due = [b for b in self._open.values() if b.open_until_s <= now and self._pool.occupant(b.slot) is not None]
        actions = self._half_open(due)
        for breaker in due:
            self._apply(breaker)
        return actions

    def _half_open(self, breakers: list[CircuitBreaker]) -> list[Action]:
        actions: list[Action] = []
        for breaker in breakers:
            breaker.half_open()
            del self._open[breaker.slot, breaker.stage]
            actions.append(self._change(breaker, BreakerReason.COOLDOWN_OVER))
        return actions

    def record_success(self, worker: WorkerState, stage: Stage) -> list[Action]:
        """A task of the worker succeeded."""
        breaker = worker.health.of(stage)
        return [self._change(breaker, BreakerReason.PROBE_DONE)] if breaker.record_success() else []

    def refute(self, item: Item, finished_by: WorkerState, now: float) -> list[Action]:
        """A worker finished an item: where it failed before, the device was at fault, unless it has less memory."""
        actions: list[Action] = []
        stage, memory_gb = item[0], self._pool.memory_gb(finished_by)
        failed_on = self._retries.failed_on(item)
        for slot in sorted(slot for slot, gb in failed_on.items() if memory_gb <= gb and slot != finished_by.slot):
            self._pool.health(slot).of(stage).record_refutation()
            worker = self._pool.occupant(slot)
            if worker is not None and not worker.runs(stage):  # otherwise when its task fails
                actions += self.trip_if_faulty(worker, stage, finished_by.kind, now)
        return actions

    def exonerate(self, item: Item) -> None:
        """An item was given up: its failures say nothing of the devices."""
        stage, number = item
        for slot in self._retries.failed_on(item):
            self._pool.health(slot).of(stage).exonerate(number)

    def trip_if_faulty(self, worker: WorkerState, stage: Stage, kind: int, now: float) -> list[Action]:
        """Open the breaker of a worker that does not run the stage if there is evidence against it, and others can run it.

        Its failures then do not count against the items any more. Returns no actions when the breaker stays as it is.
        """
        breaker = worker.health.of(stage)
        reason = breaker.trip_reason()
        if reason is None or not self._others_go_on(worker, stage, kind):
            return []
        cooldown_s = breaker.trip(now)
        self._open[breaker.slot, stage] = breaker
        self._retries.forgive(worker.slot, stage)
        self._apply(breaker)
        opened = BreakerChange(
            worker=worker.name,
            stage=stage,
            state=breaker.state,
            reason=reason,
            cooldown_s=cooldown_s,
            last_failure=breaker.last_failure,
        )
        return [opened, WakeAt(time=breaker.open_until_s)]

    def _apply(self, breaker: CircuitBreaker) -> None:
        worker = self._pool.occupant(breaker.slot)
        if worker is not None:
            self._dispatcher.stages_changed(worker)

    def _change(self, breaker: CircuitBreaker, reason: BreakerReason) -> BreakerChange:
        worker = self._pool.occupant(breaker.slot)
        assert worker is not None
        return BreakerChange(worker=worker.name, stage=breaker.stage, state=breaker.state, reason=reason)
