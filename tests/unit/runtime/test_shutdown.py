"""A request to stop, made by signals."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals
from tests.support.waiting import PATIENCE_S, wait_until


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "is_bounded"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
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


def test_a_closed_terminal_asks_once_however_many_signals_it_sends():
    stop, codes = StopRequest(), []
    with stop_on_signals(stop, grace_s=5.0, end_s=0.0, end=codes.append), stop.watched():
        for _ in range(3):
            send(signal.SIGHUP)
        assert stop.reason == "SIGHUP"
        assert stop.deadline < math.inf
    assert codes == []


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


# -- the main thread may wait where it handles no signal -----------------------------------------------------------------

ASK = """
import os, signal, sys
from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals
from ovi_ray.storage.paths import to_location
stop = StopRequest()
try:
    with stop_on_signals(stop), stop.watched():
        print('asks', flush=True)
        to_location(sys.argv[1]).read_bytes()
finally:
    print('the store has answered', flush=True)
"""


def pending_signals(pid):
    """Signals that were sent to a process and that it has not received."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:")))


def test_a_second_ctrl_c_ends_a_process_that_waits_for_a_store_which_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", ASK, "s3://bucket/file"],
            env={**os.environ, **environment, "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout.readline() == "asks\n"
            connection, _ = silent.accept()  # the request is under way
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                wait_until(lambda: not pending_signals(process.pid))  # two that are pending count as one
            assert process.wait(PATIENCE_S) == 130
            assert process.stdout.read() == ""
            connection.close()
        finally:
            process.kill()
            process.wait()


def test_a_process_that_ends_in_time_is_left_alone():
    codes = []
    for _ in range(3):
        stop = StopRequest()
        with stop_on_signals(stop, end_s=1e6, end=codes.append), stop.watched():
            send(signal.SIGINT)
            assert stop.is_asked
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
    assert codes == []


def test_a_process_that_does_not_end_is_ended_with_the_code_of_its_signal():
    codes, ended = [], threading.Event()

    def end(code):
        codes.append(code)
        ended.set()

    stop = StopRequest()
    with stop_on_signals(stop, end_s=0.0, end=end), stop.watched():
        send(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        assert ended.wait(PATIENCE_S)
    assert codes == [143]
