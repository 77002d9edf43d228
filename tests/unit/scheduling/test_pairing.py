"""Denoises that an idle worker assists: when one is, what its ends mean, and what it saves."""

from dataclasses import replace

import pytest

from ovi.quality import Quality
from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel
from ovi_ray.scheduling.config import Pairing, PairingConfig, SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.events import TaskDone, TaskFailed, Tick, WorkerLost
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.states import WorkerStatus
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Reason
from ovi_ray.simulation.virtual_cluster import Fault, VirtualDevice, simulate
from tests.support.scheduling import BIG, LARGE, MIDDLE, SMALL, CheckedCluster, joins, make_workload


def scheduler_of(workload, when=Pairing.TAIL, *, speculates=False):
    config = SchedulerConfig(pairing=PairingConfig(when=when), speculation=SpeculationConfig(enabled=speculates))
    return Scheduler(workload, config=config)


def cluster_of(*events, clips=1, kinds=(SMALL,), when=Pairing.TAIL, speculates=False, quality=Quality.EXACT):
    """A cluster whose clips are all about to be denoised."""
    workload = make_workload(clips, kinds=kinds)
    workload = replace(workload, kinds=tuple(replace(kind, quality=quality) for kind in workload.kinds))
    cluster = CheckedCluster(workload=workload, scheduler=scheduler_of(workload, when, speculates=speculates))
    cluster.send(*events)
    while begun := [
        run for run in cluster.running.values() if run.task.stage is not Stage.DENOISE or not run.task.items
    ]:
        cluster.send(*[TaskDone(worker=run.worker, task=run.task, seconds=0.1) for run in begun], after=0.1)
    return cluster


def assists(cluster):
    """Helper -> leader."""
    return {run.worker: run.leader for run in cluster.running.values() if run.task.assists}


def pair(cluster):
    """(leader, helper) of the only pair."""
    ((helper, leader),) = assists(cluster).items()
    return leader, helper


def pool_worker(cluster, clip):
    """The worker that began a clip first."""
    name = next(run.worker for run in cluster.running.values() if run.task.items == (clip,) and run.task.attempt == 1)
    return cluster.scheduler.pool.find(name)


def done(cluster, worker, seconds=10.0, **changes):
    return TaskDone(worker=worker, task=cluster.running[worker].task, seconds=seconds, **changes)


def failed(cluster, worker, kind=FailureKind.ERROR):
    return TaskFailed(worker=worker, task=cluster.running[worker].task, kind=kind, message="it broke")


NEARLY_BIG = replace(BIG, name="nearly 80gb", speed=0.95)
TWO = joins(node="n", w0=BIG, w1=BIG)


def test_an_idle_worker_assists_the_last_denoise_on_its_node():
    cluster = cluster_of(*TWO)
    leader, helper = pair(cluster)
    pool = cluster.scheduler.pool
    assert pool.find(helper).status is WorkerStatus.ASSISTING
    assert pool.find(helper).expected_end_s == pytest.approx(pool.find(leader).expected_end_s)
    assert cluster.running[helper].reason is Reason.ASSISTS


def test_a_lossy_denoise_which_may_leave_passes_out_is_not_assisted():
    assert not assists(cluster_of(*TWO, quality=Quality.FAST))


@pytest.mark.parametrize(
    "workers",
    [
        joins(w0=BIG, w1=BIG),
        [*joins(node="n", w0=BIG), *joins(node="m", w1=BIG)],
        joins(node="n", w0=BIG, w1=MIDDLE),
        joins(node="n", w0=BIG),
    ],
    ids=["on no node", "on two nodes", "of two classes", "alone"],
)
def test_workers_that_cannot_share_a_denoise_do_not(workers):
    assert not assists(cluster_of(*workers))


@pytest.mark.parametrize(("when", "expected"), [(Pairing.OFF, 0), (Pairing.TAIL, 0), (Pairing.ALWAYS, 2)])
def test_in_bulk_clips_share_devices_only_where_that_was_asked_for(when, expected):
    cluster = cluster_of(*joins(node="n", w0=BIG, w1=BIG, w2=BIG, w3=BIG), clips=12, when=when)
    running = [run for run in cluster.running.values() if run.task.stage is Stage.DENOISE]
    assert (len(running), len(assists(cluster))) == (4, expected)


