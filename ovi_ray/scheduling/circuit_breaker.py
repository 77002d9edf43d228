"""Per-device circuit breaker with exponential backoff.

CLOSED: normal operation. Evidence against the device is collected per stage: tasks that fail in a row, and failed tasks that
another device then finished (refutations). OPEN: in cooldown, no tasks. HALF_OPEN: the device gets tasks again and closes its
breaker with a success at each stage it was opened for; one failure opens it again for twice as long.

The breaker belongs to the device (a `slot`) and outlives the workers that run there one after the other.
"""

from collections import defaultdict

from ovi.stages import Stage
from ovi_ray.scheduling.config import CircuitBreakerConfig
from ovi_ray.scheduling.states import BREAKER_TRANSITIONS, check_transition
from ovi_ray.scheduling.task import BreakerReason, BreakerState

_MAX_DOUBLINGS = 20  # keeps the power finite; far beyond any max_cooldown_s


class CircuitBreaker:
    """The state of one device and the evidence against it. Methods that record are transitions; all others are queries."""

    def __init__(self, slot: str, config: CircuitBreakerConfig) -> None:
        self.slot = slot
        self.state = BreakerState.CLOSED
        self.open_until_s = float("-inf")
        """End of the last cooldown."""
        self.last_failure = ""
        """Message of the last recorded failure."""
        self.accepts_retries = True
        """Whether items that failed before may run here; a probe with one of them would say nothing of the device."""
        self._config = config
        self._failed: defaultdict[Stage, set[tuple[int, ...]]] = defaultdict(set)  # since a success of the stage
        self._refuted: defaultdict[Stage, float] = defaultdict(float)
        self._unproven: set[Stage] = set()  # need a success before the breaker closes
        self._trips = 0  # since it was last closed

    # --- queries

    @property
    def is_closed(self) -> bool:
        """Normal operation."""
        return self.state is BreakerState.CLOSED

    def is_cooling_down(self, now: float) -> bool:
        """Open, with time left on the cooldown."""
        return self.state is BreakerState.OPEN and self.open_until_s > now

    def trip_reason(self) -> BreakerReason | None:
        """Why the evidence suffices to open the breaker; None when it does not, or the breaker is open."""
        config = self._config
        if self.state is BreakerState.OPEN:
            return None
        if self.state is BreakerState.HALF_OPEN and any(self._failed.values()):
            return BreakerReason.PROBE_FAILED
        if any(refuted >= config.max_refutations for refuted in self._refuted.values()):
            return BreakerReason.REFUTED
        if any(len(tasks) >= config.max_consecutive_failures for tasks in self._failed.values()):
            return BreakerReason.CONSECUTIVE_FAILURES
        return None

    # --- evidence

    def record_failure(self, stage: Stage, items: tuple[int, ...], message: str) -> None:
        """A task failed here."""
        self._failed[stage].add(items)
        self.last_failure = message

    def record_refutation(self, stage: Stage) -> None:
        """Another device finished an item that failed here."""
        self._refuted[stage] += 1

    def exonerate(self, stage: Stage, item: int) -> None:
        """The item turned out to fail everywhere, which says nothing of this device."""
        self._failed[stage].discard((item,))

    def record_success(self, stage: Stage) -> bool:
        """A task succeeded here. Returns whether that closed the breaker."""
        self._failed.pop(stage, None)
        if self._refuted:
            self._refuted[stage] /= 2
        if stage not in self._unproven:
            return False
        self._unproven.remove(stage)
        if self._unproven:
            return False
        self._move(BreakerState.CLOSED)
        self._trips = 0
        self.accepts_retries = True
        return True

    # --- transitions

    def trip(self, now: float) -> float:
        """Open the breaker. Returns the seconds of the cooldown."""
        config = self._config
        seconds = min(config.max_cooldown_s, config.cooldown_s * 2 ** min(self._trips, _MAX_DOUBLINGS))
        self._move(BreakerState.OPEN)
        self._unproven.update(stage for stage, tasks in self._failed.items() if tasks)
        self._unproven.update(s for s, refuted in self._refuted.items() if refuted >= config.max_refutations)
        self._failed.clear()
        self._refuted.clear()
        self._trips += 1
        self.open_until_s = now + seconds
        return seconds

    def half_open(self) -> None:
        """A worker starts or returns after the cooldown: its next task is a probe."""
        if self.state is not BreakerState.HALF_OPEN:
            self._move(BreakerState.HALF_OPEN)
        self.accepts_retries = False

    def accept_retries(self) -> None:
        """No other device can go on: items that failed before may run here although a probe is due."""
        self.accepts_retries = True

    def _move(self, state: BreakerState) -> None:
        check_transition(BREAKER_TRANSITIONS[self.state], f"circuit breaker of {self.slot}", self.state, state)
        self.state = state
