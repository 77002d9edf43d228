"""The driver against a fake executor: what goes out, what is written, what is told."""

import itertools
import json

import pyarrow as pa
import pytest
from PIL import Image

from ovi.config import Architecture, Component
from ovi.errors import InvalidImage
from ovi.media.images import read_image
from ovi.stages import Stage
from ovi_ray.errors import JobStopped, WorkersLost
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Cause, Decode, Denoise, EncodeFirstFrame, EncodeTexts
from ovi_ray.report.decisions import explain
from ovi_ray.runtime import storage_pause as storage
from ovi_ray.runtime.clip_records import TRACEBACK_CHARS
from ovi_ray.runtime.device_profiles import device_profile
from ovi_ray.runtime.driver import Driver
from ovi_ray.runtime.shutdown import Stop
from ovi_ray.scheduling.config import CircuitBreakerConfig, SchedulerConfig
from ovi_ray.scheduling.events import TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKind, FailureKind, Task
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.actor import failure_kind
from ovi_ray.workers.first_frame import first_frame_file
from tests.support.fake_executor import HANGS, FakeExecutor, info


def make_plan(tmp_path, prompts=("a fox", "a dog"), **options):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"text_prompt": "{prompt}"}}\n' for prompt in prompts), encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=tmp_path, output_dir=tmp_path / "out", sample_steps=4, **options)
    return TaskTable.of(build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32"))


def run(tmp_path, executor, **options):
    plan = make_plan(tmp_path, **options)
    ledger = Results(tmp_path / "out")
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
    assert len(Results(tmp_path / "out").read()) <= 1


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
        Results(tmp_path / "out"),
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
        TaskTable(
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
    assert real.sizes.vocoder == pytest.approx(0.2)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_the_traceback_of_a_failed_clip_is_in_its_row_and_in_no_other(tmp_path):
    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and (task.items == (0,) or (task.items == (1,) and tries == 1)):
            return TaskFailed(worker=worker, task=task, kind=FailureKind.ERROR, message=f"broke {tries} times")
        return None

    _, rows = run(tmp_path, FakeExecutor(script=script))
    assert [(row["status"], row["traceback"]) for row in rows] == [
        ("failed", "Traceback of w0\nbroke 3 times"),
        ("done", None),
    ]


def test_a_long_traceback_keeps_its_end(tmp_path):
    script = failing(Stage.DECODE, FailureKind.BAD_INPUT, items=(0,), message="x" * 30_000 + " the end")
    _, rows = run(tmp_path, FakeExecutor(script=script))
    assert len(rows[0]["traceback"]) == TRACEBACK_CHARS
    assert rows[0]["traceback"].endswith("the end")


def test_clips_of_a_bad_text_share_its_traceback(tmp_path):
    def script(worker, task, tries):
        if task.stage is Stage.ENCODE_TEXT and 0 in task.items:
            return TaskFailed(worker=worker, task=task, kind=FailureKind.BAD_INPUT, message="not text", items=(0,))
        return None

    _, rows = run(tmp_path, FakeExecutor(script=script), prompts=("a fox", "a dog"), each_example_n_times=2)
    told = {row["text_prompt"]: (row["status"], row["traceback"]) for row in rows}
    assert told == {"a fox": ("failed", "Traceback of w0\nnot text"), "a dog": ("done", None)}


@pytest.mark.parametrize("change", ["deleted", "replaced by garbage", "replaced by another image"])
def test_an_image_that_goes_bad_before_its_encode_fails_its_clips_at_once_and_no_other(tmp_path, change):
    images = {name: tmp_path / f"{name}.png" for name in ("good", "bad")}
    for value, path in enumerate(images.values()):
        Image.new("RGB", (64, 64), (value, 0, 0)).save(path)
    plan = make_plan_with_images(tmp_path, images=["bad.png", "good.png", "", "bad.png"])
    if change == "deleted":
        images["bad"].unlink()
    elif change == "replaced by garbage":
        images["bad"].write_bytes(b"garbage")
    else:
        Image.new("RGB", (64, 64), (0, 0, 9)).save(images["bad"])

    def script(worker, task, tries):
        if task.stage is not Stage.ENCODE_FIRST_FRAME:
            return None
        work = executor.orders[-1][2]
        try:
            with first_frame_file(work.image_path, work.image_sha256) as path:
                read_image(path)
        except InvalidImage as error:
            return TaskFailed(worker=worker, task=task, kind=failure_kind(error), message=str(error))
        return None

    executor = FakeExecutor(workers=("w0", "w1"), script=script)
    ledger = Results(tmp_path / "out")
    Driver(plan, executor, ledger, dtype="float32").run()
    rows = ledger.read().sort_by("row").to_pylist()
    assert [row["status"] for row in rows] == ["failed", "done", "done", "failed"]
    assert all("bad.png: gone, or not the image that it was" in rows[row]["error"] for row in (0, 3))
    assert sum(isinstance(work, EncodeFirstFrame) for _, _, work in executor.orders) == 2


def make_plan_with_images(tmp_path, images):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"text_prompt": f"prompt {row}"} | ({"image_path": image} if image else {}) for row, image in enumerate(images)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=tmp_path, output_dir=tmp_path / "out", sample_steps=4)
    return TaskTable.of(build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32"))


def test_the_user_learns_when_a_worker_is_taken_out_and_that_it_is_back(tmp_path):
    told, decisions = [], []
    broken = itertools.count()

    def script(worker, task, tries):
        if worker == "w1" and task.stage is Stage.DENOISE and task.items and next(broken) < 4:
            return TaskFailed(worker=worker, task=task, kind=FailureKind.ERROR, message="CUDA error: bad address")
        return None

    plan = make_plan(tmp_path, prompts=tuple(f"prompt {number}" for number in range(20)))
    ledger = Results(tmp_path / "out")
    driver = Driver(
        plan,
        FakeExecutor(workers=("w0", "w1"), script=script),
        ledger,
        dtype="float32",
        tell=told.append,
        explain=lambda now, action: decisions.append(explain(action)),
        config=SchedulerConfig(circuit_breaker=CircuitBreakerConfig(cooldown_s=0.0)),
    )
    driver.run()
    assert set(ledger.read().column("status").to_pylist()) == {"done"}
    assert "w1 is taken out" in told[0]
    assert "; last failure: CUDA error: bad address (cpu on host)" in told[0]
    assert "w1 is back in service" in told[-1]
    assert any("w1 is tried again" in line for line in decisions)
    assert len(told) == 2  # a probe that failed is for those who ask


# -- what is kept, storage that fails, stopping ------------------------------------------------------------------------


def keep_latents_of(plan, tmp_path, index):
    keep = Intermediates(output_dir=to_location(tmp_path / "out"))
    keep.prepare()
    path = keep.latents_path(plan.clip(index).clip_id)
    path.write_bytes(b"latents")
    return path


def test_a_clip_whose_latents_are_kept_begins_at_decode_and_they_go_when_its_video_is_there(tmp_path):
    path = keep_latents_of(make_plan(tmp_path), tmp_path, 0)
    executor = FakeExecutor()
    _, rows = run(tmp_path, executor)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["attempts"] for row in rows] == [0, 1]
    assert not path.exists()


