"""Circuit breakers with exponential backoff, one for each stage of each device.

CLOSED: normal operation. Evidence against the device is collected: tasks that fail in a row, and failed tasks that another
device then finished (refutations). OPEN: in cooldown, the device gets no tasks of the stage. HALF_OPEN: it gets them again; a
success closes the breaker, a failure opens it again for twice as long.

The breakers belong to the device (a `slot`) and outlive the workers that run there one after the other.
"""

from collections.abc import Iterator

from ovi.stages import Stage
from ovi_ray.scheduling.config import CircuitBreakerConfig
from ovi_ray.scheduling.states import BREAKER_TRANSITIONS, check_transition
from ovi_ray.scheduling.task import BreakerReason, BreakerState

_MAX_DOUBLINGS = 20  # keeps the power finite; far beyond any max_cooldown_s


class CircuitBreaker:
    """The state of one device in one stage, and the evidence. Methods that record are transitions; all others are queries."""

    def __init__(self, slot: str, stage: Stage, config: CircuitBreakerConfig) -> None:
        self.slot = slot
        self.stage = stage
        self.state = BreakerState.CLOSED
        self.open_until_s = float("-inf")
        """End of the last cooldown."""
        self.last_failure = ""
        """Message of the last recorded failure."""
        self.is_proven = False
        """A task succeeded since the breaker was last open."""
        self.crashes = 0
        """Workers that died since a task last succeeded."""
        self.accepts_retries = True
        """Whether items that failed before may run here; a probe with one of them would say nothing of the device."""
        self._config = config
        self._failed: set[tuple[int, ...]] = set()  # tasks since one succeeded
        self._flaws: set[tuple[int, ...]] = set()  # tasks since many succeeded in a row
        self._successes = 0  # in a row
        self._refuted = 0.0
        self._trips = 0  # since it was last closed

    # --- queries

    @property
    def is_closed(self) -> bool:
        """Normal operation."""
        return self.state is BreakerState.CLOSED

    @property
    def is_open(self) -> bool:
        """No tasks of the stage."""
        return self.state is BreakerState.OPEN

    @property
    def is_trusted(self) -> bool:
        """In normal operation, and the last task did not fail."""
        return self.is_closed and not self._failed

    def flaws(self, *, without: int | None = None) -> int:
        """Tasks that failed here since many succeeded in a row, but for that of an item."""
        return len(self._flaws - {(without,)})

    @property
    def is_credible(self) -> bool:
        """In normal operation, and nothing says that the device is faulty: a failure here would say something of the item."""
        return self.is_trusted or (self.is_closed and self.is_proven)

    def trip_reason(self) -> BreakerReason | None:
        """Why the evidence suffices to open the breaker; None when it does not, or the breaker is open."""
        if self.is_open:
            return None
        if self.state is BreakerState.HALF_OPEN and self._failed:
            return BreakerReason.PROBE_FAILED
        if self._refuted >= self._config.max_refutations:
            return BreakerReason.REFUTED
        if len(self._failed) >= self._config.max_consecutive_failures:
            return BreakerReason.CONSECUTIVE_FAILURES
        return None

    # --- evidence

    def record_failure(self, items: tuple[int, ...], message: str, *, crashed: bool = False) -> None:
        """A task failed here."""
        self._failed.add(items)
        self._flaws.add(items)
        self._successes = 0
        self.last_failure = message
        self.crashes += crashed

    def record_refutation(self) -> None:
        """Another device finished an item that failed here."""
        self._refuted += 1

    def exonerate(self, item: int) -> None:
        """The item turned out to fail everywhere, which says nothing of this device."""
        self._failed.discard((item,))
        self._flaws.discard((item,))

    def record_success(self) -> bool:
        """A task succeeded here. Returns whether that closed the breaker."""
        self.is_proven = True
        self._refuted /= 2
        self._failed.clear()
        self.crashes = 0
        self._successes += 1
        if self._successes >= self._config.flawless_after:
            self._flaws.clear()
        if self.state is BreakerState.CLOSED:
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
        self._failed.clear()
        self._refuted = 0.0
        self.is_proven = False
        self._trips += 1
        self.open_until_s = now + seconds
        return seconds

    def half_open(self) -> None:
        """The cooldown is over: the next task of the stage is a probe."""
        self._move(BreakerState.HALF_OPEN)
        self.accepts_retries = False

    def accept_retries(self) -> None:
        """No other device can go on: items that failed before may run here although a probe is due."""
        self.accepts_retries = True

    def _move(self, state: BreakerState) -> None:
        subject = f"circuit breaker of {self.slot} for {self.stage}"
        check_transition(BREAKER_TRANSITIONS[self.state], subject, self.state, state)
        self.state = state


class DeviceHealth:
    """The circuit breakers of one device."""

    def __init__(self, slot: str, config: CircuitBreakerConfig) -> None:
        self._breakers = {stage: CircuitBreaker(slot, stage, config) for stage in Stage}

    def __iter__(self) -> Iterator[CircuitBreaker]:
        return iter(self._breakers.values())

    def of(self, stage: Stage) -> CircuitBreaker:
        """The breaker of one stage."""
        return self._breakers[stage]

    @property
    def is_flawless(self) -> bool:
        """Whether nothing failed here of late: a device that fails now and then is trusted in between, and not flawless."""
        return not any(breaker.flaws() for breaker in self)

    def fails_others(self, stage: Stage, item: int) -> bool:
        """Whether anything but an item of a stage failed here of late."""
        return any(breaker.flaws(without=item if breaker.stage is stage else None) for breaker in self)

    @property
    def open_stages(self) -> frozenset[Stage]:
        """Stages of which the device gets no tasks."""
        return frozenset(breaker.stage for breaker in self if breaker.is_open)
