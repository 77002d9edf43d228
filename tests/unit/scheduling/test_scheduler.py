"""The scheduler's rules, by example. test_scheduler_properties.py has them over any order of events."""

import dataclasses

import pytest
from yardsticks.baseline_policies import SCHEDULERS

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.scheduling.actions import Cancel, Drop, RunTask, WakeAt
from ovi_ray.scheduling.config import RetryConfig, SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.events import DeviceFree, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.task import BreakerChange, DataKind, FailureKind, Reason
from ovi_ray.scheduling.workload import Workload
from tests.support.scheduling import (
    BIG,
    ENCODER,
    IMAGE,
    LARGE,
    MIDDLE,
    SLOW,
    SMALL,
    SMALL_CARD,
    CheckedCluster,
    failed,
    joins,
    make_workload,
)


def cluster_for(workload: Workload, **options: object) -> CheckedCluster:
    return CheckedCluster(workload=workload, scheduler=Scheduler(workload, **options))  # type: ignore[arg-type]


def run_stage(cluster: CheckedCluster, stage: Stage) -> RunTask:
    """Complete tasks until one of `stage` with items runs; return it."""
    for _ in range(200):
        for run in cluster.running.values():
            if run.task.stage is stage and run.task.items:
                return run
        worker, run = next(iter(cluster.running.items()))
        cluster.send(TaskDone(worker=worker, task=run.task, seconds=1.0), after=1.0)
    raise AssertionError(f"{stage} never ran")


def fail(cluster: CheckedCluster, run: RunTask, kind: FailureKind, message: str = "boom") -> None:
    cluster.send(TaskFailed(worker=run.worker, task=run.task, kind=kind, message=message), after=1.0)


@pytest.mark.parametrize("policy", SCHEDULERS)
@pytest.mark.parametrize(
    "devices",
    [{"a": BIG}, {"a": BIG, "b": SMALL_CARD}, {"a": MIDDLE, "b": MIDDLE, "c": SLOW, "d": SMALL_CARD, "e": BIG}],
)
def test_every_policy_finishes_every_clip(policy, devices):
    workload = make_workload(30, kinds=(SMALL, IMAGE))
    cluster = CheckedCluster(workload=workload, scheduler=SCHEDULERS[policy](workload))
    cluster.send(*joins(**devices))
    cluster.finish_all()
    assert len(cluster.finished) == 30
    assert not failed(cluster)


def test_each_distinct_text_is_encoded_once():
    cluster = cluster_for(make_workload(40, distinct_texts=5))
    cluster.send(*joins(a=BIG, b=BIG))
    cluster.finish_all()
    encoded = [i for _, _, actions in cluster.log for a in actions
               if isinstance(a, RunTask) and a.task.stage is Stage.ENCODE_TEXT for i in a.task.items]  # fmt: skip
    assert sorted(encoded) == list(range(7))


def test_all_data_is_dropped_in_the_end():
    cluster = cluster_for(make_workload(12, kinds=(SMALL, IMAGE)))
    cluster.send(*joins(a=BIG, b=SMALL_CARD))
    cluster.finish_all()
    assert not cluster.held


def test_clips_with_latents_begin_at_decode():
    cluster = cluster_for(make_workload(4, with_latents=(1, 3)))
    cluster.send(*joins(a=BIG))
    cluster.finish_all()
    assert sorted(cluster.denoised) == [0, 2]
    assert len(cluster.finished) == 4


def test_an_empty_job_is_done():
    assert Scheduler(make_workload(0)).done


def test_bad_text_fails_every_clip_that_needs_it_and_no_other():
    cluster = cluster_for(make_workload(6, distinct_texts=3))
    cluster.send(*joins(a=BIG))
    run = run_stage(cluster, Stage.ENCODE_TEXT)
    cluster.send(TaskFailed(worker="a", task=run.task, kind=FailureKind.BAD_INPUT, message="not text", items=(1,)))
    cluster.finish_all()
    assert failed(cluster) == {1: "not text", 4: "not text"}


