"""Reactions of the scheduler when the first steps of a denoise tell that its device is not as fast as declared."""

import dataclasses

import pytest

from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel
from ovi_ray.scheduling.config import SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.device_profile import StageRates
from ovi_ray.scheduling.events import StepsTimed, TaskDone
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import Reason
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate
from tests.support.scheduling import BIG, CheckedCluster, joins, make_workload

DECLARED_ALIKE = dataclasses.replace(BIG, name="declared alike")
TRUE_DENOISE_S = 73.0


def times(profile, **factors):
    """The profile, so many times faster in the named stages."""
    rates = {stage.value: profile.rates.of(stage) * factors.get(stage.value, 1.0) for stage in Stage}
    return dataclasses.replace(profile, rates=StageRates(**rates))


def denoising_cluster(clips=12, *, copies=True, **devices):
    """A cluster on which every device that is given one has begun a denoise."""
    workload = make_workload(clips)
    config = SchedulerConfig(speculation=SpeculationConfig(enabled=copies))
    cluster = CheckedCluster(workload=workload, scheduler=Scheduler(workload, config=config))
    cluster.send(*joins(**devices))
    while others := [run for run in cluster.given() if run not in cluster.denoising()]:
        cluster.send(*[TaskDone(worker=run.worker, task=run.task, seconds=1.0) for run in others], after=1.0)
    return cluster


def time_steps(cluster, worker, seconds):
    return cluster.send(StepsTimed(worker=worker, task=cluster.running[worker].task, seconds=seconds), after=10.0)


def cancels(actions):
    return [(action.worker, action.reason) for action in actions if isinstance(action, Cancel)]


def test_a_denoise_on_a_device_that_turns_out_to_be_slow_is_begun_elsewhere():
    cluster = denoising_cluster(fast=BIG, slow=DECLARED_ALIKE)
    clip = cluster.running["slow"].task.items[0]
    assert cancels(time_steps(cluster, "fast", TRUE_DENOISE_S)) == []
    assert cancels(time_steps(cluster, "slow", 100 * TRUE_DENOISE_S)) == [("slow", Reason.TOO_SLOW)]
    cluster.finish_all()
    assert len(cluster.finished) == 12
    assert cluster.denoised.count(clip) == 1


def test_a_denoise_goes_on_where_the_job_would_not_end_sooner_elsewhere():
    cluster = denoising_cluster(fast=BIG, slow=DECLARED_ALIKE)
    assert cancels(time_steps(cluster, "slow", 1.5 * TRUE_DENOISE_S)) == []


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_denoise_goes_on_where_no_device_is_faster(names):
    declared = times(BIG, denoise=200, decode=20)
    cluster = denoising_cluster(clips=4, **dict.fromkeys(names, declared))
    for run in cluster.denoising():
        timed = StepsTimed(worker=run.worker, task=run.task, seconds=5.0)
        assert cancels(cluster.send(timed, after=1.0)) == []


def test_nothing_is_stopped_when_no_task_may_run_twice():
    cluster = denoising_cluster(copies=False, fast=BIG, slow=DECLARED_ALIKE)
    assert cancels(time_steps(cluster, "slow", 100 * TRUE_DENOISE_S)) == []


def test_a_time_that_comes_after_the_end_of_its_task_is_ignored():
    cluster = denoising_cluster(fast=BIG, slow=DECLARED_ALIKE)
    task = cluster.running["slow"].task
    cluster.send(TaskDone(worker="slow", task=task, seconds=TRUE_DENOISE_S), after=TRUE_DENOISE_S)
    cluster.send(StepsTimed(worker="slow", task=task, seconds=1e6))
    cluster.send(StepsTimed(worker="unknown", task=task, seconds=1e6))
    cluster.finish_all()
    assert len(cluster.finished) == 12


def spans(outcome, device, stage):
    return [s for s in outcome.spans if s.device == device and s.task.stage is stage and s.task.items]


def virtual(name, count, declared, actual):
    declared = dataclasses.replace(declared, name=name)
    actual = dataclasses.replace(actual, name=name)
    return [VirtualDevice(name=f"{name}-{i}", profile=declared, actual=actual) for i in range(count)]


def test_once_a_declaration_was_wrong_a_device_that_seems_too_slow_is_tried():
    few = make_workload(8)
    fast = virtual("fast", 4, times(BIG, denoise=2.0), BIG)
    tried = simulate(few, [*fast, *virtual("doubted", 4, times(BIG, denoise=0.4), BIG)], keep_spans=True)
    assert spans(tried, "doubted", Stage.DENOISE)[0].start_s < TRUE_DENOISE_S / 2
    believed = simulate(few, [*virtual("fast", 4, BIG, BIG), *virtual("slow", 4, times(BIG, denoise=0.1), BIG)])
    assert tried.makespan_s < believed.makespan_s


def test_nothing_is_tried_that_could_not_be_stopped():
    few = make_workload(8)
    devices = [
        *virtual("fast", 4, times(BIG, denoise=2.0), BIG),
        *virtual("doubted", 4, times(BIG, denoise=0.4), times(BIG, denoise=0.01)),
    ]
    config = SchedulerConfig(speculation=SpeculationConfig(enabled=False))
    outcome = simulate(few, devices, scheduler=Scheduler(few, config=config), keep_spans=True)
    assert spans(outcome, "doubted", Stage.DENOISE) == []
