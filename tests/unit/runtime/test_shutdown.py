"""A request to stop, made by signals."""

import math
import os
import signal

import pytest

from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "is_bounded"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGHUP, True)]
)
def test_the_first_signal_asks_and_the_second_ends(number, is_bounded):
    stop = StopRequest()
    with stop_on_signals(stop, grace_s=5.0), stop.watched():
        send(number)
        assert stop.reason == signal.Signals(number).name
        assert (stop.deadline < math.inf) == is_bounded
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_a_signal_while_no_driver_looks_ends_the_program_at_once():
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(stop):
        send(signal.SIGTERM)
    assert stop.reason == "SIGTERM"


def test_handlers_that_another_library_put_in_place_meanwhile_are_replaced(monkeypatch):
    stop = StopRequest()
    with stop_on_signals(stop):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop.watched():
            send(signal.SIGTERM)
    assert stop.is_asked


def test_a_job_under_nohup_goes_on_when_its_terminal_is_closed():
    stop = StopRequest()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(stop), stop.watched():
            send(signal.SIGHUP)
            assert not stop.is_asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_earlier_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_on_signals(StopRequest()):
        pass
    assert signal.getsignal(number) is before
