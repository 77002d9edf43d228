"""Failures are charged to the device, the stage, the memory or the clip that they are due to, on whole simulated jobs."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from yardsticks.scenarios import make_workload

from ovi.stages import Stage
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import SlotClosed, TaskDone, TaskFailed, Tick, WorkerExpected, WorkerJoined, WorkerLost
from ovi_ray.scheduling.memory_limits import MemoryLimits
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import FailureKind, Reason
from ovi_ray.simulation.lower_bound import makespan_bound
from ovi_ray.simulation.virtual_cluster import Fault, VirtualDevice, simulate
from tests.support.scheduling import BIG, ENCODER, IMAGE, CheckedCluster, failed, joins
from tests.support.scheduling import make_workload as small_workload

GPU = read_profile(Path(__file__).parents[3] / "cluster" / "profiles" / "a.yaml").device_profiles["nvidia-80gb"]
NO_DECODE = dataclasses.replace(GPU, name="no decode", stages=frozenset(Stage) - {Stage.DECODE})
EVERY_STAGE = frozenset(Stage)


def devices(count, profile=GPU, *faults):
    return [
        VirtualDevice(name=f"{profile.name} {len(faults)} {n}", profile=profile, faults=faults) for n in range(count)
    ]


def fault(kind, *stages):
    return Fault(kind=kind, stages=frozenset(stages) or EVERY_STAGE)


@dataclasses.dataclass(kw_only=True, slots=True, frozen=True)
class UnsteadyDevice(VirtualDevice):
    """Fails some of its tasks."""

    kind: FailureKind
    fails: Iterator[bool]
    """Whether the next task fails."""

    def failure(self, stage, time):
        return self.kind if next(self.fails) else None


def unsteady(count, kind, make_fails):
    return [UnsteadyDevice(name=f"unsteady {n}", profile=GPU, kind=kind, fails=make_fails(n)) for n in range(count)]


def now_and_then(share, seed):
    dice = random.Random(seed)
    return (dice.random() < share for _ in itertools.count())


# --- a device at fault


@pytest.mark.parametrize(
    ("clips", "kind", "stages"),
    [
        (400, FailureKind.OUT_OF_MEMORY, ()),
        *((120, FailureKind.OUT_OF_MEMORY, (stage,)) for stage in Stage),
        (120, FailureKind.ERROR, ()),
        (120, FailureKind.ERROR, (Stage.DECODE,)),
    ],
)
def test_one_sick_device_of_eight_fails_no_clip_and_costs_no_more_than_itself(clips, kind, stages):
    healthy = devices(7)
    outcome = simulate(make_workload(clips), healthy + devices(1, GPU, fault(kind, *stages)))
    assert (outcome.done, outcome.failed) == (clips, 0)
    assert outcome.makespan_s < 1.1 * makespan_bound(make_workload(clips), healthy)


@pytest.mark.parametrize("sick", [3, 6])
def test_several_sick_devices_fail_no_clip_while_a_healthy_one_is_there(sick):
    outcome = simulate(make_workload(100), devices(8 - sick) + devices(sick, GPU, fault(FailureKind.OUT_OF_MEMORY)))
    assert (outcome.done, outcome.failed) == (100, 0)


@pytest.mark.parametrize(
    ("count", "kind", "share", "seed"),
    [
        (2, FailureKind.OUT_OF_MEMORY, 0.3, 4),
        (4, FailureKind.OUT_OF_MEMORY, 0.3, 5),
        (4, FailureKind.ERROR, 0.5, 2),
    ],
)
def test_devices_that_fail_now_and_then_fail_no_clip_beside_flawless_ones(count, kind, share, seed):
    sick = unsteady(count, kind, lambda number: now_and_then(share, f"({seed}, {number})"))
    assert simulate(make_workload(60), devices(8 - count) + sick).failed == 0


def test_a_device_that_runs_out_of_memory_only_after_many_tasks_fails_no_clip():
    healthy = devices(3)
    sick = unsteady(1, FailureKind.OUT_OF_MEMORY, lambda number: (task > 10 for task in itertools.count(1)))
    outcome = simulate(make_workload(40), healthy + sick)
    assert (outcome.done, outcome.failed) == (40, 0)
    assert outcome.makespan_s < 1.1 * makespan_bound(make_workload(40), healthy)


@pytest.mark.parametrize("sick", [3, 4])
def test_a_single_clip_that_meets_sick_devices_first_is_rendered_by_the_healthy_one(sick):
    outcome = simulate(make_workload(1), devices(sick, GPU, fault(FailureKind.ERROR, Stage.DENOISE)) + devices(1))
    assert outcome.done == 1


@pytest.mark.parametrize(("others", "seconds"), [(3, 2505), (1, 7339)])
def test_a_device_that_fails_one_stage_is_used_for_the_others(others, seconds):
    sick = devices(1, GPU, fault(FailureKind.ERROR, Stage.DENOISE))
    outcome = simulate(make_workload(100), devices(others, NO_DECODE) + sick)
    assert outcome.done == 100
    assert outcome.makespan_s == pytest.approx(seconds, rel=0.02)


# --- memory


def test_a_kind_that_runs_out_of_memory_on_several_devices_is_left_to_a_larger_one():
    tight = dataclasses.replace(GPU, name="tight", memory_gb=40.0)
    small = devices(4, tight, fault(FailureKind.OUT_OF_MEMORY, Stage.DENOISE))
    outcome = simulate(make_workload(40), small + devices(1), keep_spans=True)
    assert outcome.done == 40
    tries = [s for s in outcome.spans if s.device == "tight" and s.task.stage is Stage.DENOISE and s.task.items]
    assert len(tries) <= 12  # each device ran out at its first clip, beside others and alone


def test_a_kind_that_fits_on_no_device_fails_after_few_tries():
    outcome = simulate(
        make_workload(100), devices(8, GPU, fault(FailureKind.OUT_OF_MEMORY, Stage.DENOISE)), keep_spans=True
    )
    assert outcome.failed == 100
    assert len([s for s in outcome.spans if s.task.stage is Stage.DENOISE and s.task.items]) <= 3 * 100 + 8


def test_a_kind_comes_back_to_smaller_devices_when_one_of_them_finishes_it():
    small = dataclasses.replace(GPU, name="small", memory_gb=40.0)
    sick = devices(2, small, fault(FailureKind.OUT_OF_MEMORY, Stage.DENOISE))
    outcome = simulate(make_workload(40), sick + devices(1, small) + devices(1), keep_spans=True)
    assert outcome.done == 40
    healthy = [s for s in outcome.spans if s.worker == "small 0 0" and s.task.stage is Stage.DENOISE and s.task.items]
    assert len(healthy) > 10


def test_memory_is_too_little_once_several_devices_ran_out_of_it_and_none_finished():
    limits = MemoryLimits()
    limits.ran_out(Stage.DENOISE, 0, "a", 24.0)
    assert limits.limits() == {}
    limits.ran_out(Stage.DENOISE, 0, "b", 80.0)
    assert limits.limits() == {(Stage.DENOISE, 0): 24.0}
    limits.finished(Stage.DENOISE, 0, 24.0)
    assert limits.limits() == {}
    limits.ran_out(Stage.DENOISE, 0, "c", 24.0)
    limits.ran_out(Stage.DENOISE, 0, "d", 24.0)
    assert limits.limits() == {}


def test_a_text_batch_that_runs_out_of_memory_is_split_and_charged_to_none():
    cluster = cluster_of(small_workload(12), a=BIG)
    batch = cluster.running["a"]
    assert len(batch.task.items) > 1
    for _ in range(4):
        end(cluster, cluster.running["a"], FailureKind.OUT_OF_MEMORY)
        assert len(cluster.running["a"].task.items) == 1
        end(cluster, cluster.running["a"])
    cluster.finish_all()
    assert not failed(cluster)


# --- workers that are away


def test_clips_wait_for_a_worker_that_was_lost_while_others_can_do_nothing_for_them():
    cluster = cluster_of(small_workload(51), text=ENCODER, spot=BIG, config=SchedulerConfig(patience_s=60.0))
    run_stage(cluster, Stage.DENOISE, "spot")
    cluster.send(WorkerLost(worker="spot", crashed=False))
    while "text" in cluster.running:
        end(cluster, cluster.running["text"])
    assert cluster.scheduler.awaited_slots == ["spot"]
    assert cluster.scheduler.idle_reasons() == {"text": Reason.AWAITING_WORKER}
    cluster.send(Tick(), after=3600.0)
    cluster.send(WorkerJoined(worker="spot.1", slot="spot", device=BIG))
    cluster.finish_all()
    assert not failed(cluster)


@pytest.mark.parametrize("decodes_first", [True, False])
def test_workers_say_that_a_stage_fits_nowhere_when_no_decoder_is_there(decodes_first):
    denoiser = dataclasses.replace(BIG, name="denoiser", stages=frozenset(Stage) - {Stage.DECODE})
    cluster = cluster_of(small_workload(5), denoiser=denoiser, config=SchedulerConfig(patience_s=60.0))
    if decodes_first:
        cluster.send(*joins(decoder=BIG))
        run_stage(cluster, Stage.DENOISE, "denoiser")
        cluster.send(WorkerLost(worker="decoder", crashed=False), SlotClosed(slot="decoder"))
        end(cluster, cluster.running["denoiser"])
    assert cluster.scheduler.idle_reasons() == {"denoiser": Reason.UNPLACEABLE}
    cluster.send(Tick(), after=61.0)
    assert len(failed(cluster)) == 5


def test_clips_wait_for_a_device_that_joins_an_hour_later():
    text_host = VirtualDevice(name="text", profile=dataclasses.replace(ENCODER, name="text"))
    outcome = simulate(make_workload(10), [text_host, VirtualDevice(name="late", profile=GPU, joins_at_s=3600.0)])
    assert outcome.done == 10


def test_patience_begins_when_no_worker_is_expected_any_more():
    cluster = cluster_of(small_workload(2), text=ENCODER, config=SchedulerConfig(patience_s=60.0), expected=("gpu",))
    while cluster.running:
        end(cluster, cluster.running["text"])
    cluster.send(Tick(), after=3600.0)
    assert not cluster.finished
    cluster.send(SlotClosed(slot="gpu"))
    cluster.send(Tick(), after=59.0)
    assert not cluster.finished
    cluster.send(Tick(), after=1.0)
    assert len(failed(cluster)) == 2


# --- items at fault


@pytest.mark.parametrize("stage", [Stage.DENOISE, Stage.DECODE, Stage.ENCODE_FIRST_FRAME])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_items_that_kill_their_worker_are_tried_after_all_others(stage, count):
    cluster = cluster_of(small_workload(60, kinds=(IMAGE,)), a=BIG)
    deaths = kill_workers_at(cluster, stage, set(range(count)))
    assert set(failed(cluster)) == set(range(count))
    assert set(list(cluster.finished)[-count:]) == set(range(count))
    assert deaths == 3 * count


@pytest.mark.parametrize("poison", [set(range(8)), set(range(52, 60)), set(range(0, 60, 8))])
def test_no_five_new_clips_in_a_row_kill_the_workers_of_a_slot_while_there_are_good_ones(poison):
    cluster = cluster_of(small_workload(60), a=BIG)
    in_a_row = []

    def note(deaths):
        if len(cluster.finished) < 60 - len(poison):
            in_a_row.append(deaths)

    kill_workers_at(cluster, Stage.DENOISE, poison, on_new_death=note)
    assert max(in_a_row, default=0) < 5


def test_first_frames_that_nobody_needs_any_more_leave_their_queue_at_once():
    profiles = {"texts": ENCODER, "frames": dataclasses.replace(BIG, stages=EVERY_STAGE - {Stage.ENCODE_TEXT})}
    workload = small_workload(3010, kinds=(IMAGE,), distinct_texts=2)
    texts = workload.clip_texts.copy()
    texts[:, 0] = np.arange(3010) >= 3000
    cluster = cluster_of(dataclasses.replace(workload, clip_texts=texts), **profiles)
    task = cluster.running["texts"].task
    cluster.send(TaskFailed(worker="texts", task=task, kind=FailureKind.BAD_INPUT, message="bad", items=(0,)))
    assert len(cluster.finished) == 3000
    end(cluster, cluster.running["frames"])
    assert cluster.running["frames"].task.items == (3000,)


# --- helpers


def cluster_of(workload, *, config=None, expected=(), **profiles):
    cluster = CheckedCluster(workload=workload, scheduler=Scheduler(workload, config=config))
    cluster.send(*[WorkerExpected(slot=slot) for slot in expected], *joins(**profiles))
    return cluster


def end(cluster, run, kind=None):
    event = TaskDone(worker=run.worker, task=run.task, seconds=1.0)
    if kind is not None:
        event = TaskFailed(worker=run.worker, task=run.task, kind=kind, message="the device is broken")
    cluster.send(event, after=1.0)


def run_stage(cluster, stage, worker):
    """Complete tasks until a worker runs one of a stage; return it."""
    for _ in range(500):
        run = cluster.running.get(worker)
        if run is not None and run.task.stage is stage and run.task.items:
            return run
        others = [r for r in cluster.running.values() if r.task.stage is not stage or not r.task.items]
        end(cluster, (others or list(cluster.running.values()))[0])
    raise AssertionError(f"{worker} never ran {stage}")


def kill_workers_at(cluster, stage, items, *, on_new_death=lambda in_a_row: None):
    """Run the job on one slot whose worker dies whenever it runs one of the items; returns how often."""
    deaths, in_a_row = 0, set()
    while not cluster.scheduler.done:
        ((worker, run),) = cluster.running.items()
        if run.task.stage is stage and items.intersection(run.task.items):
            deaths += 1
            if run.task.attempt == 1:
                in_a_row.add(run.task.items)
                on_new_death(len(in_a_row))
            cluster.send(WorkerLost(worker=worker), after=1.0)
            cluster.send(WorkerJoined(worker=f"a.{deaths}", slot="a", device=BIG), after=1.0)
        else:
            in_a_row.clear()
            end(cluster, run)
    return deaths
