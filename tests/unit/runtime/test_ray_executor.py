"""The executor on a real local Ray: orders out, events back, data kept, dead workers replaced."""

import os
import signal
import time

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

from ovi.config import Component, SamplingParams
from ovi.stages import Stage
from ovi_ray.protocol.messages import Denoise, EncodeFirstFrame, EncodeTexts, Preload
from ovi_ray.runtime import ray_executor as executor_module
from ovi_ray.runtime.executor import Outcome, WorkerStarted
from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.ray_executor import MAX_BARREN, Executor, _Slot, is_crash
from ovi_ray.scheduling.events import DataLost, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, DataKind, FailureKind, Task
from ovi_ray.workers.actor import WorkerConfig

pytestmark = pytest.mark.ray

TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
TEXT_KEYS = [DataKey(kind=DataKind.TEXT, number=number) for number in range(3)]
LATENTS = DataKey(kind=DataKind.LATENTS, number=0)
SLOW = SamplingParams(video_frame_height_width=(64, 64), sample_steps=100_000, slg_layer=1)


@pytest.fixture(scope="module")
def local_ray():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def executor(local_ray, tiny_dir):
    config = WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    executor = Executor([Placement(config=config, num_cpus=1, num_gpus=0)], silence_s=8.0)
    yield executor
    executor.shutdown()