def test_a_batch_with_a_bad_text_is_split_until_the_bad_one_is_found():
    cluster = cluster_for(make_workload(6))
    cluster.send(*joins(a=BIG))
    while not cluster.scheduler.done:
        run = cluster.running["a"]
        if run.task.stage is Stage.ENCODE_TEXT and 1 in run.task.items:
            fail(cluster, run, FailureKind.BAD_INPUT, "not text")
        else:
            cluster.send(TaskDone(worker="a", task=run.task, seconds=1.0), after=1.0)
    assert failed(cluster) == {1: "not text"}


def test_bad_input_in_denoise_fails_its_clip_at_once():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG))
    run = run_stage(cluster, Stage.DENOISE)
    fail(cluster, run, FailureKind.BAD_INPUT, "size")
    cluster.finish_all()
    assert failed(cluster) == {run.task.items[0]: "size"}


def test_an_error_is_retried_on_another_worker_and_given_up_after_three_attempts():
    cluster = cluster_for(make_workload(1))
    cluster.send(*joins(a=BIG, b=BIG, c=BIG))
    workers = []
    for attempt in (1, 2, 3):
        run = run_stage(cluster, Stage.DENOISE)
        assert run.task.attempt == attempt
        workers.append(run.worker)
        fail(cluster, run, FailureKind.ERROR)
    assert len(set(workers)) == 3
    assert failed(cluster) == {0: "boom"}


def test_an_error_is_retried_on_the_only_worker():
    cluster = cluster_for(make_workload(2))
    cluster.send(*joins(a=BIG))
    fail(cluster, run_stage(cluster, Stage.DENOISE), FailureKind.ERROR)
    cluster.finish_all()
    assert not failed(cluster)


def test_a_decode_that_fails_costs_no_second_denoise():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG, b=BIG))
    fail(cluster, run_stage(cluster, Stage.DECODE), FailureKind.ERROR)
    fail(cluster, run_stage(cluster, Stage.DECODE), FailureKind.OUT_OF_MEMORY)
    cluster.finish_all()
    assert sorted(cluster.denoised) == [0, 1, 2]
    assert not failed(cluster)


def test_out_of_memory_is_retried_alone_and_then_on_a_larger_device():
    without_copies = SchedulerConfig(speculation=SpeculationConfig(enabled=False))
    cluster = cluster_for(make_workload(1), config=without_copies)
    cluster.send(*joins(small=MIDDLE, large=SLOW))
    run = run_stage(cluster, Stage.DENOISE)
    while run.worker == "large":  # whichever is first, in the end the larger one has it
        fail(cluster, run, FailureKind.CANCELLED)
        run = run_stage(cluster, Stage.DENOISE)
    fail(cluster, run, FailureKind.OUT_OF_MEMORY)
    again = run_stage(cluster, Stage.DENOISE)
    assert again.components == frozenset({Component.TRANSFORMER})
    if again.worker == "small":
        fail(cluster, again, FailureKind.OUT_OF_MEMORY)
        assert run_stage(cluster, Stage.DENOISE).worker == "large"
    cluster.finish_all()
    assert not failed(cluster)


def test_a_lost_worker_is_not_charged_and_its_task_is_done_again():
    cluster = cluster_for(make_workload(4), config=SchedulerConfig(retry=RetryConfig(max_crashes=3, max_attempts=1)))
    cluster.send(*joins(a=BIG, b=BIG))
    for _ in range(2):
        run = run_stage(cluster, Stage.DENOISE)
        cluster.send(WorkerLost(worker=run.worker))
        cluster.send(*joins(**{run.worker: BIG}))
    cluster.finish_all()
    assert not failed(cluster)


def test_a_clip_that_was_alone_with_three_crashes_is_poison_and_is_tried_after_the_others():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG))
    while not cluster.scheduler.done:
        run = cluster.running["a"]
        if run.task.stage is Stage.DENOISE and run.task.items == (0,):
            cluster.send(WorkerLost(worker="a", log="worker.err on host"), after=1.0)
            cluster.send(*joins(a=BIG), after=1.0)
        else:
            cluster.send(TaskDone(worker="a", task=run.task, seconds=1.0), after=1.0)
    assert list(cluster.finished)[-1] == 0
    assert list(failed(cluster)) == [0]
    assert failed(cluster)[0].startswith("poison")
    assert "worker.err on host" in failed(cluster)[0]


