"""A job from beginning to end in an output folder, again and again, without Ray."""

import contextlib
import functools
import json

import numpy as np
import pyarrow.parquet
import pytest

from ovi.config import Architecture
from ovi.media.probe import probe
from ovi.media.video import VideoWriter
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat
from ovi.weights.loading import fingerprint
from ovi_ray.errors import InputError, OutputInUse, OutputOfOtherJob
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.output.event_log import recorded_runs
from ovi_ray.output.lock import output_lock
from ovi_ray.output.results import Results
from ovi_ray.preparation import PreparedJob
from ovi_ray.protocol.messages import Decode, Denoise
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.retry import prepare_retry
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import atomic_write, list_files, local_copy, to_location
from ovi_ray.weights.digests import cached_file_digest
from tests.support.fake_executor import Fails, FakeExecutor
from tests.support.recording_observer import RecordingObserver


class RenderingExecutor(FakeExecutor):
    """Its decodes write real videos."""

    def decode(self, work):
        with atomic_write(to_location(work.video_path)) as path:
            with VideoWriter(path, audio=np.zeros(6656, np.float32), parameters=work.parameters) as writer:
                writer.write(np.zeros((work.num_frames, 32, 32, 3), np.uint8))
            return {"num_frames": work.num_frames, "video_bytes": path.stat().st_size}

    def counts(self, kind):
        return len(self.works(kind))


def unchecked(job, ckpt_dir):
    """What `prepare` returns, without its check of every weight."""
    return PreparedJob(
        job=job,
        manifest=build_manifest(
            job, Architecture.read(ckpt_dir), weights=lambda name: weights_digest(ckpt_dir, name), numerics=job.numerics
        ),
    )


@functools.cache
def weights_digest(ckpt_dir, model_name):
    return fingerprint(ckpt_dir, model_name, cached_file_digest, WeightFormat.DTYPE)


@pytest.fixture
def start(tiny_dir, tmp_path, out):
    """Renders a list of prompts into OUT; returns the result, the executor and the messages."""

    def run(prompts=("a fox", "a dog"), *, script=None, prepared=None, steps=4, **options):
        executor, observer = RenderingExecutor(script=script), RecordingObserver()
        if prepared is None:
            path = tmp_path / "prompts.jsonl"
            lines = (json.dumps({"text_prompt": text, "seed": 7}) for text in prompts)
            path.write_text("\n".join(lines), encoding="utf-8")
            job = JobSpec.from_options(
                prompts=path, ckpt_dir=tiny_dir, output_dir=out, sample_steps=steps, dtype="float32"
            )
            prepared = unchecked(job, tiny_dir)
        result = render(
            prepared,
            options=RenderOptions(**options),
            observer=observer,
            open_executor=lambda job, config: contextlib.nullcontext(executor),
            clock=executor.clock,
        )
        return result, executor, observer.messages

    return run


@pytest.fixture(params=["disk", pytest.param("store", marks=pytest.mark.s3)])
def out(request, tmp_path):
    """An output location of each kind: all that follows is true of both."""
    return to_location(tmp_path if request.param == "disk" else request.getfixturevalue("s3_bucket")) / "out"


def rows(out):
    return Results(out).read().sort_by("row").to_pylist()


def lose_rows(out):
    for name in names(out / "results"):
        (out / "results" / name).unlink()


def names(folder):
    return list_files(folder, "").column("name").to_pylist()


def failing_denoise(worker, task, tries):
    if task.stage is Stage.DENOISE and task.items == (0,):
        return Fails(kind=FailureKind.BAD_INPUT, message="it cannot be")
    return None


# -- going on --------------------------------------------------------------------------------------------------------


def test_the_same_job_again_has_nothing_to_do(start, out):
    assert start()[0].done == 2
    result, executor, _ = start()
    assert (result.done, result.finished_before, executor.submissions) == (0, 2, [])
    assert len(rows(out)) == 2


def test_rows_that_were_added_to_the_list_are_rendered_and_the_others_kept(start, out):
    start()
    result, _, _ = start(("a fox", "a dog", "a cat"))
    assert (result.clips, result.done, result.finished_before) == (3, 1, 2)
    assert json.loads((out / "job.json").read_text(encoding="utf-8"))["clips"] == 3


def test_every_run_is_recorded_in_the_folder(start, out):
    start()
    start(("a fox", "a dog", "a cat"))
    with local_copy(out / "events.jsonl") as local:
        assert [run.workload.clips for run in recorded_runs(local)] == [2, 1]
    assert (out / "run.log").read_text(encoding="utf-8").count("run ended") == 2


def test_a_folder_with_clips_of_another_job_is_refused_with_what_to_do(start, out):
    start()
    before = names(out)
    with pytest.raises(OutputOfOtherJob, match=r"2 clips of another job \(.*prompts.jsonl\).*another --out"):
        start(steps=5)
    assert names(out) == before
    assert len(rows(out)) == 2


def test_a_job_in_which_nothing_was_finished_may_be_corrected_in_place(start, out):
    start(("a fox",), script=failing_denoise)
    result, _, _ = start(("a red fox",))
    assert result.done == 1
    assert [row["status"] for row in rows(out)] == ["done"]


def test_a_folder_that_another_driver_has_is_refused(start, out):
    start()
    with output_lock(out), pytest.raises(OutputInUse):
        start()


# -- videos and rows -------------------------------------------------------------------------------------------------