def test_a_clip_that_ends_before_one_that_cannot_end_sooner_is_left_alone():
    cluster = cluster_of(*joins(node="m", w0=BIG), *joins(node="n", w1=BIG), clips=2, kinds=(LARGE, SMALL))
    worker_of = {run.task.items: run.worker for run in cluster.running.values()}
    node_of_long, node_of_short = (cluster.nodes[worker_of[clip,]] for clip in (0, 1))
    cluster.send(*joins(node=node_of_short, w2=BIG))
    assert not assists(cluster)
    cluster.send(*joins(node=node_of_long, w3=BIG))
    assert assists(cluster) == {"w3": worker_of[0,]}


def test_a_helper_that_is_known_to_be_half_as_fast_is_not_asked():
    cluster = cluster_of(*joins(node="n", w0=BIG), clips=1)
    pool = cluster.scheduler.pool
    seconds = pool.costs.seconds(0, Stage.DENOISE, 0)
    for _ in range(10):
        pool.costs.observe(0, pool.find("w0").number, Stage.DENOISE, 0, 1.0, seconds)
        pool.costs.observe(0, 1, Stage.DENOISE, 0, 1.0, 3 * seconds)
    assert pool.costs.worker_factor(1) > 2 * pool.costs.worker_factor(0)
    cluster.send(*joins(node="n", w1=BIG))
    assert not assists(cluster)


def test_a_pair_that_is_late_parts_and_its_clip_is_copied():
    cluster = cluster_of(*TWO, speculates=True)
    leader, helper = pair(cluster)
    task, late_s = cluster.running[helper].task, cluster.wakes[-1]
    assert late_s > cluster.scheduler.pool.find(leader).expected_end_s
    assert cluster.send(Tick(), after=late_s - cluster.now) == [
        Cancel(worker=helper, task=task, reason=Reason.BETTER_ALONE)
    ]
    cluster.send(failed(cluster, helper, FailureKind.CANCELLED), after=1)
    assert cluster.running[helper].reason is Reason.SPECULATIVE_COPY
    cluster.finish_all()
    assert cluster.finished[0].status is ClipStatus.DONE


def test_a_pair_parts_when_a_faster_device_begins_its_clip_too():
    cluster = cluster_of(*joins(node="n", w0=MIDDLE, w1=MIDDLE), speculates=True)
    _, helper = pair(cluster)
    task = cluster.running[helper].task
    actions = cluster.send(*joins(node="m", w2=BIG))
    assert actions[0] == Cancel(worker=helper, task=task, reason=Reason.BETTER_ALONE)
    assert cluster.running["w2"].reason is Reason.SPECULATIVE_COPY


def test_a_hedge_ends_when_its_clip_is_sure_to_end_first_on_two_devices():
    """Two clips on one machine, each hedged by a device of another class until the first of them has ended."""
    cluster = cluster_of(*joins(node="n", w0=BIG, w1=BIG), clips=2, kinds=(LARGE, SMALL), speculates=True)
    cluster.send(*joins(node="m", x0=NEARLY_BIG, x1=NEARLY_BIG))
    hedges = {run.task.items: run for run in cluster.running.values() if run.reason is Reason.SPECULATIVE_COPY}
    assert {run.worker for run in hedges.values()} == {"x0", "x1"}
    long, short = (pool_worker(cluster, clip) for clip in (0, 1))
    cluster.send(done(cluster, short.name, short.work_s), after=short.expected_end_s - cluster.now)
    cluster.send(failed(cluster, hedges[1,].worker, FailureKind.CANCELLED))
    actions = cluster.send(done(cluster, short.name, 1.0), after=1.0)  # the decode
    assert Cancel(worker=hedges[0,].worker, task=hedges[0,].task, reason=Reason.NOT_NEEDED) in actions
    assert assists(cluster) == {short.name: long.name}
    cluster.send(failed(cluster, hedges[0,].worker, FailureKind.CANCELLED))
    assert cluster.running[long.name].task.attempt == 1
    cluster.finish_all()
    assert sorted(cluster.denoised) == [0, 1]