def begin_write(cluster: CheckedCluster, run: RunTask) -> None:
    cluster.send(DeviceFree(worker=run.worker, task=run.task, seconds=1.0), after=1.0)


def test_a_worker_gets_the_next_task_while_it_writes_a_video_and_the_clip_is_done_when_that_ends():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG))
    run = run_stage(cluster, Stage.DECODE)
    begin_write(cluster, run)
    assert cluster.running["a"].task != run.task
    assert not cluster.finished
    cluster.send(TaskDone(worker="a", task=run.task, seconds=1.0), after=1.0)
    assert list(cluster.finished) == list(run.task.items)
    assert cluster.running["a"].task != run.task


def test_a_write_that_fails_costs_its_own_clip_another_decode():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG))
    run = run_stage(cluster, Stage.DECODE)
    begin_write(cluster, run)
    fail(cluster, run, FailureKind.CANCELLED)
    cluster.finish_all()
    runs = [action for _, _, actions in cluster.log for action in actions if isinstance(action, RunTask)]
    assert sum(again.task.stage is Stage.DECODE and again.task.items == run.task.items for again in runs) == 2
    assert sorted(cluster.denoised) == [0, 1, 2]
    assert not failed(cluster)


def test_a_worker_that_dies_while_it_writes_loses_no_clip_and_charges_none():
    cluster = cluster_for(make_workload(3), config=SchedulerConfig(retry=RetryConfig(max_crashes=1)))
    cluster.send(*joins(a=BIG))
    run = run_stage(cluster, Stage.DECODE)
    begin_write(cluster, run)
    cluster.send(WorkerLost(worker="a"))
    cluster.send(*joins(a2=BIG))
    cluster.finish_all()
    assert sorted(cluster.finished) == [0, 1, 2]
    assert not failed(cluster)


def test_a_clip_whose_write_kills_its_worker_every_time_is_poison_and_the_others_are_rendered():
    cluster, deaths = cluster_for(make_workload(4)), 0
    cluster.send(*joins(a=BIG))
    while not cluster.scheduler.done:
        run = next((r for r in cluster.given() if r.task.stage is Stage.DECODE and r.task.items == (0,)), None)
        if run is not None and run not in cluster.writing:
            begin_write(cluster, run)
            deaths += 1
            cluster.send(WorkerLost(worker="a"), after=1.0)
            cluster.send(*joins(a=BIG), after=1.0)
        else:
            run = cluster.given()[0]
            cluster.send(TaskDone(worker=run.worker, task=run.task, seconds=1.0), after=1.0)
    assert list(failed(cluster)) == [0]
    assert "poison" in failed(cluster)[0]
    assert deaths <= 4  # the first time another task ran beside it


def test_a_worker_begins_no_task_beside_more_writes_than_it_may_have():
    cluster = cluster_for(make_workload(6, with_latents=tuple(range(6))), config=SchedulerConfig(max_writes=2))
    cluster.send(*joins(a=BIG))
    for _ in range(3):
        begin_write(cluster, cluster.running["a"])
    assert (len(cluster.writing), len(cluster.running)) == (2, 1)
    begun = cluster.running["a"]
    written = cluster.writing[0]
    cluster.send(TaskDone(worker="a", task=written.task, seconds=1.0), after=1.0)
    cluster.finish_all()
    assert begun.task.stage is Stage.DECODE
    assert not failed(cluster)


def test_planned_departures_never_make_poison():
    cluster = cluster_for(make_workload(1))
    cluster.send(*joins(a=BIG))
    for _ in range(5):
        run_stage(cluster, Stage.DENOISE)
        cluster.send(WorkerLost(worker="a", crashed=False))
        cluster.send(*joins(a=BIG))
    cluster.finish_all()
    assert not failed(cluster)


def test_a_preload_that_fails_is_not_tried_again_at_once():
    cluster = cluster_for(make_workload(4))
    cluster.send(*joins(a=BIG, b=BIG, c=SMALL_CARD))
    preload = next(run for run in cluster.running.values() if not run.task.items)
    assert preload.reason is Reason.PRELOAD
    fail(cluster, preload, FailureKind.ERROR)
    assert preload.worker not in cluster.running
    cluster.finish_all()
    assert not failed(cluster)


