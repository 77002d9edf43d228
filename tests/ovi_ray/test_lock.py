"""One driver at a time on an output folder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ovi_ray import lock as lock_module
from ovi_ray.errors import OutputInUse
from ovi_ray.lock import LOCK, output_lock

HOLD = "import sys, time; from pathlib import Path; from ovi_ray.lock import output_lock\n"
HOLD += "with output_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def write_owner(tmp_path, *, host, age_s):
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": host, "pid": 7, "token": "t"}), encoding="utf-8")
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_second_driver_is_refused_with_who_has_the_folder_and_what_to_do(tmp_path, holder):
    with pytest.raises(OutputInUse, match=rf"process {holder.pid} on .*another --out"), output_lock(tmp_path):
        pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_drivers_lock_is_free_at_once(tmp_path, holder, how):
    holder.send_signal(how)
    holder.wait()
    with output_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_frozen_driver_keeps_its_lock(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(OutputInUse), output_lock(tmp_path):
        pass


def test_a_driver_on_another_machine_is_alive_while_it_touches_the_lock(tmp_path):
    write_owner(tmp_path, host="elsewhere", age_s=lock_module.STALE_S / 2)
    with pytest.raises(OutputInUse, match="process 7 on elsewhere"), output_lock(tmp_path):
        pass


def test_a_driver_on_another_machine_that_was_silent_for_long_is_dead(tmp_path):
    write_owner(tmp_path, host="elsewhere", age_s=lock_module.STALE_S * 2)
    with output_lock(tmp_path) as lock:
        assert not lock.is_lost


def test_a_released_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with output_lock(tmp_path) as lock:
            assert not lock.is_lost


def test_a_lock_is_touched_and_its_loss_to_another_driver_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.05)
    with output_lock(tmp_path) as lock:
        os.utime(tmp_path / LOCK, (1, 1))
        time.sleep(0.3)
        assert (tmp_path / LOCK).stat().st_mtime > time.time() - 60
        write_owner(tmp_path, host="elsewhere", age_s=0)
        time.sleep(0.3)
        assert lock.is_lost
