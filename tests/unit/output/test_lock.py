"""One driver at a time on an output folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ovi_ray.errors import OutputInUse
from ovi_ray.output import lease as claims
from ovi_ray.output import lock as lock_module
from ovi_ray.output.lease import LOCK, Owner
from ovi_ray.output.lock import output_lock
from ovi_ray.storage.paths import list_files, to_location

HOLD = "import sys, time; from ovi_ray.storage.paths import to_location; from ovi_ray.output.lock import output_lock\n"
HOLD += "with output_lock(to_location(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def fast(monkeypatch):
    """Seconds become hundredths."""
    monkeypatch.setattr(claims, "STALE_S", 1.0)
    monkeypatch.setattr(lock_module, "WATCH_S", 0.05)
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.05)


def write_owner(tmp_path, *, host, age_s=0.0):
    path = tmp_path / LOCK
    path.write_text(Owner(host=host, pid=7, machine=host).to_json(), encoding="utf-8")
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


def test_a_driver_on_another_machine_is_alive_while_it_touches_the_lock(tmp_path, fast):
    write_owner(tmp_path, host="elsewhere")
    beats = threading.Timer(0.3, lambda: os.utime(tmp_path / LOCK))
    beats.start()
    told = []
    with pytest.raises(OutputInUse, match="process 7 on elsewhere"), output_lock(tmp_path, tell=told.append):
        pass
    beats.join()
    assert len(told) == 1
    assert "waiting" in told[0]


def test_a_driver_on_another_machine_that_has_just_gone_silent_is_waited_for(tmp_path, fast):
    write_owner(tmp_path, host="elsewhere")
    started = time.monotonic()
    with output_lock(tmp_path):
        assert time.monotonic() - started >= 0.8


def test_a_driver_on_another_machine_that_was_silent_for_long_is_dead(tmp_path):
    write_owner(tmp_path, host="elsewhere", age_s=claims.STALE_S * 2)
    with output_lock(tmp_path) as lock:
        assert not lock.is_lost


def test_a_released_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with output_lock(tmp_path) as lock:
            assert not lock.is_lost


def test_a_lock_is_touched_and_its_loss_to_another_driver_is_noticed(tmp_path, fast):
    with output_lock(tmp_path) as lock:
        os.utime(tmp_path / LOCK, (1, 1))
        time.sleep(0.3)
        assert (tmp_path / LOCK).stat().st_mtime > time.time() - 60
        write_owner(tmp_path, host="elsewhere")
        time.sleep(0.3)
        assert lock.is_lost


# -- in a store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(s3_bucket):
    return to_location(s3_bucket) / "out"


@pytest.fixture
def store_holder(store):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def claim_from_elsewhere(store):
    other = store / LOCK / "other.json"
    other.write_bytes(Owner(host="elsewhere", pid=7, machine="elsewhere").to_json().encode())
    return other


def test_in_a_store_a_second_driver_is_refused_and_a_dead_one_is_not_in_the_way(store, store_holder):
    with pytest.raises(OutputInUse, match=rf"process {store_holder.pid} on .*another --out"), output_lock(store):
        pass
    store_holder.kill()
    store_holder.wait()
    for _ in range(2):
        with output_lock(store) as lock:
            assert not lock.is_lost
    assert not len(list_files(store / LOCK, ""))


def test_in_a_store_a_driver_elsewhere_that_falls_silent_is_waited_for_and_one_that_beats_is_not(
    store, fast, monkeypatch
):
    monkeypatch.setattr(claims, "STALE_S", 2.5)  # a store tells times in whole seconds
    other = claim_from_elsewhere(store)
    told = []
    with output_lock(store, tell=told.append):
        assert not other.exists()
    assert len(told) == 1
    assert "process 7 on elsewhere has used s3://" in told[0]

    claim_from_elsewhere(store)
    beat = threading.Timer(1.1, claim_from_elsewhere, [store])
    beat.start()
    with pytest.raises(OutputInUse, match="process 7 on elsewhere"), output_lock(store):
        pass
    beat.join()


def test_in_a_store_a_driver_that_was_taken_for_dead_notices(store, fast):
    lost = threading.Event()
    with output_lock(store, on_lost=lost.set):
        (claim,) = list_files(store / LOCK, ".json").column("name").to_pylist()
        (store / LOCK / claim).unlink()
        assert lost.wait(10)