def preloads_before_the_first_text(kinds, clips, **devices):
    """The models that idle workers load, one preload after the other, while the first texts are still encoded."""
    cluster, loaded = cluster_for(make_workload(clips, kinds=kinds)), []
    cluster.send(*joins(**devices))
    while preloads := [run for run in cluster.running.values() if not run.task.items]:
        loaded.append(preloads[0].model_name)
        assert len(loaded) < 20, "there is no end to the preloads"
        cluster.send(TaskDone(worker=preloads[0].worker, task=preloads[0].task, seconds=10.0), after=10.0)
    return loaded


@pytest.mark.parametrize("clips", [6, 9])
@pytest.mark.parametrize("kinds", [(SMALL, LARGE), (LARGE, SMALL, dataclasses.replace(SMALL, height=512))])
@pytest.mark.parametrize("idle", [1, 2, 3])
def test_an_idle_worker_keeps_the_model_that_waits_for_it_though_clips_of_another_wait_too(clips, kinds, idle):
    loaded = preloads_before_the_first_text(kinds, clips, **{f"w{number}": BIG for number in range(idle + 1)})
    assert len(loaded) == idle


def test_a_model_that_more_workers_hold_than_clips_wait_for_makes_room_for_another():
    workload = make_workload(6, kinds=(LARGE, SMALL, SMALL))
    cluster = cluster_for(workload)
    held = {"resident": frozenset({Component.TRANSFORMER}), "model_name": LARGE.model_name}
    cluster.send(*(dataclasses.replace(event, **held) for event in joins(**dict.fromkeys("abcde", BIG))))
    preloads = [run.model_name for run in cluster.running.values() if not run.task.items]
    assert preloads == [SMALL.model_name] * 2  # one of five encodes; two large clips wait, and four small ones


def test_texts_that_no_clip_needs_any_more_are_not_encoded():
    cluster = cluster_for(make_workload(3), config=SchedulerConfig(text_batch=1))
    cluster.send(*joins(a=BIG))
    for negative in (1, 2):  # the first clip's prompt, then a negative that all need
        run = run_stage(cluster, Stage.ENCODE_TEXT)
        if negative == 2:
            fail(cluster, run, FailureKind.BAD_INPUT, "bad negative")
        else:
            cluster.send(TaskDone(worker="a", task=run.task, seconds=1.0), after=1.0)
    cluster.finish_all()
    assert len(failed(cluster)) == 3
    encoded = [i for _, _, actions in cluster.log for a in actions
               if isinstance(a, RunTask) and a.task.stage is Stage.ENCODE_TEXT for i in a.task.items]  # fmt: skip
    assert encoded == [0, 3]


def test_texts_that_were_together_in_a_crash_run_alone_afterwards():
    cluster = cluster_for(make_workload(3))
    cluster.send(*joins(a=BIG))
    run_stage(cluster, Stage.ENCODE_TEXT)
    cluster.send(WorkerLost(worker="a"))
    cluster.send(*joins(a=BIG))
    assert len(run_stage(cluster, Stage.ENCODE_TEXT).task.items) == 1
    cluster.finish_all()
    assert not failed(cluster)


def test_clips_that_fit_nowhere_fail_with_the_reason_and_the_others_are_rendered():
    cluster = cluster_for(make_workload(4, kinds=(SMALL, LARGE)))
    cluster.send(*joins(a=dataclasses.replace(MIDDLE, name="tight", memory_gb=15.0)))
    cluster.finish_all()
    assert set(failed(cluster)) == {1, 3}
    assert "no device can run denoise of 960x960_10s" in failed(cluster)[1]


def test_a_stage_without_a_device_says_which_and_why():
    cluster = cluster_for(make_workload(2))
    cluster.send(*joins(a=SMALL_CARD, b=ENCODER))
    cluster.finish_all()
    assert set(failed(cluster)) == {0, 1}
    message = failed(cluster)[0]
    assert "no device can run denoise" in message
    assert "12gb has 10.8 GB and denoise needs" in message
    assert "encoder does not run denoise" in message


