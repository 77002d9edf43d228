"""Workers that answer although their task hangs."""

import pytest

from ovi_ray.protocol.messages import Activity
from ovi_ray.runtime.heartbeats import StallConfig, Stalls

CONFIG = StallConfig(first_s=3600.0, next_s=600.0, longest_times=20.0, answers=3)


def activity(quiet_s, *, done=0, total=50, longest_quiet_s=0.0):
    return Activity(done=done, total=total, quiet_s=quiet_s, longest_quiet_s=longest_quiet_s)


def stalled(*answers):
    stalls = Stalls(CONFIG)
    for answer in answers:
        stalls.note("w0", answer)
    return stalls.stalled()


@pytest.mark.parametrize(
    ("hangs", "works"),
    [
        (activity(3601.0), activity(3599.0)),
        (activity(3601.0, total=0), activity(3599.0, total=0)),  # texts and first frames have no steps
        (activity(601.0, done=3, longest_quiet_s=10.0), activity(599.0, done=3, longest_quiet_s=10.0)),
        (activity(2001.0, done=3, longest_quiet_s=100.0), activity(1999.0, done=3, longest_quiet_s=100.0)),
        (activity(3601.0, done=50, longest_quiet_s=1.0), activity(3599.0, done=50, longest_quiet_s=1.0)),  # it saves
    ],
)
def test_a_task_hangs_that_does_not_go_on_for_far_longer_than_its_steps_take(hangs, works):
    assert stalled(*[hangs] * CONFIG.answers) == {"w0"}
    assert stalled(*[works] * 100) == set()


def test_one_old_answer_is_not_enough_and_a_task_that_goes_on_again_is_let_be():
    assert stalled(activity(4000.0), activity(4000.0)) == set()
    assert stalled(activity(4000.0), activity(4000.0), activity(0.0), activity(4000.0)) == set()


def test_a_worker_that_is_replaced_is_forgotten():
    stalls = Stalls(CONFIG)
    for _ in range(CONFIG.answers):
        stalls.note("w0", activity(4000.0))
    stalls.forget("w0")
    assert stalls.stalled() == set()
