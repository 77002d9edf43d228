"""The driver of a cluster whose head is gone: what it notices, and when it ends for it."""

import socket

import pytest

from ovi_ray.runtime.cluster_watch import ClusterWatch
from ovi_ray.runtime.head_watch import HeadConfig, HeadWatch, accepts_connections
from tests.support.fake_executor import FakeClock
from tests.support.waiting import wait_until


def config(**changes):
    return HeadConfig(**{"save_after_s": 36.0, "save_s": 12.0, "end_after_s": 54.0, "interval_s": 0.01, **changes})


class FakeHead:
    """A head that answers or not."""

    def __init__(self):
        self.is_there = True

    def accepts(self, address, timeout_s):
        return self.is_there


def watch_of(head, clock, **options):
    return HeadWatch("head:6379", config(), accepts=head.accepts, clock=clock.now, **options)


def test_a_head_that_is_silent_for_a_while_is_waited_for_and_one_that_is_silent_for_long_is_lost():
    head, clock = FakeHead(), FakeClock()
    watch = watch_of(head, clock)
    try:
        head.is_there = False
        assert not watch.answers()
        clock.sleep(35.0)
        assert (watch.is_silent, watch.is_lost) == (True, False)
        head.is_there = True
        wait_until(lambda: not watch.is_silent)
        clock.sleep(900.0)
        head.is_there = False
        wait_until(lambda: watch.is_silent)
        assert not watch.is_lost
        clock.sleep(36.0)
        assert watch.is_lost
        assert "head:6379 has not answered for 36 s" in str(watch)
    finally:
        watch.close()


def test_a_driver_that_does_not_come_back_from_ray_is_ended_before_ray_does_it():
    head, clock, ends = FakeHead(), FakeClock(), []
    watch = watch_of(head, clock, on_overdue=ends.append)
    try:
        head.is_there = False
        wait_until(lambda: watch.is_silent)
        clock.sleep(54.0)
        wait_until(lambda: ends)
    finally:
        watch.close()
    assert len(ends) == 1
    assert "54 s" in ends[0]


def test_a_head_that_does_not_answer_is_not_asked_for_its_nodes():
    head, clock, asked = FakeHead(), FakeClock(), []
    watch = ClusterWatch(
        interval_s=0.5,
        alive=lambda: asked.append(clock.now()) or {"node"},
        draining=set,
        answers=lambda: head.is_there,
        clock=clock.now,
    )
    head.is_there = False
    clock.sleep(1.0)
    assert watch.look() is None
    head.is_there = True
    clock.sleep(1.0)
    assert watch.look().joined == set()
    assert asked == [0.0, 2.0]


def test_a_port_accepts_connections_while_something_listens_there():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert accepts_connections(address, 5.0)
    assert not accepts_connections(address, 5.0)


def test_the_times_follow_those_of_ray(monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    patient = HeadConfig()
    assert (patient.save_after_s, patient.save_s, patient.end_after_s) == (360.0, 120.0, 540.0)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "soon")
    assert HeadConfig().save_after_s == 36.0
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    assert HeadConfig().end_after_s == 4.5


def test_times_that_are_out_of_order_are_refused():
    with pytest.raises(ValueError, match="end_after_s 40"):
        config(end_after_s=40.0)
