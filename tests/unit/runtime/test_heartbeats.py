"""Whom the driver asks for a sign of life, and when."""

import ray

from ovi_ray.protocol.messages import Activity
from ovi_ray.runtime.heartbeats import Heartbeats
from tests.support.fake_executor import FakeClock


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
    return Heartbeats(**{"interval_s": 0.5, "timeout_s": 120.0, "clock": clock.now, **options})


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
