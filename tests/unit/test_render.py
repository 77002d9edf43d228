"""A job from beginning to end in an output folder, again and again, without Ray."""

import contextlib
import errno
import itertools
import json
import os
import signal
from dataclasses import replace

import pyarrow.parquet
import pytest

from ovi.files import UNFINISHED_PREFIX
from ovi.media.probe import probe
from ovi.quality import COMBINATIONS
from ovi.stages import Stage
from ovi_ray.errors import JobStopped, OutputError, OutputInUse, OutputOfOtherJob, WorkersLost
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.output.event_log import recorded_runs
from ovi_ray.output.lock import output_lock
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Decode, Denoise
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.retry import prepare_retry
from ovi_ray.runtime.shutdown import StopRequest
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import list_files, local_copy, to_location
from ovi_ray.storage.reading import ReadConfig
from tests.support.fake_executor import DIES, Fails
from tests.support.files import UNREADABLE
from tests.support.recording_observer import RecordingObserver
from tests.support.rendered_jobs import (
    PlaceholderExecutor,
    RenderingExecutor,
    prepared_job,
    render_job,
    unchecked,
    write_rows,
)
from tests.support.report_pages import clips_of
from tests.support.stores import overridden


@pytest.fixture
def start(tiny_dir, tmp_path, out):
    """Renders a list of prompts into OUT; returns the result, the executor and the messages."""

    def run(
        prompts=("a fox", "a dog"),
        *,
        script=None,
        prepared=None,
        steps=4,
        output=out,
        damaged=None,
        executor=RenderingExecutor,
        **options,
    ):
        executor, observer = executor(script=script), RecordingObserver()
        if prepared is None:
            path = tmp_path / "prompts.jsonl"
            lines = (json.dumps({"text_prompt": text, "seed": 7}) for text in prompts)
            path.write_text("\n".join(lines), encoding="utf-8")
            job = JobSpec.from_options(
                prompts=path, ckpt_dir=tiny_dir, output_dir=output, sample_steps=steps, dtype="float32"
            )
            prepared = replace(unchecked(job, tiny_dir), damaged=damaged or {})
        result = render(
            prepared,
            options=RenderOptions(reading=ReadConfig(pause_s=0.0), **options),
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


@pytest.fixture
def broken_reads(out):
    """The output location, where files whose key is chosen cannot be read, for the time of a block."""

    @contextlib.contextmanager
    def broken(is_chosen):
        def read(key):
            if is_chosen(key):
                raise OSError(errno.EIO, os.strerror(errno.EIO), key)
            return out.store.read(key)

        yield overridden(out, read=read)

    return broken


def sizes(folder):
    return {entry.name: entry.size for entry in folder.files()}


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
    result, _, _ = start(("a fox", "a dog", "a cat"))
    with local_copy(out / "events.jsonl") as local:
        runs = recorded_runs(local)
        assert [run.workload.clips for run in runs] == [2, 1]
        *_, end = runs[-1].entries()
        assert end.at_s == result.seconds  # one time for a run, wherever it is told
    assert (out / "run.log").read_text(encoding="utf-8").count("run ended") == 2


def test_a_folder_with_clips_of_another_job_is_refused_with_the_columns_that_differ_and_what_to_do(start, out):
    start()
    before = names(out)
    expected = (
        r"2 finished clips of another job \(.*prompts.jsonl\).*text_prompt is 'a cat' and 1 more here and 'a .* there"
    )
    with pytest.raises(OutputOfOtherJob, match=rf"{expected}.*sample_steps is 5 here and 4 there.*another --out"):
        start(("a cat", "an owl"), steps=5)
    assert names(out) == before
    assert len(rows(out)) == 2


def test_other_parameters_of_the_same_prompts_are_accepted_and_the_earlier_clips_set_apart(start, out):
    start()
    result, _, told = start(steps=5)
    assert (result.done, result.finished_before, result.superseded) == (2, 0, 2)
    assert told[0] == "2 finished clips have prompts of this list with another sample_steps"
    assert sorted((row["sample_steps"], row["current"]) for row in rows(out)) == [(4, False)] * 2 + [(5, True)] * 2
    assert start(steps=4)[0].finished_before == 2  # and back again
    assert sorted((row["sample_steps"], row["current"]) for row in rows(out)) == [(4, True)] * 2 + [(5, False)] * 2


def test_what_the_list_no_longer_asks_for_is_counted_apart_in_the_report(start, out):
    start()
    start(("a dog",))
    assert {row["text_prompt"]: row["current"] for row in rows(out)} == {"a fox": False, "a dog": True}
    assert "<dt>Superseded</dt><dd>1<" in (out / "report.html").read_text()


def test_a_job_in_which_nothing_was_finished_may_be_corrected_in_place(start, out):
    start(("a fox",), script=failing_denoise)
    result, _, _ = start(("a red fox",))
    assert result.done == 1
    assert [row["status"] for row in rows(out)] == ["done"]


def test_a_folder_that_another_driver_has_is_refused(start, out):
    start()
    with output_lock(out), pytest.raises(OutputInUse):
        start()


# -- weights that are not finite numbers -------------------------------------------------------------------------------


def test_clips_of_damaged_weights_fail_at_once_with_file_and_tensor_and_the_others_are_rendered(start, out, tiny_dir):
    job = mixed_job(out, tiny_dir)
    damage = "ckpts/model.safetensors: NaN or infinity in head.weight (1 number)"
    prepared = replace(unchecked(job, tiny_dir), damaged={"960x960_5s": damage})
    result, executor, told = start(prepared=prepared)
    assert (result.done, result.failed, result.finished_before) == (1, 1, 0)
    right, damaged = rows(out)
    assert (right["status"], damaged["status"], damaged["attempts"]) == ("done", "failed", 0)
    assert damaged["error"] == f"its frames and sound would not be finite numbers: {damage}"
    assert executor.counts(Denoise) == 1
    assert any(damage in message for message in told)
    assert damage in (out / "report.html").read_text(encoding="utf-8")

    result, executor, _ = start(prepared=replace(prepared, damaged={}))  # the file was damaged in memory only
    assert (result.done, result.failed, result.finished_before) == (1, 0, 1)
    assert [row["status"] for row in rows(out)] == ["done", "done"]


def test_a_job_whose_weights_are_all_damaged_starts_no_worker(start, out):
    result, executor, _ = start(damaged={"720x720_5s": "a.pth: NaN or infinity in a (1 number)"})
    assert (result.done, result.failed, executor.submissions) == (0, 2, [])
    assert [row["status"] for row in rows(out)] == ["failed", "failed"]


def mixed_job(out, tiny_dir):
    """A job with a clip of each of two models."""
    path = out.parent / "mixed.jsonl"
    lines = [json.dumps({"text_prompt": "a fox", "model_name": name}) for name in ("720x720_5s", "960x960_5s")]
    path.write_bytes("\n".join(lines).encode())
    return JobSpec.from_options(prompts=str(path), ckpt_dir=tiny_dir, output_dir=out, sample_steps=4, dtype="float32")


# -- notes in rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("qualities", "planned"), [(["exact", "high"], "exact"), (["exact", "fast", "high"], "fast")])
def test_workers_plan_their_memory_for_the_quality_of_the_rows_that_takes_most(out, tmp_path, qualities, planned):
    rows = [{"text_prompt": "a fox", "quality": quality} for quality in qualities]
    jobs, executor = [], PlaceholderExecutor()

    def open_executor(job, config):
        jobs.append(job)
        return contextlib.nullcontext(executor)

    prepared = prepared_job(out, write_rows(tmp_path, rows), quality="high")
    render(prepared, options=RenderOptions(), open_executor=open_executor, clock=executor.clock)
    assert [COMBINATIONS[job.quality] for job in jobs] == [COMBINATIONS[planned]]


def test_a_note_on_a_clip_stands_in_its_row_and_is_counted(start, out):
    class NotingExecutor(RenderingExecutor):
        def decode(self, work):
            return {**super().decode(work), "notes": "is silent throughout"}

    result, *_ = start(executor=NotingExecutor)
    assert result.noted == 2
    assert [row["notes"] for row in rows(out)] == ["is silent throughout"] * 2


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
    assert (out / "broken" / path.name).stat().st_size == 700
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
    assert names(out / "broken") == [path.name]
    assert len(rows(out)) == 2


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("job.json", lambda path: path.symlink_to(UNREADABLE)),
        (".unfinished", lambda path: path.write_text("not a folder", encoding="utf-8")),
        (".driver.lock", lambda path: path.mkdir()),
    ],
)
def test_what_an_output_cannot_be_used_for_is_named(tiny_dir, tmp_path, name, damage):
    (tmp_path / "out").mkdir()
    damage(tmp_path / "out" / name)
    with pytest.raises(OutputError, match=f"{name}: "):
        render_job(tmp_path / "out", write_rows(tmp_path, ["a fox"]), ckpt_dir=tiny_dir)