def test_patience_waits_for_a_device_that_may_come():
    cluster = cluster_for(make_workload(2), config=SchedulerConfig(patience_s=100.0))
    cluster.send(*joins(a=ENCODER))
    assert not cluster.finished
    assert cluster.wakes == [100.0]
    cluster.send(*joins(b=BIG), after=50.0)
    cluster.finish_all()
    assert not failed(cluster)


def test_waiting_latents_are_bounded():
    decoder = SMALL_CARD
    denoiser = dataclasses.replace(BIG, name="denoiser", stages=frozenset(Stage) - {Stage.DECODE})
    workload = make_workload(40)
    cluster = cluster_for(workload, config=SchedulerConfig(max_latents=5))
    cluster.send(*joins(a=denoiser, b=denoiser, c=denoiser, d=decoder))
    most = 0
    while not cluster.scheduler.done:
        waiting = [w for w in sorted(cluster.running) if w != "d"] or ["d"]
        cluster.send(TaskDone(worker=waiting[0], task=cluster.running[waiting[0]].task, seconds=1.0), after=1.0)
        most = max(most, sum(key.kind is DataKind.LATENTS for key in cluster.held))
    assert most <= 5


def cluster_with_a_copy():
    """One denoise on `slow`, and its speculative copy on `fast`."""
    cluster = cluster_for(make_workload(2), config=SchedulerConfig(speculation=SpeculationConfig(enabled=True)))
    cluster.send(*joins(fast=BIG, slow=BIG))
    while cluster.scheduler.progress().stages[Stage.DENOISE].running < 2:
        run = next(iter(cluster.running.values()))
        cluster.send(TaskDone(worker=run.worker, task=run.task, seconds=1.0), after=1.0)
    while "fast" in cluster.running and cluster.running["fast"].reason is not Reason.SPECULATIVE_COPY:
        cluster.send(TaskDone(worker="fast", task=cluster.running["fast"].task, seconds=30.0), after=30.0)
    assert cluster.running["fast"].reason is Reason.SPECULATIVE_COPY
    return cluster


def test_a_straggler_is_copied_and_the_first_result_is_used():
    cluster = cluster_with_a_copy()
    actions = cluster.send(TaskDone(worker="fast", task=cluster.running["fast"].task, seconds=70.0), after=70.0)
    assert [a.worker for a in actions if isinstance(a, Cancel)] == ["slow"]
    cluster.finish_all()
    assert len(cluster.finished) == 2


def test_a_task_and_its_copy_may_end_in_the_same_cycle():
    cluster = cluster_with_a_copy()
    both = [TaskDone(worker=w, task=cluster.running[w].task, seconds=70.0) for w in ("fast", "slow")]
    actions = cluster.send(*both, after=70.0)
    assert len([a for a in actions if isinstance(a, RunTask) and a.task.stage is Stage.DECODE]) == 1
    cluster.finish_all()
    assert len(cluster.finished) == 2


def test_an_idle_worker_does_not_wait_for_ever_for_a_fast_one_that_hangs():
    cluster = cluster_for(make_workload(9))
    cluster.send(*joins(fast=BIG, slow=SLOW))
    for _ in range(200):
        if "slow" in cluster.running and cluster.running["slow"].task.stage is Stage.DENOISE:
            break
        if "fast" in cluster.running and len(cluster.denoised) < 8:
            cluster.send(TaskDone(worker="fast", task=cluster.running["fast"].task, seconds=70.0), after=70.0)
        elif "slow" in cluster.running:
            cluster.send(TaskDone(worker="slow", task=cluster.running["slow"].task, seconds=200.0), after=200.0)
        else:  # fast hangs
            assert cluster.wakes
            cluster.now = max(cluster.now, cluster.wakes.pop(0))
            cluster.send(Tick())
    assert "slow" in cluster.running


