"""The driver against a fake executor: what is submitted, what is written, what the user is told."""

import itertools
import json

import pyarrow as pa
import pytest
from PIL import Image

from ovi.config import Architecture, Component
from ovi.errors import InvalidImage
from ovi.media.images import read_image
from ovi.stages import DataKind, Stage
from ovi_ray.errors import HeadLost, JobStopped, WorkersLost, WorkersUnplaceable
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import (
    Activity,
    Assist,
    Decode,
    Denoise,
    EncodeFirstFrame,
    EncodeTexts,
    FailureCause,
)
from ovi_ray.protocol.observer import Observers
from ovi_ray.protocol.progress import WorkDone
from ovi_ray.runtime.clip_records import TRACEBACK_CHARS
from ovi_ray.runtime.device_profiles import device_profile
from ovi_ray.runtime.driver import Driver, DriverConfig
from ovi_ray.runtime.executor import HeadSilent, SlotsUnplaceable, WorkerStarting
from ovi_ray.runtime.shutdown import StopRequest
from ovi_ray.runtime.storage_pause import StoragePauseConfig
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.config import CircuitBreakerConfig, SchedulerConfig
from ovi_ray.scheduling.device_profile import BF16_SIZES, ComponentSizes, DeviceProfile, StageRates
from ovi_ray.scheduling.events import StepsTimed, WorkerJoined
from ovi_ray.scheduling.task import BreakerChange, BreakerState, FailureKind
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.failures import failure_kind
from ovi_ray.workers.first_frame import first_frame_file
from tests.support.fake_executor import DIES, GOES_ON, HANGS, WRITES, Fails, FakeExecutor, info
from tests.support.recording_observer import RecordingObserver
from tests.support.tables import make_tasks


def make_driver(tmp_path, executor, *, tasks=None, results=None, **options):
    tasks = tasks or make_tasks(tmp_path)
    results = results or Results(tmp_path / "out")
    return Driver(tasks, executor, results, dtype="float32", clock=executor.clock, **options)


def run(tmp_path, executor, *, observer=None, config=None, **options):
    driver = make_driver(tmp_path, executor, tasks=make_tasks(tmp_path, **options), observer=observer, config=config)
    driver.run()
    return driver, rows_in(tmp_path)


def rows_in(tmp_path):
    return Results(tmp_path / "out").read().sort_by("row").to_pylist()


def failing(stage, kind, *, times=99, items=None, **facts):
    def script(worker, task, tries):
        if task.stage is stage and task.items and tries <= times and (items is None or task.items == items):
            return Fails(kind=kind, **facts)
        return None

    return script


def test_every_clip_ends_with_a_row(tmp_path):
    driver, rows = run(tmp_path, FakeExecutor())
    assert [(row["text_prompt"], row["status"], row["attempts"]) for row in rows] == [
        ("a fox", "done", 1),
        ("a dog", "done", 1),
    ]
    assert rows[0]["video_path"] == f"videos/{rows[0]['clip_id']}.mp4"
    where = ("worker", "decode_worker", "node", "num_frames", "denoise_s", "decode_s")
    assert [rows[0][name] for name in where] == ["w0", "w0", "host", 121, 1.0, 1.0]
    assert driver.progress().done == 2


def test_each_distinct_text_is_encoded_once(tmp_path):
    executor = FakeExecutor(workers=("w0", "w1"))
    run(tmp_path, executor, prompts=("a fox", "a dog", "a fox", " a  fox "), each_example_n_times=3)
    texts = [text for work in executor.works(EncodeTexts) for text in work.texts]
    assert sorted(texts) == sorted(
        ["a fox", "a dog", "jitter, bad hands, blur, distortion", "robotic, muffled, echo, distorted"]
    )
    assert len(executor.works(Denoise)) == 12


class OneNode(FakeExecutor):
    """Workers that can share a denoise."""

    def info_of(self, slot):
        return info(shares_denoises=True)