def test_latents_are_kept_for_good_when_asked(tmp_path):
    plan = make_plan(tmp_path)
    path = keep_latents_of(plan, tmp_path, 0)
    keep = Intermediates(output_dir=to_location(tmp_path / "out"), keep_latents=True)
    Driver(plan, FakeExecutor(), Results(tmp_path / "out"), dtype="float32", keep=keep).run()
    assert path.exists()


def test_broken_latents_are_told_and_made_again(tmp_path):
    plan, told = make_plan(tmp_path), []
    path = keep_latents_of(plan, tmp_path, 0)

    def script(worker, task, tries):
        if task.stage is Stage.DECODE and task.items == (0,) and tries == 1:
            return TaskFailed(worker=worker, task=task, kind=FailureKind.CANCELLED, message="latents: broken")
        return None

    executor = FakeExecutor(script=script)
    executor.causes = {1: Cause.LATENTS}
    Driver(plan, executor, Results(tmp_path / "out"), dtype="float32", tell=told.append).run()
    assert told == ["latents: broken; the clip is denoised again"]
    assert not path.exists()
    denoised = sorted(task.items for _, task, work in executor.orders if isinstance(work, Denoise))
    assert denoised == [(0,), (1,)]


def test_a_full_disk_pauses_the_job_with_a_message_and_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PROBE_S", 0.01)
    problems = iter(["No space left on device"] * 3)
    monkeypatch.setattr(storage, "write_problem", lambda folder: next(problems, ""))
    told = []
    executor = FakeExecutor(script=failing(Stage.DECODE, FailureKind.CANCELLED, times=2, message="disk full"))
    executor.causes = {1: Cause.STORAGE, 2: Cause.STORAGE}
    plan = make_plan(tmp_path)
    ledger = Results(tmp_path / "out")
    Driver(plan, executor, ledger, dtype="float32", tell=told.append).run()
    rows = ledger.read().to_pylist()
    assert [(row["status"], row["attempts"]) for row in rows] == [("done", 1), ("done", 1)]
    assert "disk full; nothing is lost" in told[0]
    assert "goes on" in told[-1]


def test_rows_that_cannot_be_written_hold_the_end_of_the_job_back(tmp_path, monkeypatch):
    told, ledger = [], Results(tmp_path / "out")
    tries = itertools.count()
    flush = ledger.flush

    def failing_flush():
        if next(tries) < 3:
            raise OSError(28, "No space left on device")
        flush()

    monkeypatch.setattr(ledger, "flush", failing_flush)
    Driver(make_plan(tmp_path), FakeExecutor(), ledger, dtype="float32", tell=told.append).run()
    assert len(Results(tmp_path / "out").read()) == 2
    assert "No space left on device" in told[0]


def test_a_stop_saves_the_denoise_that_runs_and_starts_nothing(tmp_path):
    stop = Stop()

    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items:
            stop.ask("SIGINT")
            return HANGS
        return None

    executor = FakeExecutor(script=script)
    with pytest.raises(JobStopped, match="SIGINT"):
        Driver(make_plan(tmp_path), executor, Results(tmp_path / "out"), dtype="float32", stop=stop).run()
    assert [(task.stage, save) for _, task, save in executor.stops] == [(Stage.DENOISE, True)]
    assert not any(isinstance(work, Decode) for _, _, work in executor.orders)
    assert not stop.is_watched


def test_a_stop_waits_no_longer_than_its_grace(tmp_path):
    stop = Stop()

    def script(worker, task, tries):
        if task.stage is Stage.DECODE:
            stop.ask("SIGTERM", grace_s=0.0)
            return HANGS
        return None

    with pytest.raises(JobStopped):
        Driver(
            make_plan(tmp_path), FakeExecutor(script=script), Results(tmp_path / "out"), dtype="float32", stop=stop
        ).run()