def test_a_worker_that_keeps_failing_is_quarantined_while_others_go_on():
    cluster = cluster_for(make_workload(20))
    cluster.send(*joins(good=BIG, bad=BIG))
    quarantined = False
    for _ in range(400):
        if cluster.scheduler.done:
            break
        worker, run = next(iter(cluster.running.items()))
        if worker == "bad" and run.task.stage is Stage.DENOISE and run.task.items:
            fail(cluster, run, FailureKind.ERROR)
        else:
            cluster.send(TaskDone(worker=worker, task=run.task, seconds=1.0), after=1.0)
        quarantined = quarantined or cluster.scheduler.idle_reasons().get("bad") is Reason.QUARANTINED
    assert quarantined
    assert not failed(cluster)


def test_negative_embeddings_are_dropped_only_after_the_last_denoise():
    cluster = cluster_for(make_workload(5))
    cluster.send(*joins(a=BIG))
    cluster.finish_all()
    drops = [a.key.number for _, _, actions in cluster.log for a in actions
             if isinstance(a, Drop) and a.key.kind is DataKind.TEXT]  # fmt: skip
    assert set(drops[-3:]) >= {5, 6}


def test_a_worker_that_joins_twice_is_refused():
    cluster = cluster_for(make_workload(1))
    cluster.send(*joins(a=BIG))
    with pytest.raises(ValueError, match="'a' has joined already"):
        cluster.scheduler.handle(joins(a=BIG), 0.0)


def test_a_slot_that_is_occupied_is_refused():
    cluster = cluster_for(make_workload(1))
    cluster.send(WorkerJoined(worker="a", slot="gpu-0", device=BIG))
    with pytest.raises(ValueError, match="slot 'gpu-0' of worker 'b' is occupied by 'a'"):
        cluster.scheduler.handle([WorkerJoined(worker="b", slot="gpu-0", device=BIG)], 0.0)


def test_devices_taken_out_in_one_cycle_each_get_a_wake_up_at_the_end_of_their_cooldown():
    cluster = cluster_for(make_workload(20))
    cluster.send(*joins(a=BIG))
    run_stage(cluster, Stage.DENOISE)
    cluster.send(*joins(b=BIG, c=BIG))
    while cluster.scheduler.progress().workers == 3 and not any(
        isinstance(a, BreakerChange) for a in cluster.log[-1][2]
    ):
        failing = [run for worker, run in cluster.running.items() if worker != "a" and run.task.items]
        events = [TaskFailed(worker=run.worker, task=run.task, kind=FailureKind.ERROR) for run in failing]
        cluster.send(*events, after=1.0)
    opened = [action for action in cluster.log[-1][2] if isinstance(action, BreakerChange)]
    wakes = [action.time for action in cluster.log[-1][2] if isinstance(action, WakeAt)]
    assert sorted(change.worker for change in opened) == ["b", "c"]
    assert wakes.count(cluster.now + opened[0].cooldown_s) >= 2


def test_a_denoise_has_no_file_that_is_written_while_its_device_goes_on():
    cluster = cluster_for(make_workload(1))
    cluster.send(*joins(a=BIG))
    while cluster.running["a"].task.stage is not Stage.DENOISE or not cluster.running["a"].task.items:
        cluster.send(TaskDone(worker="a", task=cluster.running["a"].task, seconds=1.0), after=1.0)
    with pytest.raises(ValueError, match="only decodes have one"):
        cluster.scheduler.handle([DeviceFree(worker="a", task=cluster.running["a"].task, seconds=1.0)], cluster.now)


def test_time_that_runs_backwards_is_refused():
    scheduler = Scheduler(make_workload(1))
    scheduler.handle([], 5.0)
    with pytest.raises(ValueError, match="backwards"):
        scheduler.handle([], 4.0)


def test_progress_counts_every_stage_and_has_an_eta():
    cluster = cluster_for(make_workload(4))
    cluster.send(*joins(a=BIG))
    run_stage(cluster, Stage.DECODE)
    progress = cluster.scheduler.progress()
    assert progress.stages[Stage.ENCODE_TEXT].done == 6
    assert progress.stages[Stage.DECODE].running == 1
    assert progress.eta_s is not None
    assert progress.eta_s > 0
    cluster.finish_all()
    assert cluster.scheduler.progress().done == 4