def test_videos_that_cannot_be_read_are_neither_removed_nor_rendered_again_and_the_next_run_looks_again(
    start, out, broken_reads
):
    prompts = tuple(f"clip {number}" for number in range(6))
    start(prompts)
    before = sizes(out / "videos")
    for lost, verify in ((False, True), (True, False)):
        if lost:
            lose_rows(out)
        with broken_reads(lambda key: key.endswith(".mp4") and int(key[-5], 16) % 2 == 0) as broken:
            result, executor, told = start(prompts, output=broken, verify=verify)
        affected = sum(int(name[-5], 16) % 2 == 0 for name in before)
        assert (result.done, result.unreadable, executor.submissions) == (0, affected, [])
        assert result.finished_before == 6 - affected
        assert sum("cannot be read" in text for text in told) == affected
        assert sizes(out / "videos") == before
    result, executor, _ = start(prompts)
    assert (result.finished_before, result.unreadable, executor.submissions) == (6, 0, [])
    assert sizes(out / "videos") == before
    assert len(rows(out)) == 6


def test_a_video_on_a_disk_that_cannot_be_read_is_left_alone(start, tmp_path, out):
    if not out.is_local:
        pytest.skip("of a disk")
    start()
    path = out.local_path / rows(out)[0]["video_path"]
    path.unlink()
    path.symlink_to(UNREADABLE)
    for _ in range(2):
        result, executor, _ = start()
        assert (result.unreadable, result.finished_before, executor.submissions) == (1, 1, [])
        assert path.readlink() == UNREADABLE


