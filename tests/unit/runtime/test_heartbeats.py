"""Whom the driver asks for a sign of life, and which workers answer although their task hangs."""

import pytest
import ray

from ovi_ray.protocol.messages import Activity
from ovi_ray.runtime.heartbeats import Heartbeats, StallConfig, Stalls
from tests.support.fake_executor import FakeClock

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


class FakeActor:
    """An actor that notes each request, which is its own reference."""

    def __init__(self, name, asked):
        self._name = name
        self._asked = asked
        self.activity = self

    def remote(self):
        self._asked.append(self._name)
        return self._name, len(self._asked)


def answering(monkeypatch):
    """Let every request be answered at the next look."""
    monkeypatch.setattr(ray, "wait", lambda refs, **options: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: Activity(done=ref[1], total=0))


def heartbeats(clock, **options):
    return Heartbeats(**{"interval_s": 0.5, "timeout_s": 120.0, "stalls": CONFIG, "clock": clock.now, **options})


def test_of_many_workers_some_are_asked_at_a_time_and_each_in_its_turn(monkeypatch):
    answering(monkeypatch)
    clock, asked = FakeClock(), []
    actors = {name: FakeActor(name, asked) for name in ("w0", "w1", "w2", "w3")}
    beats = heartbeats(clock, at_a_time=2)
    for _ in range(4):
        beats.ask(actors)
        beats.ask(actors)  # it is not due
        clock.sleep(0.5)
    assert len(asked) == 8
    assert set(asked[:4]) == set(asked[4:]) == set(actors)


def test_a_worker_is_not_asked_again_before_it_has_answered_and_is_unresponsive_after_a_while(monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda refs, **options: ([], refs))
    clock, asked = FakeClock(), []
    beats = heartbeats(clock, timeout_s=10.0)
    for _ in range(3):
        beats.ask({"w0": FakeActor("w0", asked)})
        assert beats.unresponsive() == set()
        clock.sleep(4.0)
    assert asked == ["w0"]
    assert beats.unresponsive() == {"w0"}
    beats.forget("w0")
    assert beats.unresponsive() == set()
