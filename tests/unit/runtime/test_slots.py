"""Slots that a job can spare, and those that cost least to give up."""

import math

from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.slot_history import SlotHistory
from ovi_ray.runtime.slots import Slot, least_useful, spare
from ovi_ray.workers.actor import WorkerConfig
from tests.support.fake_executor import info

CONFIG = WorkerConfig(ckpt_dir="", model_name="", dtype="float32", device="cpu", num_threads=1)
LONG_AGO, JUST_NOW, DUE = 0.0, 100.0, 50.0


def slot(name, *, idle_since=LONG_AGO, **facts):
    """A slot with a worker on a device of these facts; `memory_gb=None` for one without a worker yet."""
    started = facts.get("memory_gb", 80.0) is not None
    return Slot(
        name=name,
        worker=name,
        placement=Placement(config=CONFIG, num_cpus=1, num_gpus=0),
        actor=None,
        info=info(**facts) if started else None,
        history=SlotHistory(),
        idle_since=idle_since if started else math.inf,
    )


def starting(name):
    return slot(name, memory_gb=None)


def names(slots):
    return [slot.name for slot in slots]


def spared(*slots, needed, busy=()):
    return names(spare(slots, needed=needed, busy=set(busy), idle_before=DUE))


def test_those_that_are_needed_stay():
    assert spared(slot("a"), slot("b"), needed=2) == []
    assert spared(slot("a"), slot("b"), needed=1) == ["a"]
    assert spared(slot("a"), slot("b"), slot("c"), needed=0) == ["a", "b"]  # one of a kind is left


def test_those_without_a_worker_go_first():
    assert spared(slot("a"), starting("b"), slot("c"), needed=2) == ["b"]


def test_a_worker_that_runs_something_or_has_just_ended_stays():
    assert spared(slot("a"), slot("b"), needed=1, busy=["a"]) == ["b"]
    assert spared(slot("a", idle_since=JUST_NOW), slot("b", idle_since=JUST_NOW), needed=1) == []


def test_the_last_device_of_a_kind_stays_because_it_may_be_the_only_one_for_a_stage():
    assert spared(slot("small", memory_gb=8.0), slot("large", memory_gb=80.0), needed=1, busy=["large"]) == []


def test_what_costs_least_is_given_up_first():
    slots = [slot("old"), slot("busy"), starting("new"), slot("idle")]
    assert names(least_useful(slots, busy={"busy"})) == ["new", "idle", "old", "busy"]
