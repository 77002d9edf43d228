"""Scheduling policies: the allocation by linear programming, comparative advantage in bulk, and the tail."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yardsticks.baseline_policies import MeanSpeed, StaticStriding
from yardsticks.clusters import GPU_80GB, devices, with_rates
from yardsticks.scenarios import make_workload

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.scheduling.allocation_lp import solve_allocation
from ovi_ray.scheduling.config import SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.policies.base import Allocation, Candidate, Cluster, Holding, Preferences, Snapshot
from ovi_ray.scheduling.policies.production import Production
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import Reason, Task
from ovi_ray.simulation.virtual_cluster import simulate

WORK_TYPES = ((Stage.DENOISE, 0), (Stage.DECODE, 0))


HAS_TRANSFORMER = Holding(frozenset({Component.TRANSFORMER}), "m")


def make_cluster(seconds, workers, clips=100.0, available=None, load=None) -> Cluster:
    """`seconds`: [classes, (denoise, decode)]; `workers`: the class of each; `load`: seconds to load a transformer on each."""
    count = len(workers)

    def swap(device_class, holding, stage, kind):
        if stage is Stage.DENOISE and holding != HAS_TRANSFORMER:
            return max(load), HAS_TRANSFORMER
        return 0.0, holding

    return Cluster(
        work_types=WORK_TYPES,
        amounts=np.array([clips, clips]),
        seconds=np.array(seconds, dtype=float),
        numbers=np.arange(count),
        classes=np.array(workers),
        factors=np.ones(count),
        available_s=np.zeros(count) if available is None else np.array(available, dtype=float),
        load_s=np.zeros(count) if load is None else np.array(load, dtype=float),
        holdings=[Holding() if load and load[i] else HAS_TRANSFORMER for i in range(count)],
        running=[None] * count,
        swap=swap,
    )


def make_candidate(**changes: object) -> Candidate:
    fields = {
        "worker": 0,
        "device_class": 0,
        "stage": Stage.DENOISE,
        "kind": 0,
        "waiting": 5,
        "units": 1.0,
        "work_s": 100.0,
        "swap_s": 0.0,
        "urgent": False,
    }
    return Candidate(**(fields | changes))  # type: ignore[arg-type]


def make_snapshot(*candidates: Candidate, fill: float = 0.0, others: int = 0, since: float = 0.0) -> Snapshot:
    """`others`: tasks that other workers could end before any candidate does."""
    return Snapshot(
        since_plan_s=since,
        candidates=candidates,
        latents_fill=fill,
        others_end=lambda candidate: others,
    )


# --- the linear program


def test_work_is_divided_by_comparative_advantage():
    """Class 1 is slower at both, but less so at decode: it decodes."""
    best = solve_allocation(np.array([[80.0, 10.0], [320.0, 20.0]]), np.array([100.0, 100.0]), np.array([4.0, 1.0]))
    assert best.share[1, 1] == pytest.approx(1.0)
    assert best.share[0, 0] == pytest.approx(1.0, abs=0.01) or best.share[1, 0] > 0


def test_equal_devices_share_equally():
    best = solve_allocation(np.array([[80.0, 10.0]]), np.array([100.0, 100.0]), np.array([8.0]))
    assert best.makespan_s == pytest.approx(9000 / 8)
    assert best.values[0] == pytest.approx(1 / 8)
    assert best.prices[0] / best.prices[1] == pytest.approx(8.0)


def test_committed_time_counts():
    seconds, amounts, capacity = np.array([[10.0]]), np.array([10.0]), np.array([2.0])
    assert solve_allocation(seconds, amounts, capacity, np.array([20.0])).makespan_s == pytest.approx(60.0)


def test_a_job_that_nobody_can_do_is_left_out():
    best = solve_allocation(np.array([[10.0, math.inf]]), np.array([10.0, 5.0]), np.array([1.0]))
    assert best.makespan_s == pytest.approx(100.0)
    assert best.prices[1] == 0.0


def test_nothing_to_do_takes_the_committed_time():
    assert solve_allocation(np.array([[10.0]]), np.array([0.0]), np.array([2.0]), np.array([8.0])).makespan_s == 4.0


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=1, max_size=5),
    amounts=st.tuples(st.floats(1, 1e5), st.floats(1, 1e5)),
    devices=st.integers(1, 300),
)
def test_the_division_keeps_every_limit_and_its_prices_solve_allocation(seconds, amounts, devices):
    table, work = np.array(seconds), np.array(amounts)
    capacity = np.full(len(table), float(devices))
    best = solve_allocation(table, work, capacity)
    assert np.allclose(best.share.sum(axis=0), 1.0, atol=1e-5)
    used = (best.share * work * table).sum(axis=1)
    assert (used <= capacity * best.makespan_s * (1 + 1e-5)).all()
    assert (best.prices @ work) == pytest.approx(best.makespan_s, rel=1e-4)
    assert (best.prices <= best.values[:, None] * table * (1 + 1e-4) + 1e-9).all()


# --- production


def test_a_device_takes_what_it_is_relatively_best_at():
    policy = Production()
    plan = policy.allocate(make_cluster([[80.0, 10.0], [320.0, 20.0]], [0] * 4 + [1]))
    fast = make_snapshot(make_candidate(work_s=80.0), make_candidate(stage=Stage.DECODE, work_s=10.0))
    slow = make_snapshot(
        make_candidate(device_class=1, work_s=320.0),
        make_candidate(device_class=1, stage=Stage.DECODE, work_s=20.0),
        fill=0.3,
    )
    assert policy.choose(fast, plan).candidate.stage is Stage.DENOISE
    assert policy.choose(slow, plan).candidate.stage is Stage.DECODE


def test_full_queues_bring_in_devices_that_would_rather_denoise():
    policy = Production(projected_workers=0)  # in bulk
    plan = policy.allocate(make_cluster([[80.0, 10.0], [320.0, 20.0]], [0] * 4 + [1]))
    choices = [make_candidate(work_s=80.0), make_candidate(stage=Stage.DECODE, work_s=10.0)]
    assert policy.choose(make_snapshot(*choices, fill=3.0), plan).candidate.stage is Stage.DECODE


def test_urgent_work_comes_first():
    policy = Production()
    plan = policy.allocate(make_cluster([[80.0, 10.0]], [0]))
    text = make_candidate(stage=Stage.ENCODE_TEXT, work_s=1.0, swap_s=10.0, urgent=True)
    decision = policy.choose(make_snapshot(make_candidate(work_s=80.0), text), plan)
    assert decision.candidate is text
    assert decision.reason is Reason.FEEDS_DENOISE


def test_a_swap_for_one_task_is_not_worth_it_beside_work_without():
    policy = Production()
    plan = policy.allocate(make_cluster([[80.0, 80.0]], [0, 0]))
    decode = make_candidate(stage=Stage.DECODE, work_s=80.0, swap_s=40.0, waiting=1)
    assert policy.choose(make_snapshot(make_candidate(work_s=80.0), decode), plan).candidate.stage is Stage.DENOISE


def test_a_slow_device_leaves_the_last_clip_to_a_fast_one_that_is_free_soon():
    policy = Production()
    cluster = make_cluster([[80.0, 10.0], [800.0, 100.0]], [0, 1], clips=1.0, available=[30.0, 0.0])
    plan = policy.allocate(cluster)
    slow = make_candidate(device_class=1, worker=1, work_s=800.0, waiting=1)
    decision = policy.choose(make_snapshot(slow, others=1), plan)
    assert decision.candidate is None
    assert decision.reason is Reason.FASTER_DEVICE_SOON


def test_a_slow_device_takes_a_clip_while_there_is_time():
    policy = Production()
    plan = policy.allocate(make_cluster([[80.0, 10.0], [800.0, 100.0]], [0, 1], clips=50.0))
    assert (
        policy.choose(make_snapshot(make_candidate(device_class=1, worker=1, work_s=800.0)), plan).candidate is not None
    )


def test_a_decode_that_would_end_last_waits_for_faster_devices_that_would_end_all_of_them():
    policy = Production()
    slow = make_candidate(stage=Stage.DECODE, work_s=200.0, waiting=1)
    plan = Allocation(makespan_s=50.0, preferences=Preferences(target_s=50.0))
    assert policy.choose(make_snapshot(slow, others=1), plan).candidate is None
    assert policy.choose(make_snapshot(slow._replace(waiting=2), others=1), plan).candidate is not None


def test_a_decode_in_time_is_taken_while_faster_devices_have_denoises_to_do():
    policy = Production()
    slow = make_candidate(stage=Stage.DECODE, work_s=40.0, waiting=1)
    plan = Allocation(makespan_s=50.0, preferences=Preferences(target_s=50.0))
    assert policy.choose(make_snapshot(slow, others=1), plan).candidate is slow
    only = dataclasses.replace(plan, only_decodes=True)
    assert policy.choose(make_snapshot(slow, others=1), only).candidate is None


def test_a_device_that_was_never_measured_gets_no_decode_that_might_end_last():
    policy = Production()
    plan = Allocation(makespan_s=50.0, preferences=Preferences(target_s=50.0))
    unknown = make_candidate(stage=Stage.DECODE, work_s=40.0, waiting=1, doubt=3.0)
    assert policy.choose(make_snapshot(unknown, others=1), plan).candidate is None


def test_inputs_are_encoded_where_they_end_first():
    policy = Production()
    slow = make_candidate(stage=Stage.ENCODE_TEXT, work_s=20.0, waiting=1, urgent=True)
    assert policy.choose(make_snapshot(slow, others=1), Allocation(makespan_s=1e6)).candidate is None
    assert policy.choose(make_snapshot(slow, others=0), Allocation(makespan_s=1e6)).candidate is slow


def test_whole_clips_decide_when_the_job_should_end():
    """Three clips on two equal devices take two rounds, whatever the fraction says."""
    plan = Production().allocate(make_cluster([[100.0, 0.001]], [0, 0], clips=3.0))
    assert plan.preferences.target_s == pytest.approx(200.0, rel=0.02)


def test_loads_count_in_the_tail():
    plan = Production().allocate(make_cluster([[100.0, 0.001]], [0, 0], clips=2.0, load=[30.0, 30.0]))
    assert plan.preferences.target_s == pytest.approx(130.0, rel=0.02)


@pytest.mark.parametrize("policy", [Production(), Production(projected_workers=0)])
def test_loads_count_with_many_clips_for_each_device(policy):
    plan = policy.allocate(make_cluster([[10.0, 0.001]], [0, 0], clips=20.0, load=[300.0, 300.0]))
    assert plan.preferences.target_s == pytest.approx(400.0, rel=0.02)


def test_a_plan_in_force_that_would_end_later_than_a_new_one_is_dropped():
    """By its prices the device that takes ten times as long should denoise, and the fast one should not."""
    cluster = make_cluster([[10.0, 1.0], [100.0, 1.0]], [0, 1], clips=4.0)
    new = Production().allocate(cluster)
    reversed_prices = {(c, Stage.DENOISE, 0): float(c) for c in (0, 1)} | {
        (c, Stage.DECODE, 0): 1.0 - c for c in (0, 1)
    }
    in_force = Allocation(
        makespan_s=400.0, advantage=reversed_prices, preferences=Preferences(target_s=400.0, longest_swap_s=1.0)
    )
    plan = Production().allocate(cluster, in_force)
    assert (plan.makespan_s, plan.advantage) == (new.makespan_s, new.advantage)


class RecordingPolicy(Production):
    """Remembers at which plans it was offered the one before."""

    __slots__ = ("offered",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "offered", [])

    def allocate(self, cluster, in_force=None, *, little_changed=False):
        self.offered.append(in_force is not None)
        return Production.allocate(self, cluster, in_force, little_changed=little_changed)


NO_COPIES = SchedulerConfig(speculation=SpeculationConfig(enabled=False))


def offered_plans(actual_denoise: float) -> list[bool]:
    """Whether each plan of a job was offered the one before, on devices with so many times the declared speed at denoise."""
    actual = with_rates(GPU_80GB, GPU_80GB.name, denoise=actual_denoise)
    here = [dataclasses.replace(device, actual=actual) for device in devices((GPU_80GB, 2))]
    workload, policy = make_workload(4), RecordingPolicy()
    simulate(workload, here, scheduler=Scheduler(workload, policy=policy, config=NO_COPIES))
    return policy.offered


def test_a_plan_may_be_followed_further_while_devices_are_as_fast_as_it_assumes():
    as_declared = offered_plans(1.0)
    assert not as_declared[0]
    assert len(as_declared) > 2
    assert all(as_declared[1:])


def test_a_plan_is_not_followed_once_a_device_is_slower_than_it_assumes():
    assert not all(offered_plans(1 / 3)[1:])


def test_without_candidates_the_reason_is_that_nothing_is_ready():
    assert Production().choose(make_snapshot(), Allocation(makespan_s=0.0)).reason is Reason.NOTHING_READY


# --- policies of other systems


def test_striding_gives_equal_shares_to_devices_that_run_everything():
    policy = StaticStriding()
    policy.assign(make_cluster([[80.0, 10.0], [800.0, 100.0], [math.inf, 50.0]], [0, 1, 2], clips=11.0))
    assert policy.quota == {0: 6, 1: 5}


def test_striding_stops_when_the_share_is_begun():
    policy = StaticStriding()
    policy.assign(make_cluster([[80.0, 10.0]], [0], clips=1.0))
    own = make_snapshot(make_candidate())
    assert policy.choose(own, Allocation(makespan_s=0.0)).candidate is not None
    policy.task_started(0, Task(stage=Stage.DENOISE, items=(0,)))
    assert policy.choose(own, Allocation(makespan_s=0.0)).candidate is None


def test_mean_speed_sizes_pools_by_one_mean_for_all():
    policy = MeanSpeed()
    policy.assign(make_cluster([[80.0, 20.0]], [0] * 10))
    assert sum(Stage.DENOISE in stages for stages in policy.roles.values()) == 8


def test_mean_speed_gives_devices_that_cannot_denoise_the_rest():
    policy = MeanSpeed()
    policy.assign(make_cluster([[80.0, 20.0], [math.inf, 20.0]], [0, 0, 1, 1, 1]))
    assert [Stage.DENOISE in policy.roles[w] for w in range(5)] == [True, True, False, False, False]


def test_a_lone_worker_does_everything_in_mean_speed():
    policy = MeanSpeed()
    policy.assign(make_cluster([[80.0, 20.0]], [0]))
    assert policy.roles == {0: frozenset(Stage)}


# --- devices whose declared speeds are in doubt


def choose_with_target(target_s, *candidates, others=0):
    allocation = Allocation(
        makespan_s=target_s,
        advantage={(0, Stage.DENOISE, 0): 1.0, (0, Stage.DECODE, 0): 0.2},
        preferences=Preferences(target_s=target_s),
    )
    return Production().choose(make_snapshot(*candidates, others=others), allocation)


@pytest.mark.parametrize(
    ("target_s", "work_s", "doubt", "reason"),
    [
        (400.0, 28.0, 9.0, Reason.MEASUREMENT),
        (400.0, 28.0, 15.0, Reason.BEST_USE),  # it may take longer than the job
        (400.0, 60.0, 3.0, Reason.BEST_USE),  # it takes too large a part of the time left
        (400.0, 28.0, 1.0, Reason.BEST_USE),  # nothing is in doubt
    ],
)
def test_the_first_decode_on_a_doubtful_device_comes_before_what_it_is_better_at(target_s, work_s, doubt, reason):
    decode = make_candidate(stage=Stage.DECODE, work_s=work_s, measured_doubt=doubt)
    decision = choose_with_target(target_s, make_candidate(), decode)
    assert (decision.reason, decision.candidate.stage) == (
        reason,
        Stage.DECODE if reason is Reason.MEASUREMENT else Stage.DENOISE,
    )


@pytest.mark.parametrize(("hope", "is_tried"), [(3.0, True), (1.5, False), (1.0, False)])
def test_a_clip_that_is_too_late_for_a_device_is_tried_on_it_if_it_may_be_fast_enough(hope, is_tried):
    decision = choose_with_target(400.0, make_candidate(work_s=900.0, hope=hope), others=99)
    assert decision.reason is (Reason.TRIED if is_tried else Reason.FASTER_DEVICE_SOON)
