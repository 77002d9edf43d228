"""The driver against a fake executor: what goes out, what is written, what is told."""

import itertools

import pyarrow as pa
import pytest

from ovi.config import Architecture, Component
from ovi_ray.driver import Driver, device_profile, workload_of
from ovi_ray.errors import WorkersLost
from ovi_ray.events import DataKind, FailureKind, Task, TaskDone, TaskFailed, WorkerLost
from ovi_ray.executor import Outcome, WorkerStarted
from ovi_ray.job import JobSpec
from ovi_ray.ledger import Ledger
from ovi_ray.manifest import build_manifest
from ovi_ray.orders import Decode, Denoise, EncodeTexts, Failure, Report, WorkerInfo
from ovi_ray.plan import JobPlan
from ovi_ray.stages import Stage

SIZES = dict.fromkeys(Component, 0.01)


def info(**changes):
    facts = {
        "node": "host",
        "pid": 1,
        "device": "cpu",
        "vendor": "cpu",
        "architecture": "",
        "memory_gb": 100.0,
        "component_gb": SIZES,
    }
    return WorkerInfo(**facts | changes)


class FakeExecutor:
    """Ends every task at once; `script` may turn a task's end into another event."""

    def __init__(self, workers=("w0",), script=None):
        self.alive = set(workers)
        self.events = [WorkerStarted(worker=worker, info=info()) for worker in workers]
        self.script = script or (lambda worker, task, tries: None)
        self.orders = []
        self.data = set()
        self.last_death = "killed"
        self.tries = {}

    @property
    def is_empty(self):
        return not self.alive and not self.events

    def run(self, worker, task, work, *, model_name, components, inputs, outputs):
        assert set(inputs) <= self.data, "a task was given data that is not there"
        self.orders.append((worker, task, work))
        tries = self.tries[task.stage, task.items] = self.tries.get((task.stage, task.items), 0) + 1
        event = self.script(worker, task, tries) or TaskDone(worker=worker, task=task, seconds=1.0, load_seconds=0.5)
        if isinstance(event, TaskDone):
            self.data |= set(outputs)
            facts = {"num_frames": 121} if isinstance(work, Decode) else {}
            self.events.append(Outcome(event=event, report=Report(seconds=1.0, load_seconds=0.5, facts=facts)))
        elif isinstance(event, TaskFailed):
            failure = Failure(kind=event.kind, message=event.message)
            self.events.append(Outcome(event=event, report=Report(seconds=0.0, failure=failure)))
        else:
            self.alive.discard(worker)
            self.events.append(Outcome(event=event))

    def stop(self, worker, task):
        pass

    def drop(self, key):
        self.data.discard(key)

    def poll(self, timeout_s):
        events, self.events = self.events, []
        return events

    def activities(self):
        return {}


def make_plan(tmp_path, prompts=("a fox", "a dog"), **options):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"text_prompt": "{prompt}"}}\n' for prompt in prompts), encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=tmp_path, output_dir=tmp_path / "out", sample_steps=4, **options)
    return JobPlan.of(build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32"))


def run(tmp_path, executor, **options):
    plan = make_plan(tmp_path, **options)
    ledger = Ledger(tmp_path / "out")
    driver = Driver(plan, executor, ledger, dtype="float32")
    driver.run()
    return driver, ledger.read().sort_by("row").to_pylist()


def failing(stage, kind, *, times=99, message="it broke", items=None):
    def script(worker, task, tries):
        if task.stage is stage and task.items and tries <= times and (items is None or task.items == items):
            return TaskFailed(worker=worker, task=task, kind=kind, message=message)
        return None

    return script


def test_every_clip_ends_with_a_row(tmp_path):
    driver, rows = run(tmp_path, FakeExecutor())
    assert [(row["text_prompt"], row["status"], row["attempts"]) for row in rows] == [
        ("a fox", "done", 1),
        ("a dog", "done", 1),
    ]
    assert rows[0]["video_path"] == f"videos/{rows[0]['clip_id']}.mp4"
    assert (rows[0]["worker"], rows[0]["decode_worker"], rows[0]["node"], rows[0]["num_frames"]) == (
        "w0",
        "w0",
        "host",
        121,
    )
    assert (rows[0]["denoise_s"], rows[0]["decode_s"]) == (1.0, 1.0)
    assert driver.progress().done == 2


def test_each_distinct_text_is_encoded_once(tmp_path):
    executor = FakeExecutor(workers=("w0", "w1"))
    run(tmp_path, executor, prompts=("a fox", "a dog", "a fox", " a  fox "), each_example_n_times=3)
    texts = [text for _, _, work in executor.orders if isinstance(work, EncodeTexts) for text in work.texts]
    assert sorted(texts) == sorted(
        ["a fox", "a dog", "jitter, bad hands, blur, distortion", "robotic, muffled, echo, distorted"]
    )
    assert sum(isinstance(work, Denoise) for _, _, work in executor.orders) == 12


def test_a_text_encode_is_shared_out_over_its_batch(tmp_path):
    _, rows = run(tmp_path, FakeExecutor())
    assert rows[0]["encode_s"] == pytest.approx(1.0 / 4)  # one batch: two prompts and two negatives


def test_a_bad_clip_fails_alone_with_its_reason(tmp_path):
    script = failing(Stage.DENOISE, FailureKind.BAD_INPUT, items=(0,), message="the image is a text")
    driver, rows = run(tmp_path, FakeExecutor(script=script))
    assert [(row["status"], row["error"]) for row in rows] == [("failed", "the image is a text"), ("done", None)]
    assert rows[0]["video_path"] is None
    assert (driver.progress().done, driver.progress().failed) == (1, 1)


def test_a_failed_decode_costs_no_second_denoise(tmp_path):
    executor = FakeExecutor(workers=("w0", "w1"), script=failing(Stage.DECODE, FailureKind.ERROR, times=2))
    _, rows = run(tmp_path, executor)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["attempts"] for row in rows] == [1, 1]
    assert sum(isinstance(work, Decode) for _, _, work in executor.orders) == 6


