"""The times at which the scheduler asked to be called."""

import math

from ovi_ray.runtime.wake_ups import WakeUps


def wake_ups(*times):
    pending = WakeUps()
    for time in times:
        pending.add(time)
    return pending


def test_every_time_is_kept_whatever_their_order():
    pending = wake_ups(5.0, 1.0, 3.0)
    assert [pending.take_due(now) for now in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)] == [
        False,
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_times_that_passed_together_wake_once():
    pending = wake_ups(1.0, 2.0, 2.0)
    assert pending.take_due(10.0)
    assert not pending.take_due(10.0)


def test_the_delay_is_until_the_next_time():
    assert wake_ups(7.0, 4.0).delay(1.5) == 2.5
    assert wake_ups(7.0, 4.0).delay(5.0) == 0.0
    assert wake_ups().delay(0.0) == math.inf
