"""An estimate of the time until a job's end, with its spread."""

import itertools
import math
from collections import deque

from ovi_ray.protocol.progress import RemainingTime

_WINDOW = 200  # ends of clips that count: speeds change when devices come and go
_ENOUGH = 3  # ends from which the rate counts
_SPREAD_OF_A_PLAN = 2.0  # assumed speeds of devices, and so the time of a whole run, may be wrong by this factor
_Z80 = 1.2816  # standard deviations within which four of five values of a normal distribution are
_SHORTEST_S = 1.0


class RemainingTimeEstimator:
    """Estimates from the scheduler's plan until clips have ended, and from their rate after that.

    The spread is that of a sum of `left` intervals between ends whose mean is known from `n` of them:
    s * sqrt(left + left^2 / n). An estimate is never zero while clips are left: a job that is late has its rate still.
    """

    def __init__(self) -> None:
        self._ends: deque[float] = deque([0.0], maxlen=_WINDOW)

    def clip_ended(self, now: float) -> None:
        """A clip ended, `now` seconds after the start."""
        self._ends.append(now)

    def remaining(self, left: int, now: float, plan_s: float | None) -> RemainingTime | None:
        """The time for `left` clips; None while nothing is known. `plan_s` is the scheduler's own estimate."""
        if not left:
            return RemainingTime(expected_s=0.0, low_s=0.0, high_s=0.0)
        if len(self._ends) > _ENOUGH:
            return self._by_rate(left, now)
        if plan_s is None or plan_s <= 0:
            return None
        return _bounded(plan_s, plan_s / _SPREAD_OF_A_PLAN, (now + plan_s) * _SPREAD_OF_A_PLAN - now)

    def clips_per_hour(self, now: float) -> float | None:
        """The rate of the last clips; None until a few have ended."""
        if len(self._ends) <= _ENOUGH or now <= self._ends[0]:
            return None
        return (len(self._ends) - 1) * 3600 / (now - self._ends[0])

    def _by_rate(self, left: int, now: float) -> RemainingTime:
        ends = list(self._ends)
        observed = len(ends) - 1
        mean_s = (now - ends[0]) / observed  # up to now: a job that has come to a halt becomes slower
        intervals = [later - earlier for earlier, later in itertools.pairwise(ends)]
        variance = sum((interval - mean_s) ** 2 for interval in intervals) / observed
        spread_s = _Z80 * math.sqrt(variance * (left + left**2 / observed))
        expected_s = left * mean_s
        return _bounded(expected_s, expected_s - spread_s, expected_s + spread_s)


def _bounded(expected_s: float, low_s: float, high_s: float) -> RemainingTime:
    return RemainingTime(
        expected_s=max(_SHORTEST_S, expected_s), low_s=max(_SHORTEST_S, low_s), high_s=max(_SHORTEST_S, high_s)
    )