def test_overwrite_renders_every_clip_again_and_leaves_one_row_each(start, out):
    start()
    result, executor, _ = start(overwrite=True)
    assert (result.done, result.finished_before, executor.counts(Denoise)) == (2, 0, 2)
    assert len(rows(out)) == 2


def test_an_overwrite_that_was_stopped_goes_on_and_the_one_after_it_begins_anew(start, out):
    if not out.is_local:
        pytest.skip("stores tell times in whole seconds, and clips take longer to render than these")
    prompts = tuple(f"clip {number}" for number in range(4))
    start(prompts)

    decodes = itertools.count(1)

    def die_at_the_third_decode(worker, task, tries):
        return DIES if task.stage is Stage.DECODE and next(decodes) == 3 else None

    with pytest.raises(WorkersLost):
        start(prompts, script=die_at_the_third_decode, overwrite=True)
    replaced = len(rows(out))
    assert 0 < replaced < 4
    assert len(names(out / "videos")) == 4
    lose_rows(out)
    result, executor, _ = start(prompts, overwrite=True)
    assert (result.done, result.finished_before, executor.counts(Decode)) == (4 - replaced, replaced, 4 - replaced)
    assert len(rows(out)) == 4
    assert start(prompts, overwrite=True)[0].done == 4


def test_a_stopped_overwrite_is_finished_without_the_option_by_the_videos_that_are_there(start, out):
    start()
    with pytest.raises(WorkersLost):
        start(script=lambda worker, task, tries: DIES, overwrite=True)
    result, executor, _ = start()
    assert (result.done, result.finished_before, executor.submissions) == (0, 2, [])
    assert start(overwrite=True)[0].done == 2


