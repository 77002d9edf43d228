"""The promises of every executor, checked for the one on Ray and for the fake one that other tests rely on."""

import os
import signal
import time

import pytest
import ray

from ovi.config import Component, SamplingParams
from ovi.stages import DataKind, Stage
from ovi_ray.protocol.messages import Denoise, EncodeFirstFrame, EncodeTexts, Preload
from ovi_ray.runtime.executor import Submission, TaskEnded, WorkerReplaced, WorkerStarted
from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.ray_executor import ExecutorConfig, RayExecutor
from ovi_ray.scheduling.events import TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, FailureKind, Task
from ovi_ray.workers.actor import WorkerConfig
from tests.support.fake_executor import HANGS, Fails, FakeExecutor

PATIENCE_S = 900  # for a loaded machine; nothing waits so long elsewhere
TEXT_KEYS = tuple(DataKey(kind=DataKind.TEXT, number=number) for number in range(3))
FRAME_KEY = DataKey(kind=DataKind.FIRST_FRAME, number=0)
LATENTS_KEY = DataKey(kind=DataKind.LATENTS, number=0)


class Cluster:
    """An executor with one worker."""

    def __init__(self, executor):
        self.executor = executor
        self.alive = None

    def started(self):
        """The start of the worker that is alive; an executor tells of it once."""
        self.alive = self.alive or wait_for(self, WorkerStarted)
        return self.alive


class FakeCluster(Cluster):
    """The fake executor, whose denoises hang and whose first-frame encodes fail, like the requests below do on Ray."""

    def __init__(self):
        super().__init__(FakeExecutor(script=self._end, replaces=True))

    def _end(self, worker, task, tries):
        match task.stage:
            case Stage.DENOISE if task.items:
                return HANGS
            case Stage.ENCODE_FIRST_FRAME:
                return Fails(kind=FailureKind.BAD_INPUT, message="not.png is no image")
            case _:
                return None

    def kill(self, started):
        self.executor.kill(started.worker)

    def wait_until_busy(self):
        pass


