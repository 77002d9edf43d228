"""One driver at a time in an output folder."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovi_ray.errors import OutputInUse, StorageUnavailable
from ovi_ray.output.lease import LOCK, LeaseConfig, lease_of
from ovi_ray.output.lock import output_lock
from ovi_ray.output.owner import Owner
from ovi_ray.storage.paths import to_location
from tests.support.stores import hdfs_folder, memory_folder, overridden

PATIENCE_S = 300.0
FAST = LeaseConfig(heartbeat_s=0.05, stale_s=PATIENCE_S, watch_s=0.05)
"""Renews and looks often; no owner is taken for dead."""
HOLD = "import sys, time; from ovi_ray.storage.paths import to_location; from ovi_ray.output.lock import output_lock\n"
HOLD += "with output_lock(to_location(sys.argv[1])): print('held', flush=True); time.sleep(1e6)"


@contextlib.contextmanager
def held_elsewhere(folder):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def owner_elsewhere():
    return Owner(host="elsewhere", pid=7, machine="elsewhere")


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- every kind of storage ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "memory", "hdfs", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request, tmp_path):
    match request.param:
        case "local":
            found = to_location(tmp_path / "out")
        case "memory":
            found = memory_folder("out")
        case "hdfs":
            found = hdfs_folder(tmp_path)
        case "s3":
            found = to_location(request.getfixturevalue("s3_bucket")) / "out"
    found.mkdir()
    return found


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def object_folder(request):
    """An output folder in a store with conditional writes."""
    if request.param == "memory":
        return memory_folder("out")
    return to_location(request.getfixturevalue("s3_bucket")) / "out"


def lease_file(folder):
    """The lease of a driver elsewhere."""
    if folder.is_local:
        return folder / LOCK
    (folder / LOCK).mkdir()
    return folder / LOCK / ("other.json" if folder.conditional_store is None else "lease.json")


def lease_from_elsewhere(folder, owner):
    """The lease of a driver on another machine, as it is after a renewal."""
    if not folder.is_local:
        lease_file(folder).write_bytes(f"{owner.to_json()}\n{time.monotonic_ns()}\n".encode())
        return
    path = lease_file(folder).local_path
    if not path.exists() or path.read_text() != owner.to_json():
        path.write_text(owner.to_json())  # in place, as a driver writes it: the lock is on the open file
    os.utime(path)


def test_a_second_driver_is_refused_with_who_has_the_folder_and_what_to_do(folder):
    with (
        output_lock(folder),
        pytest.raises(OutputInUse, match=rf"process {os.getpid()} on .*another --out"),
        output_lock(folder),
    ):
        pass


def test_a_released_folder_can_be_taken_again(folder):
    for _ in range(3):
        with output_lock(folder) as lock:
            assert not lock.is_lost


def test_of_two_drivers_that_start_together_at_most_one_has_the_folder_and_in_stores_exactly_one(folder):
    for _ in range(5):
        leases = [lease_of(folder, FAST) for _ in range(2)]
        start = threading.Barrier(2)

        def acquire(lease, start=start):
            start.wait()
            with contextlib.suppress(OutputInUse):
                return lease.acquire() is None
            return False

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(acquire, leases))
        assert sum(won) == 1 or (folder.conditional_store is None and not folder.is_local and sum(won) == 0)
        for lease in leases:
            lease.release()


def test_a_driver_elsewhere_that_renews_its_lease_is_alive(folder):
    owner, told = owner_elsewhere(), []
    lease_from_elsewhere(folder, owner)
    renewals = threading.Event()

    def renew():
        while not renewals.wait(0.1):
            lease_from_elsewhere(folder, owner)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(OutputInUse, match="process 7 on elsewhere"),
            output_lock(folder, tell=told.append, config=FAST),
        ):
            pass
    finally:
        renewals.set()
        thread.join()
    assert len(told) == 1
    assert "process 7 on elsewhere has used" in told[0]


def test_a_driver_elsewhere_that_has_just_gone_silent_is_waited_for(folder):
    lease_from_elsewhere(folder, owner_elsewhere())
    told = []
    config = LeaseConfig(heartbeat_s=0.05, stale_s=3.0, watch_s=0.05)  # stores tell times in whole seconds
    with output_lock(folder, tell=told.append, config=config) as lock:
        assert len(told) == 1
        assert not lock.is_lost


def test_a_driver_elsewhere_that_was_silent_for_long_is_dead(folder):
    lease_from_elsewhere(folder, owner_elsewhere())
    told = []
    with output_lock(folder, tell=told.append, config=LeaseConfig(stale_s=0.0)) as lock:
        assert not lock.is_lost
    assert told == []


@pytest.mark.parametrize("content", ["of the driver", "broken"])
def test_a_silent_driver_is_dead_after_the_usual_time_although_the_clock_was_set_back(tmp_path, content):
    path = tmp_path / LOCK
    path.write_bytes(owner_elsewhere().to_json().encode() if content == "of the driver" else b"\xff\xfe")
    os.utime(path, times=(time.time() + 3600.0,) * 2)
    config = LeaseConfig(heartbeat_s=0.05, stale_s=0.3, watch_s=0.05)
    with output_lock(tmp_path, config=config) as lock:
        assert not lock.is_lost


def test_of_some_that_take_over_a_dead_drivers_lease_in_a_store_exactly_one_has_it(object_folder):
    folder = object_folder
    for _ in range(5):
        lease_from_elsewhere(folder, Owner(born="long ago"))  # of this machine, and ended
        leases = [lease_of(folder, FAST) for _ in range(4)]
        start = threading.Barrier(4)

        def acquire(lease, start=start):
            start.wait()
            with contextlib.suppress(OutputInUse):
                return lease.acquire() is None
            return False

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(acquire, leases)) == 1


def test_a_driver_that_was_taken_for_dead_notices(folder):
    lost = threading.Event()
    with output_lock(folder, on_lost=lost.set, config=FAST) as lock:
        if folder.is_local or folder.conditional_store is not None:
            lease_from_elsewhere(folder, owner_elsewhere())
        else:
            for entry in list((folder / LOCK).files()):
                (folder / LOCK / entry.name).unlink(missing_ok=True)
        assert lost.wait(PATIENCE_S)
        assert lock.is_lost


def test_a_driver_that_lost_its_lease_leaves_it_to_the_next_one(object_folder):
    folder = object_folder
    lease = lease_of(folder, FAST)
    assert lease.acquire() is None
    lease_from_elsewhere(folder, owner_elsewhere())
    lease.release()
    assert b"elsewhere" in lease_file(folder).read_bytes()


@pytest.mark.parametrize("refusal", [None, StorageUnavailable("x")])
def test_a_store_that_ignores_or_refuses_conditional_writes_has_one_driver_at_a_time_too(refusal):
    store = memory_folder("out")

    def create(key, content):
        if refusal is not None:
            raise refusal from OSError("501 <Code>NotImplemented</Code>")
        store.store.write(key, content)
        return "1"

    folder = overridden(store, create=create, replace=lambda key, content, version: create(key, content))
    for _ in range(2):
        with output_lock(folder), pytest.raises(OutputInUse), output_lock(folder):
            pass


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_drivers_lock_is_free_at_once(tmp_path, how):
    told = []
    with held_elsewhere(tmp_path) as holder:
        with pytest.raises(OutputInUse, match=rf"process {holder.pid} on"), output_lock(to_location(tmp_path)):
            pass
        holder.send_signal(how)
        holder.wait()
        with output_lock(to_location(tmp_path), tell=told.append):
            assert Owner.from_json((tmp_path / LOCK).read_text()).pid == os.getpid()
    assert told == []


def test_a_dead_drivers_lease_in_a_store_is_free_at_once(s3_bucket):
    store, told = to_location(s3_bucket) / "out", []
    with held_elsewhere(store) as holder:
        with pytest.raises(OutputInUse, match=rf"process {holder.pid} on"), output_lock(store):
            pass
        holder.kill()
        holder.wait()
        with output_lock(store, tell=told.append) as lock:
            assert not lock.is_lost
    assert told == []


def test_a_frozen_driver_keeps_its_lock(tmp_path):
    with held_elsewhere(tmp_path) as holder:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(OutputInUse), output_lock(to_location(tmp_path)):
            pass


def test_a_lock_on_a_disk_is_touched(tmp_path):
    with output_lock(to_location(tmp_path), config=FAST):
        os.utime(tmp_path / LOCK, (1, 1))
        wait_until(lambda: (tmp_path / LOCK).stat().st_mtime > 1)


# -- a lock file that is removed or replaced -----------------------------------------------------------------------------


def test_a_driver_whose_lock_file_was_removed_makes_another_and_lets_nobody_in(tmp_path):
    lost = threading.Event()
    with output_lock(to_location(tmp_path), on_lost=lost.set, config=FAST):
        for _ in range(2):
            (tmp_path / LOCK).unlink()
            wait_until((tmp_path / LOCK).exists)
        wait_until(lambda: Owner.from_json((tmp_path / LOCK).read_text()))
        with pytest.raises(OutputInUse, match=f"process {os.getpid()} on"), output_lock(to_location(tmp_path)):
            pass
        assert not lost.is_set()
    with output_lock(to_location(tmp_path)):
        pass


def test_a_driver_whose_lock_file_was_replaced_by_a_copy_takes_the_copy(tmp_path):
    lost = threading.Event()
    with output_lock(to_location(tmp_path), on_lost=lost.set, config=FAST):
        copy = tmp_path / "copy"
        copy.write_text((tmp_path / LOCK).read_text())
        os.utime(copy, (1, 1))
        copy.replace(tmp_path / LOCK)
        wait_until(lambda: (tmp_path / LOCK).stat().st_mtime > 1)
        assert not lost.is_set()
        with pytest.raises(OutputInUse), output_lock(to_location(tmp_path)):
            pass


def test_of_two_drivers_that_a_removed_lock_file_let_in_the_first_notices(tmp_path):
    lost, slow = threading.Event(), LeaseConfig(heartbeat_s=0.5, stale_s=PATIENCE_S, watch_s=0.05)
    with output_lock(to_location(tmp_path), on_lost=lost.set, config=slow) as first:
        (tmp_path / LOCK).unlink()
        with output_lock(to_location(tmp_path), config=FAST) as second:
            assert lost.wait(PATIENCE_S)
            assert first.is_lost
            assert not second.is_lost
    assert (tmp_path / LOCK).exists()


def test_a_folder_that_is_away_for_a_while_is_not_lost_and_no_lock_is_made_in_another_one(tmp_path):
    out, lost = tmp_path / "out", threading.Event()
    out.mkdir()
    with output_lock(to_location(out), on_lost=lost.set, config=FAST) as lock:
        out.rename(tmp_path / "away")
        out.mkdir()
        os.utime(tmp_path / "away" / LOCK, (1, 1))
        time.sleep(4 * FAST.heartbeat_s)
        assert not list(out.iterdir())
        out.rmdir()
        (tmp_path / "away").rename(out)
        wait_until(lambda: (out / LOCK).stat().st_mtime > 1)
        assert not lock.is_lost


def test_a_lease_that_was_removed_from_a_store_is_taken_again_unless_another_driver_was_faster(object_folder):
    lost = threading.Event()
    with output_lock(object_folder, on_lost=lost.set, config=FAST) as lock:
        lease_file(object_folder).unlink()
        wait_until(lease_file(object_folder).exists)
        assert not lock.is_lost
        lease_file(object_folder).unlink(missing_ok=True)
        lease_from_elsewhere(object_folder, owner_elsewhere())
        assert lost.wait(PATIENCE_S)
