"""Replaying recorded cycles gives the recorded actions; a changed record does not."""

from dataclasses import replace

from ovi_ray.protocol.observer import Cycle
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.events import TaskFailed, WorkerJoined, WorkerLost
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.simulation.replay import replay
from ovi_ray.simulation.virtual_cluster import VirtualCluster, VirtualDevice
from tests.support.scheduling import BIG, IMAGE, LARGE, MIDDLE, SMALL, make_workload

CONFIG = SchedulerConfig(max_latents=12, patience_s=60.0)
WORKLOAD = make_workload(clips=60, kinds=(SMALL, LARGE, IMAGE), with_latents=(3, 4))
DEVICES = (
    VirtualDevice(name="w0", profile=BIG, jitter=0.3),
    VirtualDevice(name="w1", profile=MIDDLE, jitter=0.3, faulty=((0.0, 2000.0),)),
    VirtualDevice(name="w2", profile=BIG, joins_at_s=900.0, leaves_at_s=4000.0),
    VirtualDevice(name="w3", profile=BIG, joins_at_s=2500.0, slowdowns=((3000.0, 3.0),)),
)


def simulated_cycles():
    """Every cycle of a job on devices that are faulty, leave and join."""
    scheduler, cluster, cycles = Scheduler(WORKLOAD, config=CONFIG), VirtualCluster(WORKLOAD, DEVICES), []
    while not scheduler.done:
        now, events = cluster.next_events()
        actions = scheduler.handle(events, now)
        cluster.apply(actions, now)
        cycles.append(Cycle(now=now, events=tuple(events), actions=tuple(actions)))
    return cycles


def test_the_events_of_a_simulated_job_with_failures_losses_and_joins_give_the_same_actions_again():
    cycles = simulated_cycles()
    kinds = {type(event) for cycle in cycles for event in cycle.events}
    assert {TaskFailed, WorkerLost, WorkerJoined} <= kinds
    replayed = replay(WORKLOAD, CONFIG, cycles)
    assert replayed.divergence is None
    assert (replayed.cycles, replayed.actions) == (len(cycles), sum(len(cycle.actions) for cycle in cycles))


def test_a_decision_that_the_scheduler_would_not_take_is_found():
    cycles = simulated_cycles()
    number, cycle = next((n, c) for n, c in enumerate(cycles) if any(isinstance(a, RunTask) for a in c.actions))
    forged = tuple(replace(a, worker="w9") if isinstance(a, RunTask) else a for a in cycle.actions)
    cycles[number] = replace(cycle, actions=forged)
    divergence = replay(WORKLOAD, CONFIG, cycles).divergence
    assert (divergence.cycle, divergence.recorded, divergence.replayed) == (number + 1, forged, cycle.actions)
    recorded, replayed = divergence.first_difference
    assert (recorded.worker, replayed) == ("w9", next(a for a in cycle.actions if isinstance(a, RunTask)))


def test_an_action_that_is_missing_from_the_record_is_found():
    cycles = simulated_cycles()
    number, cycle = next((n, c) for n, c in enumerate(cycles) if c.actions)
    cycles[number] = replace(cycle, actions=cycle.actions[:-1])
    divergence = replay(WORKLOAD, CONFIG, cycles).divergence
    assert divergence.first_difference == (None, cycle.actions[-1])