@pytest.mark.parametrize("helper_ends", [None, DIES, Fails(message="a helper's fault")])
def test_a_worker_that_assists_a_clip_leaves_no_trace_in_its_attempts_whatever_becomes_of_it(tmp_path, helper_ends):
    def script(worker, task, tries):
        return helper_ends if task.assists else None

    executor = OneNode(workers=("w0", "w1"), script=script)
    _, (row,) = run(tmp_path, executor, prompts=("a fox",))
    (assist,) = [submission for submission in executor.submissions if submission.task.assists]
    assert isinstance(assist.work, Assist)
    assert (assist.leader, assist.outputs) == (row["worker"], ())
    assert {assist.worker, assist.leader} == {"w0", "w1"}
    assert (row["status"], row["attempts"], row["error"]) == ("done", 1, None)


def test_a_stop_saves_the_denoise_and_not_the_worker_that_assists_it(tmp_path):
    stop = StopRequest()

    def script(worker, task, tries):
        if task.assists:
            stop.ask("enough")
        return HANGS if task.stage is Stage.DENOISE and task.items else None

    executor = OneNode(workers=("w0", "w1"), script=script)
    with pytest.raises(JobStopped):
        make_driver(tmp_path, executor, tasks=make_tasks(tmp_path, prompts=("a fox",)), stop=stop).run()
    _, task, save = executor.stops[0]
    assert (task.assists, save) == (False, True)


def test_the_time_of_a_text_batch_is_shared_by_its_texts(tmp_path):
    _, rows = run(tmp_path, FakeExecutor())
    assert rows[0]["encode_s"] == pytest.approx(1.0 / 4)  # one batch: two prompts and two negatives


def writing(worker, task, tries):
    return WRITES if task.stage is Stage.DECODE else None


def test_a_worker_takes_the_next_clip_while_it_writes_and_each_clip_ends_once(tmp_path):
    executor, observer = FakeExecutor(script=writing), RecordingObserver()
    driver, rows = run(tmp_path, executor, observer=observer)
    assert [(row["status"], row["decode_worker"], row["decode_s"]) for row in rows] == [("done", "w0", 1.0)] * 2
    events = [event for cycle in observer.cycles for event in cycle.events]
    kinds = [
        type(event).__name__ for event in events if getattr(event, "task", None) and event.task.stage is Stage.DECODE
    ]
    assert kinds == ["DeviceFree", "DeviceFree", "TaskDone", "TaskDone"]
    (time,) = driver.worker_times()
    assert time.decode_s == 2.0


def going_on(worker, task, tries):
    return GOES_ON if task.items and task.stage is Stage.DENOISE else None


def test_the_scheduler_is_told_once_what_the_first_denoise_of_a_worker_will_take(tmp_path):
    executor, observer = FakeExecutor(workers=("w0", "w1"), script=going_on), RecordingObserver()
    executor.progress = Activity(done=3, total=50, step_s=2.0)
    run(tmp_path, executor, observer=observer, each_example_n_times=3)
    timed = [event for cycle in observer.cycles for event in cycle.events if isinstance(event, StepsTimed)]
    assert sorted((event.worker, event.seconds) for event in timed) == [("w0", 100.0), ("w1", 100.0)]
    assert {event.task.stage for event in timed} == {Stage.DENOISE}


def test_a_step_that_has_not_been_timed_tells_nothing(tmp_path):
    executor, observer = FakeExecutor(script=going_on), RecordingObserver()
    executor.progress = Activity(done=1, total=50)
    run(tmp_path, executor, observer=observer)
    assert not [event for cycle in observer.cycles for event in cycle.events if isinstance(event, StepsTimed)]