def test_a_clip_that_will_end_before_a_helper_is_ready_is_not_assisted_and_the_next_one_begins():
    cluster = cluster_of(*joins(node="n", w0=BIG), clips=12, when=Pairing.ALWAYS)
    first = cluster.scheduler.pool.find("w0")
    cluster.send(done(cluster, "w0", first.work_s), after=first.expected_end_s - cluster.now)
    while cluster.running["w0"].task.stage is not Stage.DENOISE:
        cluster.send(done(cluster, "w0", 1.0), after=1.0)
    cluster.send(*joins(node="n", w1=BIG), after=first.expected_end_s - 1 - cluster.now)
    assert not assists(cluster)
    assert cluster.running["w1"].task.stage is Stage.DENOISE


def test_the_end_of_a_leader_ends_its_helper_and_no_clip_is_denoised_twice():
    cluster = cluster_of(*TWO)
    leader, helper = pair(cluster)
    task = cluster.running[helper].task
    actions = cluster.send(done(cluster, leader), after=10)
    assert Cancel(worker=helper, task=task, reason=Reason.LEADER_ENDED) in actions
    cluster.send(TaskFailed(worker=helper, task=task, kind=FailureKind.CANCELLED), after=0.1)
    cluster.finish_all()
    assert (cluster.denoised, cluster.finished[0].status) == ([0], ClipStatus.DONE)


def test_a_helper_that_hears_of_the_end_before_the_driver_does_begins_no_copy():
    cluster = cluster_of(*TWO, speculates=True)
    leader, helper = pair(cluster)
    cluster.send(done(cluster, helper), after=1000)  # so late that the denoise would be copied
    assert set(cluster.running) == {leader}
    cluster.send(done(cluster, leader), after=0.01)
    assert cluster.denoised == [0]


def test_clips_that_are_fewer_than_devices_are_spread_over_the_nodes():
    nodes = [joins(node=node, **{f"{node}{number}": BIG for number in range(4)}) for node in "ab"]
    cluster = cluster_of(*nodes[0], *nodes[1], clips=4)
    leaders = sorted(assists(cluster).values())
    assert [leader[0] for leader in leaders] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("end", ["error", "out of memory", "cancelled", "crash", "departure"])
def test_a_helper_that_ends_leaves_the_clip_to_its_leader_alone(end):
    cluster = cluster_of(*TWO)
    leader, helper = pair(cluster)
    pool = cluster.scheduler.pool
    ends_at = pool.find(leader).expected_end_s
    match end:
        case "crash" | "departure":
            event = WorkerLost(worker=helper, crashed=end == "crash")
        case "error":
            event = failed(cluster, helper)
        case "out of memory":
            event = failed(cluster, helper, FailureKind.OUT_OF_MEMORY)
        case _:
            event = failed(cluster, helper, FailureKind.CANCELLED)
    cluster.send(event, after=1)
    assert not assists(cluster)
    assert cluster.running[leader].task.attempt == 1
    assert pool.find(leader).expected_end_s > ends_at
    assert not cluster.scheduler.retries
    cluster.finish_all()
    assert cluster.finished[0].status is ClipStatus.DONE


def test_a_failed_helper_is_charged_and_not_its_leader():
    cluster = cluster_of(*TWO)
    leader, helper = pair(cluster)
    cluster.send(failed(cluster, helper), after=1)
    pool = cluster.scheduler.pool
    trusted = {name: pool.find(name).health.of(Stage.DENOISE).is_trusted for name in (leader, helper)}
    assert trusted == {leader: True, helper: False}


def test_a_clip_whose_leader_failed_is_tried_again_on_one_device():
    cluster = cluster_of(*joins(node="n", w0=BIG, w1=BIG, w2=BIG))
    leader, _ = pair(cluster)
    cluster.send(failed(cluster, leader), after=1)
    cluster.send(*(failed(cluster, w, FailureKind.CANCELLED) for w in list(cluster.cancelled)), after=1)
    again = [run for run in cluster.running.values() if run.task.stage is Stage.DENOISE]
    assert [(run.task.attempt, run.task.assists, run.worker != leader) for run in again] == [(2, False, True)]


@pytest.mark.parametrize("crashed", [True, False])
def test_a_leader_that_is_lost_frees_its_helper_which_goes_on_with_the_clip(crashed):
    cluster = cluster_of(*TWO)
    leader, helper = pair(cluster)
    task = cluster.running[helper].task
    actions = cluster.send(WorkerLost(worker=leader, crashed=crashed), after=1)
    assert Cancel(worker=helper, task=task, reason=Reason.LEADER_ENDED) in actions
    cluster.send(failed(cluster, helper, FailureKind.CANCELLED))
    run = cluster.running[helper]
    assert (run.task.stage, run.task.items, run.task.assists) == (Stage.DENOISE, (0,), False)
    cluster.send(*joins(node="n", w2=BIG))
    assert assists(cluster) == ({} if crashed else {"w2": helper})  # a clip that may kill workers is left to one
    cluster.finish_all()
    assert cluster.finished[0].status is ClipStatus.DONE