class RayCluster(Cluster):
    """The executor on a local Ray."""

    def __init__(self, ckpt_dir):
        config = WorkerConfig(
            ckpt_dir=str(ckpt_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1
        )
        placement = Placement(config=config, num_cpus=1, num_gpus=0)
        super().__init__(RayExecutor([placement], config=ExecutorConfig(unresponsive_after_s=PATIENCE_S)))

    def kill(self, started):
        os.kill(started.info.pid, signal.SIGKILL)

    def wait_until_busy(self):
        deadline = time.monotonic() + PATIENCE_S
        while not any(activity.done for activity in self.executor.activities().values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def ray_cluster(tiny_dir):
    """One for all tests of this file, because its worker takes seconds to start."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    cluster = RayCluster(tiny_dir)
    yield cluster
    cluster.executor.shutdown()
    ray.shutdown()


@pytest.fixture(params=["fake", pytest.param("ray", marks=pytest.mark.ray)])
def cluster(request):
    """Each test leaves an idle worker, and the last one of this file none."""
    return request.getfixturevalue("ray_cluster") if request.param == "ray" else FakeCluster()


def events_until(cluster, kind):
    """Every event up to the first of a kind."""
    events, deadline = [], time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        events += cluster.executor.poll(1.0)
        if any(isinstance(event, kind) for event in events):
            return events
    pytest.fail(f"no {kind.__name__} within {PATIENCE_S} s")


def wait_for(cluster, kind):
    return next(event for event in events_until(cluster, kind) if isinstance(event, kind))


def submission(worker, task, work, component, *, inputs=(), outputs=()):
    return Submission(
        worker=worker,
        task=task,
        work=work,
        model_name="720x720_5s",
        components=frozenset({component}),
        inputs=inputs,
        outputs=outputs,
    )


def encode_texts(cluster, worker):
    task = Task(stage=Stage.ENCODE_TEXT, items=(0, 1, 2))
    work = EncodeTexts(texts=("a fox", "blur", "noise"))
    cluster.executor.submit(submission(worker, task, work, Component.TEXT_ENCODER, outputs=TEXT_KEYS))
    return wait_for(cluster, TaskEnded)


def start_endless_denoise(cluster, worker):
    task = Task(stage=Stage.DENOISE, items=(0,))
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=100_000, slg_layer=1)
    request = submission(
        worker, task, Denoise(params=params), Component.TRANSFORMER, inputs=TEXT_KEYS, outputs=(LATENTS_KEY,)
    )
    cluster.executor.submit(request)
    cluster.wait_until_busy()
    return task


def test_each_worker_starts_once_in_a_slot(cluster):
    started = cluster.started()
    assert (started.worker, started.slot, started.info.device) == ("w0", "w0", "cpu")
    assert not cluster.executor.is_empty
    assert cluster.executor.poll(0.0) == []


def test_the_output_of_a_task_is_held_until_it_is_dropped(cluster):
    worker = cluster.started().worker
    ended = encode_texts(cluster, worker)
    assert isinstance(ended.event, TaskDone)
    assert (ended.event.worker, ended.event.task.items) == (worker, (0, 1, 2))
    assert (ended.event.seconds, ended.event.load_seconds) == (ended.report.seconds, ended.report.load_seconds)
    assert all(cluster.executor.holds(key) for key in TEXT_KEYS)
    cluster.executor.drop(TEXT_KEYS[0])
    cluster.executor.drop(LATENTS_KEY)  # unknown
    assert [cluster.executor.holds(key) for key in TEXT_KEYS] == [False, True, True]


def test_a_failure_is_data_and_the_worker_goes_on(cluster, tmp_path):
    worker = cluster.started().worker
    (tmp_path / "not.png").write_bytes(b"no image")
    work = EncodeFirstFrame(image_path=str(tmp_path / "not.png"), height=64, width=64)
    task = Task(stage=Stage.ENCODE_FIRST_FRAME, items=(0,))
    cluster.executor.submit(submission(worker, task, work, Component.VIDEO_VAE, outputs=(FRAME_KEY,)))
    ended = wait_for(cluster, TaskEnded)
    assert (ended.event.kind, ended.report.failure.kind) == (FailureKind.BAD_INPUT, FailureKind.BAD_INPUT)
    assert "not.png" in ended.event.message
    assert not cluster.executor.holds(FRAME_KEY)
    assert isinstance(encode_texts(cluster, worker).event, TaskDone)


def test_a_preload_only_loads(cluster):
    task = Task(stage=Stage.DENOISE, items=())
    cluster.executor.submit(submission(cluster.started().worker, task, Preload(), Component.TRANSFORMER))
    ended = wait_for(cluster, TaskEnded)
    assert isinstance(ended.event, TaskDone)
    assert ended.event.load_seconds > 0


def test_a_stop_ends_the_task_that_it_names_and_no_other(cluster):
    worker = cluster.started().worker
    encode_texts(cluster, worker)
    task = start_endless_denoise(cluster, worker)
    cluster.executor.stop(worker, Task(stage=Stage.DENOISE, items=(7,)))
    cluster.executor.stop("w9", task)
    assert not any(isinstance(event, TaskEnded) for event in cluster.executor.poll(1.0))
    cluster.executor.stop(worker, task)
    ended = wait_for(cluster, TaskEnded)
    assert isinstance(ended.event, TaskFailed)
    assert (ended.event.kind, ended.event.task) == (FailureKind.CANCELLED, task)


def test_a_worker_that_dies_is_lost_once_and_replaced_in_its_slot_and_its_outputs_stay(cluster):
    started = cluster.started()
    encode_texts(cluster, started.worker)
    start_endless_denoise(cluster, started.worker)
    cluster.kill(started)
    events = events_until(cluster, WorkerLost)
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert (lost.worker, lost.crashed) == (started.worker, True)
    if not any(isinstance(event, WorkerReplaced) for event in events):
        events += events_until(cluster, WorkerReplaced)
    replaced = next(event for event in events if isinstance(event, WorkerReplaced))
    assert (replaced.worker, replaced.slot) == (started.worker, started.slot)
    assert replaced.successor != replaced.worker
    assert lost.log == replaced.log == started.info.log_place != ""
    assert started.info.log in str(replaced)
    assert cluster.executor.last_death
    after = [event for event in events if isinstance(event, WorkerStarted)]
    cluster.alive = after[0] if after else wait_for(cluster, WorkerStarted)
    assert (cluster.alive.worker, cluster.alive.slot) == (replaced.successor, started.slot)
    assert all(cluster.executor.holds(key) for key in TEXT_KEYS)


def test_after_a_shutdown_nothing_is_left(cluster):
    worker = cluster.started().worker
    encode_texts(cluster, worker)
    cluster.executor.shutdown()
    assert cluster.executor.is_empty
    assert not any(cluster.executor.holds(key) for key in TEXT_KEYS)