def test_a_clip_whose_worker_dies_while_it_writes_is_decoded_by_another(tmp_path):
    def script(worker, task, tries):
        if worker == "w0" and task.stage is Stage.DECODE and executor.writing:
            return DIES
        return writing(worker, task, tries)

    executor = FakeExecutor(script=script, replaces=True)
    _, rows = run(tmp_path, executor)
    assert [(row["status"], row["attempts"], row["decode_worker"]) for row in rows] == [("done", 1, "w0.1")] * 2


def test_a_stop_waits_for_videos_that_are_being_written(tmp_path):
    stop = StopRequest()

    def script(worker, task, tries):
        if task.stage is Stage.DECODE:
            stop.ask("SIGINT")
        return writing(worker, task, tries)

    with pytest.raises(JobStopped):
        make_driver(tmp_path, FakeExecutor(script=script), stop=stop).run()
    assert [row["status"] for row in rows_in(tmp_path)] == ["done"]


def test_a_bad_clip_fails_alone_with_its_reason(tmp_path):
    script = failing(Stage.DENOISE, FailureKind.BAD_INPUT, items=(0,), message="the image is a text")
    driver, rows = run(tmp_path, FakeExecutor(script=script))
    assert [(row["status"], row["error"]) for row in rows] == [("failed", "the image is a text"), ("done", None)]
    assert rows[0]["video_path"] is None
    assert (driver.progress().done, driver.progress().failed) == (1, 1)


def test_a_failed_decode_costs_no_second_denoise(tmp_path):
    executor = FakeExecutor(workers=("w0", "w1"), script=failing(Stage.DECODE, FailureKind.ERROR, times=2))
    _, rows = run(tmp_path, executor)
    assert [(row["status"], row["attempts"]) for row in rows] == [("done", 1), ("done", 1)]
    assert len(executor.works(Decode)) == 6


def test_the_task_of_a_lost_worker_is_done_by_another(tmp_path):
    def script(worker, task, tries):
        return DIES if worker == "w0" and task.stage is Stage.DENOISE else None

    driver, rows = run(tmp_path, FakeExecutor(workers=("w0", "w1"), script=script))
    assert [row["status"] for row in rows] == ["done", "done"]
    assert {row["worker"] for row in rows} == {"w1"}
    assert {time.worker for time in driver.worker_times()} == {"w0", "w1"}


def test_a_device_that_fails_costs_its_clip_an_attempt_and_the_others_are_done_by_a_new_process(tmp_path):
    broken = failing(Stage.DENOISE, FailureKind.ERROR, times=1, items=(0,), message="CUDA error", ends_worker=True)
    _, rows = run(tmp_path, FakeExecutor(script=broken, replaces=True))
    assert [(row["status"], row["attempts"], row["worker"]) for row in rows] == [
        ("done", 2, "w0.1"),
        ("done", 1, "w0.1"),
    ]


def test_a_replacement_joins_in_the_slot_of_the_worker_that_it_replaces(tmp_path):
    def script(worker, task, tries):
        return DIES if worker == "w0" and task.stage is Stage.DENOISE else None

    observer = RecordingObserver()
    run(tmp_path, FakeExecutor(script=script, replaces=True), observer=observer)
    joined = [event for cycle in observer.cycles for event in cycle.events if isinstance(event, WorkerJoined)]
    assert [(event.worker, event.slot) for event in joined] == [("w0", "w0"), ("w0.1", "w0")]


def test_when_no_worker_is_left_the_rows_so_far_are_kept_and_the_reason_is_given(tmp_path):
    calls = itertools.count()

    def script(worker, task, tries):
        return DIES if task.stage is Stage.DENOISE and next(calls) == 1 else None

    observer = RecordingObserver()
    with pytest.raises(WorkersLost, match="killed"):
        run(tmp_path, FakeExecutor(script=script), observer=observer)
    assert len(rows_in(tmp_path)) == observer.ends[0].done <= 1
    assert "killed" in observer.ends[0].error


class TextHosts(FakeExecutor):
    """Workers that can encode texts and nothing else."""

    def info_of(self, slot):
        stages = frozenset({Stage.ENCODE_TEXT})
        return info(declared=DeviceProfile(name=slot, memory_gb=100.0, stages=stages))