def wait_for(executor, kind, timeout_s=120):
    """The first thing of a kind that happens."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for happened in executor.poll(1.0):
            event = happened.event if isinstance(happened, Outcome) else happened
            if isinstance(event, kind):
                return event
    pytest.fail(f"no {kind.__name__} within {timeout_s} s")


def run(executor, task, work, components, inputs=(), outputs=(), worker="w0"):
    executor.run(
        worker, task, work, model_name="720x720_5s", components=components, inputs=list(inputs), outputs=list(outputs)
    )


def encode_texts(executor, worker="w0"):
    task = Task(stage=Stage.ENCODE_TEXT, items=(0, 1, 2))
    run(executor, task, EncodeTexts(texts=("a fox", "blur", "noise")), TEXT, outputs=TEXT_KEYS, worker=worker)
    return wait_for(executor, TaskDone)


def start_slow_denoise(executor):
    task = Task(stage=Stage.DENOISE, items=(0,))
    run(executor, task, Denoise(params=SLOW), TRANSFORMER, inputs=TEXT_KEYS, outputs=[LATENTS])
    deadline = time.monotonic() + 60
    while not any(activity.done for activity in executor.activities().values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return task


def test_a_task_gives_data_that_the_next_takes_and_a_stop_is_heard_while_it_runs(executor):
    assert wait_for(executor, WorkerStarted).info.device == "cpu"
    done = encode_texts(executor)
    assert (done.worker, done.task.items, done.seconds > 0, done.load_seconds > 0) == ("w0", (0, 1, 2), True, True)
    task = start_slow_denoise(executor)
    executor.stop("w0", task)
    stopped = wait_for(executor, TaskFailed)
    assert (stopped.kind, stopped.task) == (FailureKind.CANCELLED, task)


def test_a_failure_comes_back_as_an_event_and_the_worker_lives(executor, tmp_path):
    wait_for(executor, WorkerStarted)
    (tmp_path / "not.png").write_bytes(b"no image")
    work = EncodeFirstFrame(image_path=str(tmp_path / "not.png"), height=64, width=64)
    task = Task(stage=Stage.ENCODE_FIRST_FRAME, items=(0,))
    key = DataKey(kind=DataKind.FIRST_FRAME, number=0)
    run(executor, task, work, frozenset({Component.VIDEO_VAE}), outputs=[key])
    failed = wait_for(executor, TaskFailed)
    assert failed.kind is FailureKind.BAD_INPUT
    assert "not.png" in failed.message
    run(executor, Task(stage=Stage.DENOISE, items=()), Preload(), TRANSFORMER)
    assert wait_for(executor, TaskDone).load_seconds > 0


def test_a_killed_worker_is_reported_once_and_replaced_and_what_it_gave_is_still_there(executor):
    pid = wait_for(executor, WorkerStarted).info.pid
    encode_texts(executor)
    start_slow_denoise(executor)
    os.kill(pid, signal.SIGKILL)
    assert wait_for(executor, WorkerLost) == WorkerLost(worker="w0", crashed=True)
    started = wait_for(executor, WorkerStarted)
    assert (started.worker, started.info.pid != pid) == ("w0.1", True)
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=1, slg_layer=1)
    task = Task(stage=Stage.DENOISE, items=(0,), attempt=2)
    run(executor, task, Denoise(params=params), TRANSFORMER, inputs=TEXT_KEYS, outputs=[LATENTS], worker="w0.1")
    assert wait_for(executor, TaskDone).task == task


@ray.remote(num_cpus=0)
def lost():
    """What `ray.get` gives of an object that went down with its node."""
    raise ObjectLostError("00", "", "")


def test_what_went_down_with_its_node_is_to_be_made_again_and_costs_no_clip_a_try(executor):
    wait_for(executor, WorkerStarted)
    encode_texts(executor)
    executor._data[TEXT_KEYS[1]] = lost.remote()
    tasks = [Task(stage=Stage.DENOISE, items=(clip,)) for clip in range(2)]
    for task in tasks:  # both were given it before the first one found it lost
        run(executor, task, Denoise(params=SLOW), TRANSFORMER, inputs=TEXT_KEYS, outputs=[LATENTS])
    events = []
    while len(events) < 3:
        events += [happened.event for happened in executor.poll(1.0)]
    assert DataLost(key=TEXT_KEYS[1]) in events
    failures = [event for event in events if isinstance(event, TaskFailed)]
    assert {failed.task for failed in failures} == set(tasks)
    assert {failed.kind for failed in failures} == {FailureKind.CANCELLED}
    assert not executor.holds(TEXT_KEYS[1])
    assert executor.holds(TEXT_KEYS[0])


def died(message):
    return ActorDiedError(ActorDiedErrorContext(actor_id=bytes(16), error_message=message))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (died("The actor is dead because its worker process has died: connection error code 2"), True),
        (died("The actor died because its node has died. Node Id: 8d7b"), False),
        (ActorUnavailableError("RpcError: Connection reset by peer", None), False),
    ],
)
def test_only_a_process_that_died_by_itself_has_crashed(error, expected):
    assert is_crash(error) is expected


def test_a_place_is_given_up_after_five_different_tasks_and_not_after_one_clip_that_kills(monkeypatch):
    executor = Executor([])
    monkeypatch.setattr(executor, "_launch", lambda slot: executor._slots.__setitem__(slot.name, slot))
    executor._launch(_Slot(placement=None, name="w0", actor=None))

    def dies_at(*work):
        return executor._replace(next(iter(executor._slots)), "died", set(work))

    for _ in range(10):
        assert dies_at((Stage.DENOISE, (0,))).successor
    for _ in range(10):  # machines that are taken away
        assert dies_at().successor
    for clip in range(1, MAX_BARREN - 1):
        assert dies_at((Stage.DENOISE, (clip,))).successor
    assert not dies_at((Stage.DENOISE, (MAX_BARREN,))).successor
    assert executor.is_empty


def test_a_worker_that_cannot_start_is_given_up_with_the_reason(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(executor_module, "MAX_BARREN", 2)
    (tmp_path / "architecture.json").write_text("not json", encoding="utf-8")
    config = WorkerConfig(ckpt_dir=str(tmp_path), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    executor = Executor([Placement(config=config, num_cpus=1, num_gpus=0)])
    deadline = time.monotonic() + 240
    happened = []
    while not executor.is_empty and time.monotonic() < deadline:
        happened += executor.poll(5.0)
    assert executor.is_empty
    told = [str(replaced) for replaced in happened]
    assert len(told) == 2
    assert told[0].startswith("w0 cannot be started (")
    assert "architecture.json" in told[0]
    assert told[0].endswith(": w0.1 takes its place")
    assert told[1].endswith(": its place is given up")
    assert "architecture.json" in executor.last_death
