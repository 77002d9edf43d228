"""Particular to the executor on Ray: lost objects, frozen workers, slots that are given up."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, ObjectLostError, OutOfMemoryError

from ovi.config import Component, SamplingParams
from ovi.stages import DataKind, Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.protocol.messages import Denoise, EncodeTexts, Preload
from ovi_ray.runtime.autoscaling import Autoscaling
from ovi_ray.runtime.changing_cluster import ChangingCluster
from ovi_ray.runtime.cluster_watch import Changes, ClusterWatch, process_of
from ovi_ray.runtime.executor import (
    NodeRefused,
    SlotsUnplaceable,
    Submission,
    TaskEnded,
    WorkerReplaced,
    WorkerStarted,
    WorkerStarting,
)
from ovi_ray.runtime.fair_share import FairShare
from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.ray_errors import is_crash, is_worker_loss
from ovi_ray.runtime.ray_executor import ExecutorConfig, RayExecutor
from ovi_ray.runtime.slot_history import SlotHistory
from ovi_ray.runtime.unplaceable import PlaceFinder, alive_nodes
from ovi_ray.scheduling.events import DataLost, TaskDone, WorkerLost
from ovi_ray.scheduling.task import DataKey, FailureKind, Task
from ovi_ray.workers.actor import WorkerConfig
from ovi_ray.workers.requirements import requirements_here
from tests.support.fake_table import FakeTable
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.ray


TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
TEXT_KEYS = tuple(DataKey(kind=DataKind.TEXT, number=number) for number in range(3))
LATENTS = DataKey(kind=DataKind.LATENTS, number=0)
SLOW = SamplingParams(video_frame_height_width=(64, 64), sample_steps=100_000, slg_layer=1)


@pytest.fixture(scope="module")
def local_ray():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def start_executor(local_ray):
    """Starts executors with one worker, and stops them."""
    started = []

    def start(ckpt_dir, *, workers=1, placements=None, cluster=None, finder=None, **config):
        worker = WorkerConfig(
            ckpt_dir=str(ckpt_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1
        )
        placement = Placement(config=worker, num_cpus=1, num_gpus=0)
        settings = ExecutorConfig(**config)
        started.append(
            RayExecutor(placements or [placement] * workers, config=settings, cluster=cluster, finder=finder)
        )
        return started[-1]

    yield start
    for executor in started:
        executor.shutdown()


def wait_for(executor, *kinds):
    """The first event of each kind."""
    found, deadline = {}, time.monotonic() + PATIENCE_S
    while len(found) < len(kinds) and time.monotonic() < deadline:
        for event in executor.poll(1.0):
            kind = type(event.event if isinstance(event, TaskEnded) else event)
            if kind in kinds:
                found.setdefault(kind, event)
    assert set(found) == set(kinds)
    return [found[kind] for kind in kinds]


def submit(executor, task, work, components, inputs=(), outputs=(), worker="w0"):
    executor.submit(
        Submission(
            worker=worker,
            task=task,
            work=work,
            model_name="720x720_5s",
            components=components,
            inputs=inputs,
            outputs=outputs,
        )
    )


def encode_texts(executor, worker="w0"):
    task = Task(stage=Stage.ENCODE_TEXT, items=(0, 1, 2))
    submit(executor, task, EncodeTexts(texts=("a fox", "blur", "noise")), TEXT, outputs=TEXT_KEYS, worker=worker)
    wait_for(executor, TaskDone)


@ray.remote(num_cpus=0)
def lost():
    """Raised by `ray.get` for an object that went down with its node."""
    raise ObjectLostError("00", "", "")


@pytest.mark.ray
def test_an_input_that_went_down_with_its_node_is_reported_lost_and_no_clip_is_charged(start_executor, tiny_dir):
    executor = start_executor(tiny_dir)
    wait_for(executor, WorkerStarted)
    encode_texts(executor)
    executor._data[TEXT_KEYS[1]] = lost.remote()
    tasks = [Task(stage=Stage.DENOISE, items=(clip,)) for clip in range(2)]
    for task in tasks:  # both are submitted before the first one finds the input lost
        submit(executor, task, Denoise(params=SLOW), TRANSFORMER, inputs=TEXT_KEYS, outputs=(LATENTS,))
    events, deadline = [], time.monotonic() + PATIENCE_S
    while len(events) < 3 and time.monotonic() < deadline:
        events += executor.poll(1.0)
    assert DataLost(key=TEXT_KEYS[1]) in events
    failed = [event.event for event in events if isinstance(event, TaskEnded)]
    assert {event.task for event in failed} == set(tasks)
    assert {event.kind for event in failed} == {FailureKind.CANCELLED}
    assert not executor.holds(TEXT_KEYS[1])
    assert executor.holds(TEXT_KEYS[0])


@ray.remote(num_cpus=0)
def ended_for_memory():
    """Raised by `ray.get` for all that a worker was given which Ray has ended."""
    raise OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")


@pytest.mark.ray
def test_a_worker_that_ray_ends_for_memory_is_replaced_and_is_given_no_further_clip_to_fail(start_executor, tiny_dir):
    executor = start_executor(tiny_dir)
    wait_for(executor, WorkerStarted)
    submit(executor, Task(stage=Stage.DENOISE, items=()), Preload(), TRANSFORMER)
    (running,) = executor._running.values()
    executor._running = {ended_for_memory.remote(): running}
    lost_worker, replaced = wait_for(executor, WorkerLost, WorkerReplaced)
    assert lost_worker == WorkerLost(worker="w0", crashed=True)
    assert (replaced.slot, replaced.successor) == ("w0", "w0.1")
    assert "low on memory" in replaced.reason
    assert "low on memory" in executor.last_death


@pytest.mark.ray
def test_a_frozen_worker_is_killed_and_replaced(start_executor, tiny_dir):
    executor = start_executor(tiny_dir, unresponsive_after_s=1.0)
    (started,) = wait_for(executor, WorkerStarted)
    os.kill(started.info.pid, signal.SIGSTOP)
    submit(executor, Task(stage=Stage.DENOISE, items=()), Preload(), TRANSFORMER)
    lost_worker, replaced = wait_for(executor, WorkerLost, WorkerReplaced)
    assert lost_worker == WorkerLost(worker="w0", crashed=True)
    assert (replaced.slot, replaced.successor) == ("w0", "w0.1")


@pytest.mark.ray
def test_a_worker_that_freezes_while_it_starts_is_killed_and_replaced(start_executor, tiny_dir):
    executor = start_executor(tiny_dir, start_timeout_s=0.2)
    (slot,) = executor._slots.occupied.values()
    wait_until(lambda: process_of(slot.actor))
    frozen = process_of(slot.actor)
    os.kill(frozen, signal.SIGSTOP)
    (replaced,) = wait_for(executor, WorkerReplaced)
    assert (replaced.worker, replaced.slot, replaced.successor) == ("w0", "w0", "w0.1")
    wait_until(lambda: not Path(f"/proc/{frozen}").exists())


@pytest.mark.ray
def test_a_worker_that_cannot_start_is_given_up_with_the_reason(start_executor, tmp_path):
    (tmp_path / "architecture.json").write_text("not json", encoding="utf-8")
    executor = start_executor(tmp_path, max_consecutive_failures=2)
    replaced, deadline = [], time.monotonic() + PATIENCE_S
    while not executor.is_empty and time.monotonic() < deadline:
        replaced += executor.poll(5.0)
    assert executor.is_empty
    assert replaced.pop(0) == WorkerStarting(worker="w0", slot="w0")
    assert all(isinstance(event, WorkerReplaced) for event in replaced)
    assert [(event.worker, event.slot, event.successor) for event in replaced] == [
        ("w0", "w0", "w0.1"),
        ("w0.1", "w0", ""),
    ]
    assert "architecture.json" in replaced[0].reason
    assert "architecture.json" in executor.last_death


class FakeNodes:
    """The nodes that a cluster says it has, whatever Ray has."""

    def __init__(self):
        self.alive = set()
        self.draining = set()
        self.requested = []

    def cluster(self, *, room, requires=None, asks=None, share=None):
        """`room` are the placements that there is room for, given the nodes to leave out."""
        watch = ClusterWatch(interval_s=0.01, alive=lambda: self.alive, draining=lambda: self.draining)
        autoscaling = None if asks is None else Autoscaling(ask=asks)
        return ChangingCluster(watch=watch, place=room, requires=requires, autoscaling=autoscaling, share=share)


@pytest.mark.ray
def test_workers_make_way_for_another_job_and_go_when_they_are_not_needed_and_save_when_their_node_leaves(
    start_executor, tiny_dir, tmp_path
):
    nodes, asked, table = FakeNodes(), [], FakeTable()
    share = FairShare(priority=0, table=table, devices=lambda: {"CPU": 2}, interval_s=0.01)
    cluster = nodes.cluster(room=lambda unfit: [], asks=lambda bundles, selectors: asked.append(bundles), share=share)
    executor = start_executor(tiny_dir, workers=2, cluster=cluster, idle_release_s=0.01)
    executor.need(2)
    first, second = (wait_for(executor, WorkerStarted)[0] for _ in range(2))

    table.put("another", '{"priority": 0, "workers": {"CPU": 2}, "beat": 1}')
    lost_worker, replaced = wait_for(executor, WorkerLost, WorkerReplaced)
    assert (lost_worker.worker, replaced.slot, replaced.waits) == ("w1", "w1", True)
    table.remove("another")
    (again,) = wait_for(executor, WorkerStarted)
    assert (again.worker, again.slot) == (replaced.successor, "w1")

    first, second = (first, again) if first.slot == "w0" else (second, again)
    executor.need(1)
    lost_worker, replaced = wait_for(executor, WorkerLost, WorkerReplaced)
    assert (lost_worker.crashed, replaced.successor) == (False, "")
    (kept,) = [started for started in (first, second) if started.worker != lost_worker.worker]

    encode_texts(executor, kept.worker)
    work = Denoise(params=SLOW, clip_id="c", checkpoint_path=str(tmp_path / "c.safetensors"), checkpoint_s=1e9)
    task = Task(stage=Stage.DENOISE, items=(0,))
    submit(executor, task, work, TRANSFORMER, inputs=TEXT_KEYS, outputs=(LATENTS,), worker=kept.worker)
    wait_until(lambda: any(activity.done for activity in executor.activities().values()))
    nodes.draining = {kept.info.node_id}
    events = []
    wait_until(lambda: events.extend(executor.poll(1.0)) or len(events) >= 3)
    nodes.draining = set()
    ended, lost_worker, replaced = events[:3]
    assert (ended.event.kind, ended.report.failure.kind) == (FailureKind.CANCELLED,) * 2
    assert lost_worker == WorkerLost(worker=kept.worker, crashed=False)
    assert replaced.successor
    assert (tmp_path / "c.safetensors").exists()
    assert all(executor.holds(key) for key in TEXT_KEYS)
    executor.shutdown()
    assert asked[0] == [{"CPU": 1}] * 2  # while they were started
    assert asked[-1] == []
    assert not table.records


@pytest.mark.ray
def test_a_node_that_does_not_fit_says_why_once_and_gets_no_workers_until_one_joins_that_does(start_executor, tiny_dir):
    nodes = FakeNodes()
    requires = replace(requirements_here(tiny_dir, WeightFormat.DTYPE), torch="1.0.0")
    rooms = []
    executor = start_executor(
        tiny_dir, workers=2, cluster=nodes.cluster(room=lambda unfit: rooms.append(set(unfit)) or [], requires=requires)
    )
    events = []
    wait_until(lambda: events.extend(executor.poll(1.0)) or executor.is_empty)
    (refused,) = [event for event in events if isinstance(event, NodeRefused)]
    assert refused.reason == f"torch {torch.__version__.partition('+')[0]}, where the driver has 1.0.0"
    replaced = [event for event in events if isinstance(event, WorkerReplaced)]
    assert [(event.successor, event.is_told) for event in replaced] == [("", True)] * 2
    assert rooms[-1] == {ray.get_runtime_context().get_node_id()}


@pytest.mark.ray
def test_a_slot_that_no_node_has_a_place_for_is_given_up_until_a_node_joins_that_has(start_executor, tiny_dir):
    nodes = FakeNodes()
    config = WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    placements = [Placement(config=config, num_cpus=1, num_gpus=0, labels={"vendor": "amd"})] * 2
    seen = alive_nodes()
    executor = start_executor(
        tiny_dir,
        placements=placements,
        cluster=nodes.cluster(room=lambda unfit: placements),
        finder=PlaceFinder(nodes=lambda: seen),
        unplaceable_after_s=0.01,
    )
    (given_up,) = wait_for(executor, SlotsUnplaceable)
    assert (given_up.slots, given_up.asked) == (("w0", "w1"), "CPU 1, vendor=amd")
    assert "1 node with CPU 2" in given_up.nodes
    nodes.alive = {"another"}
    time.sleep(0.02)  # the next look at the nodes is due
    assert executor.poll(0.0) == []
    seen.append(replace(seen[0], node_id="amd", labels={"vendor": "amd"}))
    nodes.alive = {"another", "amd"}
    (starting,) = wait_for(executor, WorkerStarting)
    assert starting.slot == "w2"


def test_nodes_that_join_or_are_about_to_leave_are_seen_once():
    nodes = FakeNodes()
    nodes.alive = {"a"}
    now = [0.0]
    watch = ClusterWatch(
        interval_s=1.0, alive=lambda: set(nodes.alive), draining=lambda: set(nodes.draining), clock=lambda: now[0]
    )
    nodes.alive, nodes.draining = {"a", "b"}, {"a"}
    assert watch.look() is None  # not due yet
    now[0] = 1.0
    assert watch.look() == Changes(joined={"b"}, leaving={"a"})
    now[0] = 2.0
    assert watch.look() == Changes()
    assert watch.is_leaving("a")


def died(message):
    return ActorDiedError(ActorDiedErrorContext(actor_id=bytes(16), error_message=message))


@pytest.mark.parametrize(
    ("error", "is_lost", "has_crashed"),
    [
        (died("The actor is dead because its worker process has died: connection error code 2"), True, True),
        (OutOfMemoryError("1 worker(s) were killed due to the node running low on memory"), True, True),
        (died("The actor died because its node has died. Node Id: 8d7b"), True, False),
        (NodeDiedError("The node 8d7b has died"), True, False),
        (ActorUnavailableError("RpcError: Connection reset by peer", None), True, False),
        (ObjectLostError("00", "", ""), False, False),
    ],
)
def test_a_worker_is_lost_with_its_process_or_node_and_only_a_process_that_died_at_its_task_has_crashed(
    error, is_lost, has_crashed
):
    assert (is_worker_loss(error), is_crash(error)) == (is_lost, has_crashed)


def test_a_slot_is_broken_after_different_tasks_and_not_after_one_clip_that_kills():
    history = SlotHistory()
    for _ in range(10):
        history = history.failed_at({(Stage.DENOISE, (0,))})
    for _ in range(10):  # machines that are taken away
        history = history.failed_at(set())
    for clip in range(1, 4):
        history = history.failed_at({(Stage.DENOISE, (clip,))})
    assert not history.is_broken(5)
    assert history.workers == 24
    assert history.failed_at({(Stage.DENOISE, (4,))}).is_broken(5)


def test_a_slot_whose_worker_finishes_a_task_starts_over():
    history = SlotHistory().failed_at({1}).failed_at({2}).succeeded()
    assert not history.failed_at({3}).is_broken(2)


def test_settings_out_of_range_are_refused_with_their_name():
    with pytest.raises(ValueError, match="max_consecutive_failures is 0"):
        ExecutorConfig(max_consecutive_failures=0)
