"""Faulty devices: taken off a stage by evidence, probed after a cooldown, put back; the clips are not charged."""

import dataclasses

from ovi.stages import Stage
from ovi_ray.report.decisions import explain
from ovi_ray.scheduling.config import CircuitBreakerConfig, RetryConfig, SchedulerConfig
from ovi_ray.scheduling.events import SlotClosed, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import BreakerChange, BreakerReason, BreakerState, FailureKind, Reason
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate
from tests.support.scheduling import BIG, ENCODER, CheckedCluster, failed, joins, make_workload


def cluster_of(clips=30, *, devices, **config):
    workload = make_workload(clips)
    cluster = CheckedCluster(workload=workload, scheduler=Scheduler(workload, config=SchedulerConfig(**config)))
    cluster.send(*joins(**devices))
    return cluster


def changes(cluster):
    return [action for _, _, actions in cluster.log for action in actions if isinstance(action, BreakerChange)]


def states(cluster):
    return [(change.state, change.reason) for change in changes(cluster)]


def step(cluster, *, faulty=(), stages=(Stage.DENOISE,), seconds=1.0):
    """End the longest-running task, as a failure if the worker is faulty; pass to the next Tick when nothing runs."""
    if not cluster.running:
        cluster.now = max(cluster.now, cluster.wakes.pop(0))
        cluster.send(Tick())
        return
    worker, run = next(iter(cluster.running.items()))
    if worker in faulty and run.task.items and run.task.stage in stages:
        event = TaskFailed(worker=worker, task=run.task, kind=FailureKind.ERROR, message="the device is broken")
    else:
        event = TaskDone(worker=worker, task=run.task, seconds=seconds)
    cluster.send(event, after=seconds)


def run_until(cluster, condition, **options):
    for _ in range(2000):
        if condition():
            return
        assert not cluster.scheduler.done, "the job ended first"
        step(cluster, **options)
    raise AssertionError("the condition was never met")


def is_out(cluster, worker, stage=Stage.DENOISE):
    state = cluster.scheduler.pool.find(worker)
    return state is not None and stage in state.health.open_stages


def tries_of(cluster, worker):
    return [action.task for _, _, actions in cluster.log for action in actions
            if getattr(action, "worker", "") == worker and getattr(getattr(action, "task", None), "stage", None)
            is Stage.DENOISE and action.task.items]  # fmt: skip


def end(cluster, worker, kind=None):
    """End the worker's task, as a success or as a failure."""
    task = cluster.running[worker].task
    if kind is None:
        cluster.send(TaskDone(worker=worker, task=task, seconds=1.0), after=1.0)
    else:
        cluster.send(TaskFailed(worker=worker, task=task, kind=kind, message="the device is broken"), after=1.0)


def denoises(cluster, worker):
    run = cluster.running.get(worker)
    return run is not None and run.task.stage is Stage.DENOISE and bool(run.task.items)


def test_a_device_that_fails_clips_which_others_finish_is_taken_out_with_the_reason():
    cluster = cluster_of(devices={"good": BIG, "bad": BIG})
    for _ in range(2):
        run_until(cluster, lambda: denoises(cluster, "bad"))
        clip = cluster.running["bad"].task.items[0]
        end(cluster, "bad", FailureKind.ERROR)
        while clip not in cluster.denoised:
            end(cluster, "good")
    if cluster.running["bad"].task.stage is Stage.DENOISE:
        assert not is_out(cluster, "bad")  # it is at work on another clip
        end(cluster, "bad", FailureKind.ERROR)
    (out,) = changes(cluster)
    assert (out.worker, out.stage, out.state, out.cooldown_s) == ("bad", Stage.DENOISE, BreakerState.OPEN, 60.0)
    assert out.reason is BreakerReason.REFUTED
    assert explain(out) == (
        "denoise on bad is taken out of service for 60 s, because it failed tasks that other devices finished; "
        "last failure: the device is broken"
    )


def test_a_device_that_fails_faster_than_others_finish_is_taken_out_after_three_tasks():
    cluster = cluster_of(devices={"bad": BIG})
    run_until(cluster, lambda: cluster.scheduler.progress().stages[Stage.DENOISE].running)
    cluster.send(*joins(good=BIG))
    for _ in range(20):
        run = cluster.running.get("bad")
        if run is None:
            break
        if run.task.stage is Stage.DENOISE and run.task.items:
            cluster.send(TaskFailed(worker="bad", task=run.task, kind=FailureKind.ERROR), after=0.1)
        else:
            cluster.send(TaskDone(worker="bad", task=run.task, seconds=0.1), after=0.1)
    assert states(cluster) == [(BreakerState.OPEN, BreakerReason.CONSECUTIVE_FAILURES)]
    assert len({task.items for task in tries_of(cluster, "bad")}) == 3