def test_devices_whose_pairs_failed_are_not_paired_again():
    cluster = cluster_of(*TWO, clips=4, when=Pairing.ALWAYS)
    failures = 0
    for _ in range(60):
        if cluster.scheduler.done:
            break
        if assists(cluster):
            _, helper = pair(cluster)
            failures += 1
            cluster.send(failed(cluster, helper, FailureKind.CANCELLED), after=1)
        else:
            cluster.send(done(cluster, next(iter(cluster.running))), after=1)
    assert (cluster.scheduler.done, failures) == (True, 2)


def test_what_is_learned_of_a_shared_denoise_is_what_it_takes_alone():
    cluster = cluster_of(*TWO)
    leader, _ = pair(cluster)
    pool = cluster.scheduler.pool
    alone_s = pool.costs.seconds(pool.find(leader).device_class, Stage.DENOISE, 0)
    worker = pool.find(leader)
    seconds = worker.work_s
    assert seconds < 0.7 * alone_s
    event = done(cluster, leader, seconds, load_seconds=worker.load_s)
    cluster.send(event, after=worker.expected_end_s - cluster.now)
    assert pool.costs.seconds(worker.device_class, Stage.DENOISE, 0) == pytest.approx(alone_s, rel=0.02)


# --- in the simulator


def devices(count, **changes):
    return [VirtualDevice(name=f"w{number}", profile=BIG, node="n", **changes) for number in range(count)]


def makespan(clips, machine, when=Pairing.TAIL):
    workload = make_workload(clips)
    return simulate(workload, machine, scheduler=scheduler_of(workload, when)).makespan_s


@pytest.mark.parametrize(("clips", "count", "share"), [(1, 2, 0.67), (3, 2, 0.87), (5, 4, 0.87)])
def test_the_last_clips_of_a_job_end_sooner(clips, count, share):
    machine = devices(count)
    assert makespan(clips, machine) < share * makespan(clips, machine, Pairing.OFF)


def test_a_helper_that_fails_costs_no_time():
    machine = devices(2)
    machine[1] = replace(machine[1], faults=(Fault(stages=frozenset({Stage.DENOISE})),))
    alone = makespan(1, devices(1), Pairing.OFF)
    assert makespan(1, machine) <= 1.1 * alone


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("clips", [1, 3])
def test_a_slow_device_in_a_pair_makes_no_job_later(slow, clips):
    machine = devices(2)
    machine[slow] = replace(machine[slow], slowdowns=((0.0, 8.0),))
    ends = {}
    for when in (Pairing.OFF, Pairing.TAIL):
        workload = make_workload(clips)
        scheduler = scheduler_of(workload, when, speculates=True)
        ends[when] = simulate(workload, machine, scheduler=scheduler).makespan_s
    assert ends[Pairing.TAIL] < ends[Pairing.OFF] + 12  # the seconds after which the leader is out of patience, and two


def test_a_helper_that_leaves_keeps_what_it_did():
    machine = devices(2)
    paired, alone = makespan(1, machine), makespan(1, machine, Pairing.OFF)
    leaving = [[replace(d, leaves_at_s=0.6 * paired) if d is leaves else d for d in machine] for leaves in machine]
    assert paired < min(makespan(1, machine) for machine in leaving) < alone  # the other one is the leader


def test_with_two_devices_for_each_clip_the_first_one_ends_sooner_and_the_job_not_much_later():
    workload, machine = make_workload(8), devices(4)
    firsts, ends = {}, {}
    for when in (Pairing.OFF, Pairing.ALWAYS):
        outcome = simulate(workload, machine, scheduler=scheduler_of(workload, when), keep_spans=True)
        firsts[when] = min(span.end_s for span in outcome.spans if span.task.stage is Stage.DECODE)
        ends[when] = outcome.makespan_s
    assert firsts[Pairing.ALWAYS] < 0.7 * firsts[Pairing.OFF]
    assert ends[Pairing.ALWAYS] < 1.1 * ends[Pairing.OFF]