def unplaceable(*slots, stages=frozenset(Stage)):
    return SlotsUnplaceable(slots=slots, asked="CPU 1, GPU 1", nodes="1 node with CPU 4", waited_s=120.0, stages=stages)


@pytest.mark.parametrize("text_hosts", [(), ("text",)])
def test_a_job_ends_when_no_node_has_a_place_for_a_stage_that_clips_need_and_no_clip_fails(tmp_path, text_hosts):
    executor = TextHosts(workers=text_hosts)
    executor.events += [WorkerStarting(worker=slot, slot=slot) for slot in ("a", "b")]
    executor.events.append(unplaceable("a", "b"))
    observer = RecordingObserver()
    with pytest.raises(WorkersUnplaceable, match="asks for CPU 1, GPU 1"):
        run(tmp_path, executor, observer=observer)
    assert [message for message in observer.messages if "a, b" in message] == [str(unplaceable("a", "b"))]
    assert rows_in(tmp_path) == []


def test_clips_that_fit_on_no_device_fail_when_the_slot_without_a_place_could_not_have_run_them(tmp_path):
    executor = TextHosts(workers=("text",))
    executor.events.append(unplaceable("a", stages=frozenset({Stage.ENCODE_TEXT})))
    _, rows = run(tmp_path, executor)
    assert [row["status"] for row in rows] == ["failed", "failed"]


def test_a_job_goes_on_without_a_slot_that_no_node_has_a_place_for(tmp_path):
    executor = FakeExecutor()
    executor.events += [WorkerStarting(worker="a", slot="a"), unplaceable("a")]
    _, rows = run(tmp_path, executor)
    assert [row["status"] for row in rows] == ["done", "done"]


def test_data_are_released_when_nothing_needs_them(tmp_path):
    executor = FakeExecutor()
    run(tmp_path, executor)
    assert {key.kind for submission in executor.submissions for key in submission.outputs} == {
        DataKind.TEXT,
        DataKind.LATENTS,
    }
    assert not executor.data


def test_the_time_of_a_worker_is_added_up_by_stage(tmp_path):
    driver, _ = run(tmp_path, FakeExecutor())
    (time,) = driver.worker_times()
    assert (time.encode_s, time.denoise_s, time.decode_s) == (1.0, 2.0, 2.0)
    assert time.load_s >= 2.0
    assert time.work == WorkDone(items={Stage.ENCODE_TEXT: 4, Stage.DENOISE: 2, Stage.DECODE: 2})


def test_the_items_of_a_worker_that_is_lost_stay_its_own_and_tasks_that_failed_are_none(tmp_path):
    def script(worker, task, tries):
        return DIES if worker == "w0" and task.stage is Stage.DENOISE and task.items else None

    observer = RecordingObserver()
    driver, _ = run(tmp_path, FakeExecutor(workers=("w0", "w1"), script=script), observer=observer)
    work = {time.worker: time.work for time in driver.worker_times()}
    assert Stage.DENOISE not in work["w0"].items
    assert work["w1"].items[Stage.DENOISE] == 2
    assert observer.snapshots[-1].work == work


def test_observers_see_every_decision_every_clip_and_the_end(tmp_path):
    first, second = RecordingObserver(), RecordingObserver()
    _, rows = run(tmp_path, FakeExecutor(), observer=Observers([first, second]))
    assert first.actions == second.actions
    assert sum(isinstance(action, RunTask) and bool(action.task.items) for action in first.actions) == 5
    assert {clip.clip_id for snapshot in first.snapshots for clip in snapshot.ended} == {row["clip_id"] for row in rows}
    assert first.snapshots[-1].progress.done == 2
    assert [(end.done, end.failed, end.error) for end in second.ends] == [(2, 0, "")]