def test_a_successful_probe_puts_the_device_back_into_service():
    cluster = cluster_of(devices={"good": BIG, "bad": BIG})
    run_until(cluster, lambda: is_out(cluster, "bad"), faulty=("bad",))
    failures = len(tries_of(cluster, "bad"))
    run_until(cluster, lambda: changes(cluster)[-1].state is BreakerState.CLOSED, seconds=5.0)
    assert states(cluster)[1:] == [
        (BreakerState.HALF_OPEN, BreakerReason.COOLDOWN_OVER),
        (BreakerState.CLOSED, BreakerReason.PROBE_DONE),
    ]
    cluster.finish_all()
    assert len(tries_of(cluster, "bad")) > failures + 1
    assert not failed(cluster)


def test_each_failed_probe_doubles_the_cooldown_up_to_its_limit():
    cluster = cluster_of(
        60, devices={"good": BIG, "bad": BIG}, circuit_breaker=CircuitBreakerConfig(max_cooldown_s=200.0)
    )
    run_until(
        cluster,
        lambda: len([s for s in states(cluster) if s[0] is BreakerState.OPEN]) == 4,
        faulty=("bad",),
        seconds=10.0,
    )
    cooldowns = [change.cooldown_s for change in changes(cluster) if change.state is BreakerState.OPEN]
    assert cooldowns == [60.0, 120.0, 200.0, 200.0]
    assert {change.reason for change in changes(cluster)[2::2]} == {BreakerReason.PROBE_FAILED}


def test_no_clip_is_charged_for_what_fails_on_a_faulty_device():
    cluster = cluster_of(80, devices={"good": BIG, "bad": BIG}, retry=RetryConfig(max_attempts=1))
    while not cluster.scheduler.done:
        step(cluster, faulty=("bad",) if "bad" in cluster.running and len(tries_of(cluster, "bad")) > 3 else ())
    assert len(cluster.finished) == 80


def test_clips_that_fail_on_two_faulty_devices_are_rendered_by_the_third():
    cluster = cluster_of(40, devices={"good": BIG, "bad": BIG, "worse": BIG})
    while not cluster.scheduler.done:
        step(cluster, faulty=("bad", "worse"))
    assert not failed(cluster)
    assert {change.worker for change in changes(cluster)} == {"bad", "worse"}


def test_a_worker_that_idles_only_because_of_its_stage_says_so():
    cluster = cluster_of(10, devices={"good": BIG, "bad": dataclasses.replace(BIG, stages=frozenset({Stage.DENOISE}))})
    run_until(cluster, lambda: is_out(cluster, "bad"), faulty=("bad",))
    assert cluster.scheduler.idle_reasons()["bad"] is Reason.QUARANTINED


def test_what_a_device_learned_is_kept_while_it_is_off_a_stage():
    cluster = cluster_of(40, devices={"good": BIG, "bad": BIG})
    run_until(cluster, lambda: is_out(cluster, "bad"), faulty=("bad",), seconds=5.0)
    good, bad = (cluster.scheduler.pool.find(name) for name in ("good", "bad"))
    assert good.device_class != bad.device_class
    seconds = [cluster.scheduler.pool.costs.seconds(w.device_class, Stage.DECODE, 0) for w in (good, bad)]
    assert seconds[0] == seconds[1]


def test_a_success_at_another_stage_does_not_close_the_breaker():
    cluster = cluster_of(40, devices={"good": BIG, "bad": BIG})
    run_until(cluster, lambda: is_out(cluster, "bad", Stage.DECODE), faulty=("bad",), stages=(Stage.DECODE,))
    while not cluster.scheduler.done:
        step(cluster, faulty=("bad",), stages=(Stage.DECODE,))
    assert BreakerState.CLOSED not in {change.state for change in changes(cluster)}
    assert not failed(cluster)


def test_a_device_that_fails_now_and_then_stays_in_service():
    cluster = cluster_of(60, devices={"good": BIG, "bad": BIG})
    while not cluster.scheduler.done:
        step(cluster, faulty=("bad",) if len(tries_of(cluster, "bad")) % 5 == 0 else ())
    assert not changes(cluster)
    assert not failed(cluster)


def test_the_only_device_of_a_stage_is_never_taken_out():
    cluster = cluster_of(4, devices={"bad": BIG, "encoder": ENCODER})
    while not cluster.scheduler.done:
        step(cluster, faulty=("bad",))
    assert not changes(cluster)
    assert len(failed(cluster)) == 4