def test_a_video_without_its_row_is_taken_over_with_what_is_known_of_it(start, out):
    start()
    first = rows(out)
    lose_rows(out)
    result, executor, told = start()
    assert (result.done, result.finished_before, executor.submissions) == (0, 2, [])
    assert told == ["recovered the missing rows of 2 finished videos"]
    again = rows(out)
    same = (
        "clip_id",
        "row",
        "seed",
        "status",
        "video_path",
        "num_frames",
        "video_bytes",
        "worker",
        "denoise_s",
        "dtype",
    )
    assert [[row[name] for name in same] for row in again] == [[row[name] for name in same] for row in first]


def test_a_truncated_video_is_told_and_rendered_again(start, out):
    start()
    path = out / rows(out)[0]["video_path"]
    path.write_bytes(path.read_bytes()[:700])
    result, executor, told = start()
    assert (result.done, executor.counts(Decode), len(rows(out))) == (1, 1, 2)
    assert path.name in told[0]
    with local_copy(path) as local:
        assert probe(local).num_frames == 9


def test_verify_finds_a_broken_video_of_the_right_size(start, out):
    start()
    path = out / rows(out)[0]["video_path"]
    path.write_bytes(path.read_bytes()[:700].ljust(path.stat().st_size, b"\0"))
    assert start()[0].done == 0
    result, _, told = start(verify=True)
    assert result.done == 1
    assert path.name in told[0]
    assert len(rows(out)) == 2


def test_overwrite_renders_every_clip_again_and_leaves_one_row_each(start, out):
    start()
    result, executor, _ = start(overwrite=True)
    assert (result.done, result.finished_before, executor.counts(Denoise)) == (2, 0, 2)
    assert len(rows(out)) == 2


# -- clips that failed -----------------------------------------------------------------------------------------------


def test_what_failed_is_a_list_that_can_be_rendered(start, out, tiny_dir, tmp_path):
    start(script=failing_denoise)
    with local_copy(out / "failed.parquet") as local:
        table = pyarrow.parquet.read_table(local)
    assert table.select(["text_prompt", "meta_error"]).to_pylist() == [
        {"text_prompt": "a fox", "meta_error": "it cannot be"}
    ]
    again = JobSpec.from_options(
        prompts=out / "failed.parquet", ckpt_dir=tiny_dir, output_dir=tmp_path / "other", dtype="float32"
    )
    result, _, _ = start(prepared=unchecked(again, tiny_dir))
    assert result.done == 1
    assert rows(tmp_path / "other")[0]["clip_id"] == table.column("clip_id")[0].as_py()


def test_what_failed_before_is_tried_last(start):
    """Clips that kill every worker must not keep the others from being rendered, run after run."""
    start(("a fox", "a dog"), script=failing_denoise)
    _, executor, _ = start(("a fox", "a dog", "a cat"))
    titles = [work.title for work in executor.works(Decode)]
    assert (executor.counts(Denoise), titles) == (2, ["a cat", "a fox"])


def test_a_job_without_failures_leaves_no_list_of_them(start, out):
    start(script=failing_denoise)
    start()
    assert not (out / "failed.parquet").exists()


def test_retry_renders_what_failed_in_its_place(start, out):
    start(script=failing_denoise)
    retry = prepare_retry(out, {})
    result, executor, _ = start(prepared=retry.prepared, replaces=True)
    assert (retry.clips, result.done, result.finished_before, executor.counts(Denoise)) == (1, 1, 1, 1)
    assert [(row["row"], row["text_prompt"], row["status"]) for row in rows(out)] == [
        (1, "a fox", "done"),
        (2, "a dog", "done"),
    ]
    assert start()[0].done == 0


def test_retry_with_changed_parameters_makes_another_clip_in_place_of_the_failed_one(start, out):
    start(script=failing_denoise)
    retry = prepare_retry(out, {"sample_steps": "9", "workers": None})
    start(prepared=retry.prepared, replaces=True)
    assert [(row["row"], row["sample_steps"], row["seed"], row["status"]) for row in rows(out)] == [
        (1, 9, 7, "done"),
        (2, 4, 7, "done"),
    ]


def test_retry_where_nothing_failed_says_so(start, out):
    start()
    with pytest.raises(InputError, match=r"failed.parquet"):
        prepare_retry(out, {})


# -- what is carried along -----------------------------------------------------------------------------------------


def test_row_line_and_own_columns_are_in_messages_results_report_failures_and_video(start, out, tiny_dir, tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('text_prompt,seed,meta_shot\n"a\n\nfox",7,<b>1</b>\na dog,7,\n', encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=tiny_dir, output_dir=out, sample_steps=4, dtype="float32")
    start(prepared=unchecked(job, tiny_dir), script=failing_denoise)
    shown = ("row", "line", "meta_shot", "status")
    assert sorted(tuple(row[name] for name in shown) for row in rows(out)) == [
        (1, 2, "<b>1</b>", "failed"),
        (2, 5, "", "done"),
    ]
    retry = prepare_retry(out, {})
    start(prepared=retry.prepared, replaces=True)
    again = rows(out)
    assert [tuple(row[name] for name in shown) for row in again] == [(1, 2, "<b>1</b>", "done"), (2, 5, "", "done")]
    with local_copy(out / again[0]["video_path"]) as video:
        assert probe(video).parameters["meta_shot"] == "<b>1</b>"
    page = (out / "report.html").read_text()
    assert "row 2 (line 5)" in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    assert "<b>1</b>" not in page
