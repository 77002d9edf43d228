"""Takes workers on failing devices out of service, and reinstates them after their cooldown.

The evidence and the state are the circuit breaker's (circuit_breaker.py); this module applies them to the workers.
"""

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Action, WakeAt
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.task import BreakerChange, BreakerReason, BreakerState
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


class Quarantine:
    """Applies the circuit breakers to the workers of the pool."""

    def __init__(self, pool: WorkerPool, retries: RetryTracker, dispatcher: Dispatcher) -> None:
        self._pool = pool
        self._retries = retries
        self._dispatcher = dispatcher

    # --- queries

    @property
    def ends_at(self) -> float | None:
        """When the next quarantined worker is to be reinstated; None when there is none."""
        return min((worker.breaker.open_until_s for worker in self._pool.quarantined.values()), default=None)

    def _others_go_on(self, worker: WorkerState, stage: Stage) -> bool:
        """Whether another worker, on a device that is not on probation itself, can run the stage."""
        return any(
            other.number != worker.number and other.breaker.is_closed and self._pool.fits(other, stage, worker.kind)
            for other in self._pool.workers.values()
        )

    # --- changes

    def worker_joined(self, worker: WorkerState, now: float) -> None:
        """A worker starts in service unless its device is cooling down."""
        if worker.breaker.is_cooling_down(now):
            self._pool.quarantine(worker)
        else:
            self._put_into_service(worker)

    def reinstate(self, now: float) -> list[Action]:
        """Put the workers whose cooldown is over back into service, on probation."""
        due = [worker for worker in self._pool.quarantined.values() if worker.breaker.open_until_s <= now]
        for worker in due:
            self._pool.reinstate(worker)
            self._put_into_service(worker)
        return [_change(worker, BreakerState.HALF_OPEN, BreakerReason.COOLDOWN_OVER) for worker in due]

    def _put_into_service(self, worker: WorkerState) -> None:
        if not worker.breaker.is_closed:
            worker.breaker.half_open()
        self._dispatcher.worker_available(worker)

    def record_success(self, worker: WorkerState, stage: Stage) -> list[Action]:
        """A task of the worker succeeded."""
        if worker.breaker.record_success(stage):
            return [_change(worker, BreakerState.CLOSED, BreakerReason.PROBE_DONE)]
        return []

    def refute(self, stage: Stage, item: int, finished_by: WorkerState, now: float) -> list[Action]:
        """A worker finished an item: where it failed before, the device was at fault."""
        actions: list[Action] = []
        for slot in sorted(self._retries.charged_slots((stage, item)) - {finished_by.slot}):
            self._pool.breaker(slot).record_refutation(stage)
            worker = self._pool.occupant(slot)
            if worker is not None and worker.running is None:  # otherwise when its task fails
                actions += self.trip_if_faulty(worker, stage, now)
        return actions

    def exonerate(self, stage: Stage, item: int) -> None:
        """An item was given up: its failures say nothing of the devices."""
        for slot in self._retries.charged_slots((stage, item)):
            self._pool.breaker(slot).exonerate(stage, item)

    def trip_if_faulty(self, worker: WorkerState, stage: Stage, now: float) -> list[Action]:
        """Open the breaker of an idle or lost worker if there is evidence against it and others can run the stage.

        Its failures then do not count against the items any more. Returns no actions when the breaker stays as it is.
        """
        breaker = worker.breaker
        reason = breaker.trip_reason()
        if reason is None or not self._others_go_on(worker, stage):
            return []
        cooldown_s = breaker.trip(now)
        self._retries.forgive(worker.slot)
        if worker.number in self._pool.workers:
            self._dispatcher.worker_unavailable(worker)
            self._pool.quarantine(worker)
        opened = BreakerChange(
            worker=worker.name,
            state=breaker.state,
            reason=reason,
            cooldown_s=cooldown_s,
            last_failure=breaker.last_failure,
        )
        return [opened, WakeAt(time=breaker.open_until_s)]


def _change(worker: WorkerState, state: BreakerState, reason: BreakerReason) -> BreakerChange:
    return BreakerChange(worker=worker.name, state=state, reason=reason)