def test_clips_of_the_same_cost_share_a_kind(tmp_path):
    tasks = make_tasks(tmp_path, prompts=("a", "b", "c"))
    longer = tasks.clips.set_column(
        tasks.clips.schema.get_field_index("sample_steps"), "sample_steps", pa.array([4, 8, 4], pa.int32())
    )
    workload = workload_of(
        TaskTable(
            clips=longer,
            texts=tasks.texts,
            clip_texts=tasks.clip_texts,
            first_frames=tasks.first_frames,
            clip_first_frame=tasks.clip_first_frame,
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


def test_a_device_that_streams_its_blocks_is_expected_to_compute_as_fast_with_less_memory():
    whole = {component: BF16_SIZES.of(component) for component in Component}
    buffered = whole | {Component.TRANSFORMER: 2.0}
    streamed_gb = whole[Component.TRANSFORMER] - 2.0
    resident = device_profile(info(component_gb=whole), "bfloat16")
    streamed = device_profile(info(component_gb=buffered, streamed_gb=streamed_gb), "bfloat16")
    assert streamed.rates.denoise == pytest.approx(resident.rates.denoise)
    assert streamed.sizes.transformer == 2.0


def test_rates_that_were_measured_with_a_model_hold_for_it_as_they_are():
    small = dict.fromkeys(Component, 0.01)
    sizes = ComponentSizes(**{component.value: 0.01 for component in Component})
    declared = DeviceProfile(name="measured", sizes=sizes, rates=StageRates(denoise=7.0))
    profile = device_profile(info(component_gb=small, declared=declared), "bfloat16")
    assert profile.rates.denoise == pytest.approx(7.0)


def test_a_device_that_no_profile_declares_is_expected_to_be_as_fast_as_its_published_peak_says():
    fast = device_profile(info(device="NVIDIA H100 80GB HBM3", vendor="nvidia", architecture="sm90"), "bfloat16")
    slow = device_profile(info(device="NVIDIA L4", vendor="nvidia", architecture="sm89"), "bfloat16")
    assert fast.rates.denoise > 5 * slow.rates.denoise


# -- failures ----------------------------------------------------------------------------------------------------------


def test_the_traceback_of_a_failed_clip_is_in_its_row_and_in_no_other(tmp_path):
    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and (task.items == (0,) or (task.items == (1,) and tries == 1)):
            return Fails(message=f"broke {tries} times")
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
            return Fails(kind=FailureKind.BAD_INPUT, message="not text", items=(0,))
        return None

    _, rows = run(tmp_path, FakeExecutor(script=script), prompts=("a fox", "a dog"), each_example_n_times=2)
    ends = {row["text_prompt"]: (row["status"], row["traceback"]) for row in rows}
    assert ends == {"a fox": ("failed", "Traceback of w0\nnot text"), "a dog": ("done", None)}


@pytest.mark.parametrize("change", ["deleted", "replaced by garbage", "replaced by another image"])
def test_an_image_that_goes_bad_before_its_encode_fails_its_clips_at_once_and_no_other(tmp_path, change):
    images = {name: tmp_path / f"{name}.png" for name in ("good", "bad")}
    for value, path in enumerate(images.values()):
        Image.new("RGB", (64, 64), (value, 0, 0)).save(path)
    tasks = make_tasks_with_images(tmp_path, images=["bad.png", "good.png", "", "bad.png"])
    if change == "deleted":
        images["bad"].unlink()
    elif change == "replaced by garbage":
        images["bad"].write_bytes(b"garbage")
    else:
        Image.new("RGB", (64, 64), (0, 0, 9)).save(images["bad"])

    def script(worker, task, tries):
        if task.stage is not Stage.ENCODE_FIRST_FRAME:
            return None
        work = executor.submissions[-1].work
        try:
            with first_frame_file(work.image_path, work.image_sha256) as path:
                read_image(path)
        except InvalidImage as error:
            return Fails(kind=failure_kind(error), message=str(error))
        return None

    executor = FakeExecutor(workers=("w0", "w1"), script=script)
    make_driver(tmp_path, executor, tasks=tasks).run()
    rows = rows_in(tmp_path)
    assert [row["status"] for row in rows] == ["failed", "done", "done", "failed"]
    assert all("bad.png" in rows[row]["error"] for row in (0, 3))
    assert len(executor.works(EncodeFirstFrame)) == 2


def make_tasks_with_images(tmp_path, images):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"text_prompt": f"prompt {row}"} | ({"image_path": image} if image else {}) for row, image in enumerate(images)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=tmp_path, output_dir=tmp_path / "out", sample_steps=4)
    return TaskTable.of(build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32"))


def test_the_user_learns_when_a_worker_is_taken_out_and_that_it_is_back(tmp_path):
    observer, broken = RecordingObserver(), itertools.count()

    def script(worker, task, tries):
        if worker == "w1" and task.stage is Stage.DENOISE and task.items and next(broken) < 4:
            return Fails(message="CUDA error: bad address")
        return None

    _, rows = run(
        tmp_path,
        FakeExecutor(workers=("w0", "w1"), script=script),
        prompts=tuple(f"prompt {number}" for number in range(20)),
        observer=observer,
        config=DriverConfig(scheduler=SchedulerConfig(circuit_breaker=CircuitBreakerConfig(cooldown_s=0.0))),
    )
    assert {row["status"] for row in rows} == {"done"}
    states = [action.state for action in observer.actions if isinstance(action, BreakerChange)]
    assert (states[0], states[-1]) == (BreakerState.OPEN, BreakerState.CLOSED)
    assert BreakerState.HALF_OPEN in states
    opened, closed = observer.messages  # a failed probe is shown by --explain only
    assert "CUDA error: bad address" in opened
    assert "w1" in closed


# -- intermediates, storage that fails, stopping -----------------------------------------------------------------------


def write_latents_of(tasks, tmp_path, index):
    intermediates = Intermediates(output_dir=to_location(tmp_path / "out"))
    intermediates.prepare()
    path = intermediates.latents_path(tasks.clip(index).clip_id)
    path.write_bytes(b"latents")
    return path


def test_a_clip_with_latents_begins_at_decode_and_they_are_removed_when_its_video_is_there(tmp_path):
    path = write_latents_of(make_tasks(tmp_path), tmp_path, 0)
    _, rows = run(tmp_path, FakeExecutor())
    assert [(row["status"], row["attempts"]) for row in rows] == [("done", 0), ("done", 1)]
    assert not path.exists()


def test_latents_are_kept_for_good_when_asked(tmp_path):
    tasks = make_tasks(tmp_path)
    path = write_latents_of(tasks, tmp_path, 0)
    intermediates = Intermediates(output_dir=to_location(tmp_path / "out"), keep_latents=True)
    make_driver(tmp_path, FakeExecutor(), tasks=tasks, intermediates=intermediates).run()
    assert path.exists()


def test_corrupt_latents_are_reported_and_made_again(tmp_path):
    tasks, observer = make_tasks(tmp_path), RecordingObserver()
    path = write_latents_of(tasks, tmp_path, 0)
    script = failing(
        Stage.DECODE,
        FailureKind.CANCELLED,
        items=(0,),
        times=1,
        message="latents: broken",
        cause=FailureCause.LATENTS,
    )
    executor = FakeExecutor(script=script)
    make_driver(tmp_path, executor, tasks=tasks, observer=observer).run()
    (message,) = observer.messages
    assert message.startswith("latents: broken")
    assert not path.exists()
    denoised = sorted(s.task.items for s in executor.submissions if isinstance(s.work, Denoise))
    assert denoised == [(0,), (1,)]


def test_a_full_disk_pauses_the_job_with_a_message_and_costs_nothing(tmp_path):
    problems = iter(["No space left on device"] * 3)
    probed = []

    def write_problem(folder):
        probed.append(next(problems, ""))
        return probed[-1]

    observer = RecordingObserver()
    script = failing(Stage.DECODE, FailureKind.CANCELLED, times=2, message="disk full", cause=FailureCause.STORAGE)
    config = DriverConfig(storage=StoragePauseConfig(write_problem=write_problem))
    _, rows = run(tmp_path, FakeExecutor(script=script), observer=observer, config=config)
    assert [(row["status"], row["attempts"]) for row in rows] == [("done", 1), ("done", 1)]
    assert probed[:4] == ["No space left on device"] * 3 + [""]
    assert observer.messages[0].startswith("paused")
    assert "disk full" in observer.messages[0]
    assert observer.messages[-1].startswith("resumed")


def test_rows_that_cannot_be_written_hold_the_end_of_the_job_back(tmp_path):
    class FullResults(Results):
        tries = 0

        def flush(self):
            self.tries += 1
            if self.tries <= 3:
                raise OSError(28, "No space left on device")
            super().flush()

    observer, results = RecordingObserver(), FullResults(tmp_path / "out")
    make_driver(tmp_path, FakeExecutor(), results=results, observer=observer).run()
    assert len(rows_in(tmp_path)) == 2
    assert "No space left on device" in observer.messages[0]


def test_a_stop_saves_the_running_denoise_and_starts_nothing(tmp_path):
    stop, observer = StopRequest(), RecordingObserver()

    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items:
            stop.ask("SIGINT")
            return HANGS
        return None

    executor = FakeExecutor(script=script)
    with pytest.raises(JobStopped, match="SIGINT"):
        make_driver(tmp_path, executor, stop=stop, observer=observer).run()
    assert [(task.stage, save) for _, task, save in executor.stops] == [(Stage.DENOISE, True)]
    assert not executor.works(Decode)
    assert not stop.is_watched
    assert observer.cycles[-1].stopping


def test_a_job_whose_head_is_silent_saves_what_runs_and_ends_with_an_error_of_its_own(tmp_path):
    stop, observer = StopRequest(), RecordingObserver()

    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items:
            executor.events.append(HeadSilent(what="the head has not answered for 36 s", save_s=60.0))
            return HANGS
        return None

    executor = FakeExecutor(script=script)
    with pytest.raises(HeadLost, match="the head has not answered for 36 s; finished clips are kept"):
        make_driver(tmp_path, executor, stop=stop, observer=observer).run()
    assert [(task.stage, save) for _, task, save in executor.stops] == [(Stage.DENOISE, True)]
    assert observer.cycles[-1].stopping


def test_a_job_whose_head_went_down_with_all_workers_says_that_of_the_head(tmp_path):
    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items:
            executor.kill(worker)
            executor.events.append(HeadSilent(what="the head has not answered for 2 s", save_s=60.0))
            return HANGS
        return None

    executor = FakeExecutor(script=script)
    with pytest.raises(HeadLost, match="the head has not answered for 2 s"):
        make_driver(tmp_path, executor).run()
    assert executor.is_empty


def test_a_stop_waits_no_longer_than_its_grace(tmp_path):
    stop = StopRequest()

    def script(worker, task, tries):
        if task.stage is Stage.DECODE:
            stop.ask("SIGTERM", grace_s=0.0)
            return HANGS
        return None

    with pytest.raises(JobStopped):
        make_driver(tmp_path, FakeExecutor(script=script), stop=stop).run()


def test_the_user_is_told_once_that_no_worker_comes(tmp_path):
    class LateExecutor(FakeExecutor):
        """Its worker starts after three minutes."""

        def poll(self, timeout_s):
            self.clock.sleep(timeout_s)
            return super().poll(0.0) if self.clock.time > 180 else []

    observer = RecordingObserver()
    run(tmp_path, LateExecutor(), observer=observer, config=DriverConfig(no_worker_warning_s=60.0))
    (message,) = observer.messages
    assert "60 s" in message


class SpotExecutor(FakeExecutor):
    """Its worker `spot` goes away at its first denoise, and comes back later."""

    def __init__(self, other, *, back_after_s, other_device, other_fails=None):
        self.back_after_s = back_after_s
        self.back_at = None
        self.other, self.other_device, self.other_fails = other, other_device, other_fails
        super().__init__(workers=(other, "spot"), script=self.end, replaces=True)

    def end(self, worker, task, tries):
        if task.stage is not Stage.DENOISE or not task.items:
            return None
        if worker == "spot":
            self.kill("spot", crashed=False)
        return HANGS if worker == "spot" else self.other_fails if worker == self.other else None

    def info_of(self, slot):
        return self.other_device if slot == self.other else info()

    def _start(self, worker, slot):
        if worker == "spot.1":
            self.back_at = self.clock.time + self.back_after_s
        else:
            super()._start(worker, slot)

    def poll(self, timeout_s):
        if self.back_at is not None and self.clock.time >= self.back_at:
            self.back_at = None
            super()._start("spot.1", "spot")
        return super().poll(timeout_s)


def test_clips_wait_for_a_lost_gpu_whose_successor_starts_late_beside_a_text_host(tmp_path):
    observer = RecordingObserver()
    text_host = info(declared=DeviceProfile(name="text host", stages=frozenset({Stage.ENCODE_TEXT})))
    executor = SpotExecutor("text", back_after_s=300, other_device=text_host)
    prompts = tuple(f"prompt {number}" for number in range(50))
    _, rows = run(tmp_path, executor, prompts=prompts, observer=observer)
    assert {row["status"] for row in rows} == {"done"}
    (waiting,) = (message for message in observer.messages if "waits" in message)
    assert "spot" in waiting


@pytest.mark.parametrize("kind", [FailureKind.ERROR, FailureKind.OUT_OF_MEMORY])
def test_clips_wait_for_the_successor_of_the_healthy_worker_beside_a_sick_one(tmp_path, kind):
    executor = SpotExecutor("sick", back_after_s=60, other_device=info(), other_fails=Fails(kind=kind))
    prompts = tuple(f"prompt {number}" for number in range(20))
    _, rows = run(tmp_path, executor, prompts=prompts)
    assert {row["status"] for row in rows} == {"done"}


@pytest.mark.parametrize("stage", [Stage.ENCODE_TEXT, Stage.DENOISE, Stage.DECODE])
def test_clips_that_kill_the_only_worker_end_failed_after_all_good_ones_are_done(tmp_path, stage):
    def script(worker, task, tries):
        return DIES if task.stage is stage and poison.intersection(task.items) else None

    poison = set(range(6))
    prompts = tuple(f"prompt {number}" for number in range(30))
    if stage is Stage.ENCODE_TEXT:
        poison = {0, *range(3, 8)}  # the negative prompts are texts 1 and 2
    executor = FakeExecutor(script=script, replaces=True, max_failures=5)
    _, rows = run(tmp_path, executor, prompts=prompts)
    assert [row["status"] for row in rows] == ["failed"] * 6 + ["done"] * 24
    assert all("poison" in row["error"] for row in rows[:6])


@pytest.mark.parametrize("stage", [Stage.ENCODE_TEXT, Stage.DENOISE, Stage.DECODE])
def test_a_worker_that_always_runs_out_of_memory_fails_no_clip(tmp_path, stage):
    def script(worker, task, tries):
        sick = worker == "w0" and task.stage is stage and task.items
        return Fails(kind=FailureKind.OUT_OF_MEMORY, message="out of memory") if sick else None

    prompts = tuple(f"prompt {number}" for number in range(12))
    _, rows = run(tmp_path, FakeExecutor(workers=("w0", "w1"), script=script), prompts=prompts)
    assert {row["status"] for row in rows} == {"done"}
