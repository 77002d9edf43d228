from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from ovi.stages import Stage
from ovi_ray.protocol.observer import Cycle, RunStarted
from ovi_ray.protocol.progress import WorkDone
from ovi_ray.report.run_charts import FAILED, LOAD, ChartRecorder, coarser
from ovi_ray.scheduling.actions import Finish, RunTask
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.events import DeviceFree, TaskDone, TaskFailed, WorkerJoined, WorkerLost
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Reason, Task
from ovi_ray.scheduling.workload import ClipKind, Workload
from tests.support.fake_executor import info

KIND = ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50)
PROFILE = DeviceProfile(name="h200")
DENOISE = Task(stage=Stage.DENOISE, items=(0,), attempt=1)


def workload(clips=3):
    return Workload(
        kinds=(KIND,),
        clip_kind=np.zeros(clips, np.int32),
        clip_texts=np.zeros((clips, 3), np.int32),
        text_tokens=np.full(1, 20, np.int32),
    )


def recorded(*cycles):
    """The recorder after cycles of (time, events, actions) on one worker that joined at 0."""
    recorder = ChartRecorder()
    recorder.started(RunStarted(workload=workload(), config=SchedulerConfig(), clip_ids=pa.array(["a", "b", "c"])))
    recorder.worker_started("w0", "w0", info(device="NVIDIA H200"))
    joined = (0.0, [WorkerJoined(worker="w0", device=PROFILE)], [])
    for now, events, actions in (joined, *cycles):
        recorder.cycle(Cycle(now=now, events=tuple(events), actions=tuple(actions)))
    return recorder


def run(task=DENOISE):
    return RunTask(worker="w0", task=task, components=frozenset(), model_name="", reason=next(iter(Reason)))


def done(**changes):
    return TaskDone(**{"worker": "w0", "task": DENOISE, "seconds": 48.0, "load_seconds": 2.0} | changes)


def test_a_lane_has_the_loading_and_the_work_of_each_task():
    (lane,) = recorded((10.0, [], [run()]), (60.0, [done()], [])).charts().lanes
    assert (lane.worker, lane.device) == ("w0", "NVIDIA H200")
    assert lane.bars == ((LOAD, 10.0, 12.0, 1), ("denoise", 12.0, 60.0, 1))


@pytest.mark.parametrize(
    "end",
    [
        TaskFailed(worker="w0", task=DENOISE, kind=FailureKind.ERROR, message="it broke"),
        WorkerLost(worker="w0", crashed=True),
    ],
)
def test_a_task_that_fails_is_a_bar_of_its_own(end):
    (lane,) = recorded((10.0, [], [run()]), (25.0, [end], [])).charts().lanes
    assert lane.bars == ((FAILED, 10.0, 25.0, 1),)


def test_a_task_that_was_stopped_has_not_failed():
    stopped = TaskFailed(worker="w0", task=DENOISE, kind=FailureKind.CANCELLED, message="stopped")
    (lane,) = recorded((10.0, [], [run()]), (25.0, [stopped], [])).charts().lanes
    assert lane.bars == (("denoise", 10.0, 25.0, 1),)


def test_finished_clips_are_counted_over_time_and_failed_ones_are_not():
    ends = [Finish(clip=0, status=ClipStatus.DONE), Finish(clip=1, status=ClipStatus.FAILED, error="it broke")]
    charts = recorded((10.0, [], ends), (20.0, [], [replace(ends[0], clip=2)])).charts()
    assert charts.finished == ((0.0, 0), (10.0, 1), (20.0, 2))
    assert charts.clips == 3


def test_while_a_run_stops_clips_finish_and_no_task_begins():
    recorder = recorded((10.0, [], [run()]))
    actions = (Finish(clip=0, status=ClipStatus.DONE), run(replace(DENOISE, items=(1,))))
    recorder.cycle(Cycle(now=60.0, events=(done(),), actions=actions, stopping=True))
    recorder.cycle(Cycle(now=70.0, events=(WorkerLost(worker="w0", crashed=False),), actions=(), stopping=True))
    charts = recorder.charts()
    assert charts.finished == ((0.0, 0), (60.0, 1))
    assert [bar[0] for bar in charts.lanes[0].bars] == [LOAD, "denoise"]


def test_the_plan_of_a_stage_stands_beside_its_measured_time():
    (line,) = recorded((0.0, [], [run()]), (50.0, [done()], [])).charts().stages
    assert (line.device_class, line.stage, line.tasks, line.actual_s) == ("h200", "denoise", 1, 48.0)
    assert line.planned_s > 0


def test_the_time_of_a_worker_is_held_until_it_is_lost():
    recorder = recorded((10.0, [], [run()]), (60.0, [done()], []))
    (time,) = recorder.workers(100.0)
    assert (time.held_s, time.denoise_s, time.load_s) == (100.0, 48.0, 2.0)
    recorder.cycle(Cycle(now=120.0, events=(WorkerLost(worker="w0", crashed=True),), actions=()))
    assert recorder.workers(500.0)[0].held_s == 120.0


def test_items_are_counted_by_stage_when_their_tasks_have_succeeded():
    decode, writes = replace(DENOISE, stage=Stage.DECODE), replace(DENOISE, stage=Stage.DECODE, items=(1,))
    texts, assist = replace(DENOISE, stage=Stage.ENCODE_TEXT, items=(0, 1, 2)), replace(DENOISE, assists=True)
    free = [DeviceFree(worker="w0", task=task, seconds=1.0, load_seconds=0.0) for task in (decode, writes)]
    ends = [done(task=task) for task in (texts, assist, replace(DENOISE, items=()), decode)]
    broken = TaskFailed(worker="w0", task=writes, kind=FailureKind.ERROR, message="it broke")
    (time,) = recorded((10.0, free, []), (20.0, [*ends, broken], [])).workers(30.0)
    assert time.work == WorkDone(items={Stage.ENCODE_TEXT: 3, Stage.DECODE: 1}, assists=1)


def test_a_lane_stays_bounded_and_no_task_is_lost():
    bars = [("denoise" if i % 2 else LOAD, float(i), i + 0.9, 1) for i in range(5000)]
    merged = coarser(bars, 100)
    assert len(merged) <= 100
    assert sum(bar[3] for bar in merged) == 5000
    assert (merged[0][1], merged[-1][2]) == (0.0, 4999.9)
    assert all(before[2] <= after[1] for before, after in pairwise(merged))