def test_the_task_of_a_lost_worker_is_done_by_another(tmp_path):
    def script(worker, task, tries):
        return WorkerLost(worker="w0") if worker == "w0" and task.stage is Stage.DENOISE else None

    driver, rows = run(tmp_path, FakeExecutor(workers=("w0", "w1"), script=script))
    assert [row["status"] for row in rows] == ["done", "done"]
    assert {row["worker"] for row in rows} == {"w1"}
    assert {time.worker for time in driver.worker_times()} == {"w0", "w1"}


def test_when_no_worker_is_left_the_rows_so_far_are_kept_and_the_reason_is_told(tmp_path):
    calls = itertools.count()

    def script(worker, task, tries):
        return WorkerLost(worker=worker) if task.stage is Stage.DENOISE and next(calls) == 1 else None

    with pytest.raises(WorkersLost, match=r"no worker is left.*killed"):
        run(tmp_path, FakeExecutor(script=script))
    assert len(Ledger(tmp_path / "out").read()) <= 1


def test_data_is_released_when_nothing_needs_it(tmp_path):
    executor = FakeExecutor()
    run(tmp_path, executor)
    assert {key.kind for key in executor.data} <= {DataKind.TEXT}
    assert not executor.data


def test_what_a_worker_did_with_its_time_is_added_up(tmp_path):
    driver, _ = run(tmp_path, FakeExecutor())
    (time,) = driver.worker_times()
    assert (time.encode_s, time.denoise_s, time.decode_s) == (1.0, 2.0, 2.0)
    assert time.load_s >= 2.0


def test_decisions_are_explained_and_progress_is_shown(tmp_path):
    decisions, snapshots = [], []
    plan = make_plan(tmp_path)
    Driver(
        plan,
        FakeExecutor(),
        Ledger(tmp_path / "out"),
        dtype="float32",
        observer=snapshots.append,
        explain=lambda now, action: decisions.append(action),
    ).run()
    assert all(isinstance(task, Task) for task in (getattr(action, "task", None) for action in decisions) if task)
    assert {clip.clip_id for snapshot in snapshots for clip in snapshot.ended} == set(
        plan.clips.column("clip_id").to_pylist()
    )
    assert snapshots[-1].progress.done == 2


def test_clips_of_the_same_cost_share_a_kind(tmp_path):
    plan = make_plan(tmp_path, prompts=("a", "b", "c"))
    longer = plan.clips.set_column(
        plan.clips.schema.get_field_index("sample_steps"), "sample_steps", pa.array([4, 8, 4], pa.int32())
    )
    workload = workload_of(
        JobPlan(
            clips=longer,
            texts=plan.texts,
            clip_texts=plan.clip_texts,
            first_frames=plan.first_frames,
            clip_first_frame=plan.clip_first_frame,
        )
    )
    assert workload.clip_kind.tolist() == [0, 1, 0]
    assert [kind.sample_steps for kind in workload.kinds] == [4, 8]


def test_a_device_is_expected_to_be_faster_at_a_smaller_model():
    published = {
        Component.TEXT_ENCODER: 11.4,
        Component.TRANSFORMER: 23.3,
        Component.VIDEO_VAE: 1.4,
        Component.AUDIO_VAE: 0.2,
        Component.VOCODER: 0.2,
    }
    small = {component: size / 1000 for component, size in published.items()}
    real, tiny = (device_profile(info(component_gb=sizes), "bfloat16") for sizes in (published, small))
    assert tiny.rates.denoise == pytest.approx(1000 * real.rates.denoise)
    assert real.sizes.audio_vae == pytest.approx(0.4)
