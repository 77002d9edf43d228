"""The suite's own promises: markers are true, and deadlines end only what hangs."""

import itertools
import os
import subprocess
import sys

import pytest

from tests.support.cli import ROOT
from tests.support.waiting import SCALE, under_load, wait_until

START_RAY = "import ray; ray.init('local', num_cpus=1, include_dashboard=False)"


def test_a_test_without_the_marker_cannot_start_ray():
    import ray

    with pytest.raises(pytest.fail.Exception, match="mark it `ray`"):
        ray.init("local", num_cpus=1, include_dashboard=False)


def test_nor_can_a_process_that_it_starts():
    started = subprocess.run(
        [sys.executable, "-c", START_RAY], capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False
    )
    assert started.returncode != 0
    assert "mark it `ray`" in started.stderr


def test_a_test_without_the_marker_cannot_get_the_s3_server(request):
    with pytest.raises(pytest.fail.Exception, match="mark it `s3`"):
        request.getfixturevalue("s3_bucket")


def test_waiting_ends_with_the_first_true_value():
    values = itertools.chain([0, 0, 7], itertools.repeat(8))
    assert wait_until(lambda: next(values), every_s=0) == 7


def test_waiting_ends_at_once_when_there_is_nothing_left_to_wait_for():
    with pytest.raises(AssertionError, match="the process has ended"):
        wait_until(lambda: False, give_up=lambda: "the process has ended")


def test_waiting_ends_at_its_deadline():
    with pytest.raises(TimeoutError, match="not within 0 s"):
        wait_until(lambda: False, timeout_s=0, every_s=0)


def test_a_limit_that_a_test_waits_out_is_longer_on_a_busy_machine(monkeypatch):
    cpus = os.cpu_count()
    for load, factor in ((0, 1), (cpus / 2, 1), (10 * cpus, 20)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert under_load(3.0) == pytest.approx(3.0 * factor * SCALE)