def test_clips_that_fail_everywhere_end_failed_and_open_no_breaker_twice():
    cluster = cluster_of(30, devices={"a": BIG, "b": BIG, "c": BIG})
    while not cluster.scheduler.done:
        worker, run = next(iter(cluster.running.items())) if cluster.running else ("", None)
        is_bad = run is not None and run.task.stage is Stage.DENOISE and run.task.items and run.task.items[0] < 4
        step(cluster, faulty=(worker,) if is_bad else ())
    assert set(failed(cluster)) == {0, 1, 2, 3}
    assert {change.cooldown_s for change in changes(cluster)} <= {0.0, 60.0}


def test_workers_that_follow_each_other_in_a_slot_share_its_breaker():
    cluster = cluster_of(40, devices={"w0": BIG, "w1": BIG, "w2": BIG})
    for life in range(1, 9):
        run_until(cluster, lambda: any(w.startswith("w0") and r.task.stage is Stage.DENOISE and r.task.items
                                       for w, r in cluster.running.items()) or changes(cluster))  # fmt: skip
        if changes(cluster):
            break
        worker = next(worker for worker in cluster.running if worker.startswith("w0"))
        cluster.send(WorkerLost(worker=worker), after=1.0)
        cluster.send(WorkerJoined(worker=f"w0.{life}", slot="w0", device=BIG), after=1.0)
    assert changes(cluster)[0].state is BreakerState.OPEN
    cluster.finish_all()
    assert not failed(cluster)


def test_a_clip_whose_worker_crashed_is_not_retried_by_its_replacement():
    cluster = cluster_of(12, devices={"w0": BIG, "w1": BIG})
    run_until(cluster, lambda: "w0" in cluster.running and cluster.running["w0"].task.stage is Stage.DENOISE
              and cluster.running["w0"].task.items)  # fmt: skip
    crashed = cluster.running["w0"].task.items
    cluster.send(WorkerLost(worker="w0"))
    cluster.send(WorkerJoined(worker="w0.1", slot="w0", device=BIG))
    cluster.finish_all()
    assert crashed not in [task.items for task in tries_of(cluster, "w0.1")]
    assert tries_of(cluster, "w1")
    assert not failed(cluster)


def test_nobody_is_charged_when_several_texts_were_in_a_batch_that_failed():
    cluster = cluster_of(6, devices={"a": BIG}, retry=RetryConfig(max_attempts=1))
    run = cluster.running["a"]
    assert len(run.task.items) > 1
    cluster.send(TaskFailed(worker="a", task=run.task, kind=FailureKind.ERROR, message="boom"))
    assert len(cluster.running["a"].task.items) == 1
    cluster.finish_all()
    assert not failed(cluster)


def test_a_crash_with_a_batch_of_texts_is_charged_to_none_and_the_fatal_one_is_found():
    cluster = cluster_of(4, devices={"a": BIG})
    poison = 2
    lives = 0
    while not cluster.scheduler.done:
        worker, run = next(iter(cluster.running.items()))
        if run.task.stage is Stage.ENCODE_TEXT and poison in run.task.items:
            lives += 1
            cluster.send(WorkerLost(worker=worker), after=1.0)
            cluster.send(WorkerJoined(worker=f"a.{lives}", slot="a", device=BIG), after=1.0)
        else:
            cluster.send(TaskDone(worker=worker, task=run.task, seconds=1.0), after=1.0)
    assert list(failed(cluster)) == [poison]
    assert failed(cluster)[poison].startswith("poison: 3 workers died")
    assert lives == 4  # once in the batch, three times alone


def test_a_job_waits_for_its_quarantined_device_when_the_others_are_gone():
    cluster = cluster_of(10, devices={"good": BIG, "bad": BIG})
    run_until(cluster, lambda: is_out(cluster, "bad"), faulty=("bad",))
    cluster.send(WorkerLost(worker="good", crashed=False))
    cluster.send(SlotClosed(slot="good"))
    assert not denoises(cluster, "bad")
    cluster.finish_all()
    assert not failed(cluster)


def test_a_device_that_is_faulty_for_a_while_is_probed_rarely_and_used_again_once_it_recovered():
    healthy_at = 3000.0
    devices = [
        VirtualDevice(name="good", profile=BIG),
        VirtualDevice(name="bad", profile=BIG, faulty=((300.0, healthy_at),)),
    ]
    outcome = simulate(make_workload(150), devices, keep_spans=True)
    assert (outcome.done, outcome.failed) == (150, 0)
    denoises = [s for s in outcome.spans if s.worker == "bad" and s.task.stage is Stage.DENOISE and s.task.items]
    while_faulty = [span for span in denoises if 300.0 <= span.start_s < healthy_at]
    afterwards = [span for span in denoises if span.start_s >= healthy_at and span.end_s - span.start_s > 60]
    assert 3 <= len(while_faulty) <= 12
    assert len(afterwards) > 20
    assert afterwards[0].start_s < healthy_at + CircuitBreakerConfig().max_cooldown_s + 10