# -- what a run that is killed leaves ----------------------------------------------------------------------------------


def test_what_killed_workers_left_half_written_is_removed_in_the_same_run(start, out):
    if not out.is_local:
        pytest.skip("stores show no file that is half written")

    def leave_a_part(worker, task, tries):
        (out.local_path / "videos" / f"{UNFINISHED_PREFIX}0badcafe.x.mp4").write_bytes(b"half")

    start(script=leave_a_part)
    assert not list((out.local_path / "videos").glob(f"{UNFINISHED_PREFIX}*"))


def test_clips_that_failed_keep_their_reason_while_a_run_that_is_stopped_has_not_come_to_them(start, out):
    start(("a fox", "a dog"), script=failing_denoise)
    assert [row["status"] for row in rows(out)] == ["failed", "done"]
    with pytest.raises(WorkersLost):
        start(("a fox", "a dog", "a cat"), script=lambda worker, task, tries: DIES)
    assert [row["status"] for row in rows(out)] == ["done"]  # a clip that is rendered again has no row meanwhile
    with local_copy(out / "failed.parquet") as local:
        assert pyarrow.parquet.read_table(local).column("meta_error").to_pylist() == ["it cannot be"]
    _, executor, _ = start(("a fox", "a dog", "a cat"))
    assert [work.title for work in executor.works(Decode)] == ["a cat", "a fox"]  # and it still comes last
    assert not (out / "failed.parquet").exists()


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


def test_retry_where_nothing_failed_has_nothing_to_do(start, out):
    start()
    retry = prepare_retry(out, {})
    assert (retry.prepared, retry.total, retry.clips, retry.missing) == (None, 2, 0, 0)


def test_retry_of_a_job_that_was_cut_off_renders_what_is_missing(start, out):
    prompts = ("a fox", "a dog", "a cat")
    with pytest.raises(WorkersLost):
        start(prompts, script=lambda worker, task, tries: DIES if task.stage is Stage.DECODE else None)
    retry = prepare_retry(out, {"sample_steps": "9"})  # a change is of clips that failed, of which there are none
    assert (retry.clips, retry.missing) == (0, 3)
    result, _, _ = start(prepared=retry.prepared, replaces=True)
    assert (result.done, start(prompts)[0].finished_before) == (3, 3)


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_what_a_sweep_varies_is_in_rows_log_lines_and_tags(start, out, tiny_dir):
    job = JobSpec.from_options(
        text_prompt="A fox", ckpt_dir=tiny_dir, output_dir=out, dtype="float32", sweep={"shift": [3, 5], "seed": [7]}
    )
    start(prepared=unchecked(job, tiny_dir))
    found = rows(out)
    assert [(row["varies"], row["seed"], row["shift"]) for row in found] == [
        ("seed,shift", 7, 3.0),
        ("seed,shift", 7, 5.0),
    ]
    log = (out / "run.log").read_text(encoding="utf-8")
    for row in found:
        with local_copy(out / row["video_path"]) as video:
            parameters = probe(video).parameters
        assert [parameters[name] for name in parameters["varies"].split(",")] == [7, row["shift"]]
        assert f"{row['clip_id']}, seed 7, shift {row['shift']}, done" in log


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
    assert [tuple(clip[name] for name in shown) for clip in clips_of(page)] == [
        (1, 2, "<b>1</b>", "done"),
        (2, 5, "", "done"),
    ]
    assert "<b>1</b>" not in page


def test_sigterm_while_ray_starts_stops_the_job_as_it_does_later(tiny_dir, tmp_path):
    """Ray's own handler, which ends the process, is in place until the driver watches for signals."""
    job = JobSpec.from_options(prompt="a fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out", dtype="float32")
    stop = StopRequest()

    @contextlib.contextmanager
    def terminated(job, config):
        raise SystemExit(signal.SIGTERM)
        yield

    with pytest.raises(JobStopped):
        render(unchecked(job, tiny_dir), stop=stop, open_executor=terminated)
    assert stop.reason == "SIGTERM"
    assert list((tmp_path / "out" / "videos").iterdir()) == []
