"""`ovi-ray explain` on the records of jobs that a fake executor rendered."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ovi.config import Architecture
from ovi.stages import Stage
from ovi_ray.cli import app
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.preparation import PreparedJob
from ovi_ray.protocol.messages import Decode, FailureCause
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.runtime.driver import DriverConfig
from ovi_ray.runtime.storage_pause import StoragePauseConfig
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import to_location
from tests.support.fake_executor import DIES, Fails, FakeExecutor

BAD_INPUT, FAILED = 2, 1
PROMPTS = ("a fox", "a dog", "a cat")


class WritingExecutor(FakeExecutor):
    """Its decodes leave a file, so that the next run finds their clips finished."""

    def decode(self, work):
        Path(work.video_path).write_bytes(b"video")
        return {"video_bytes": 5}


def render_job(out, tmp_path, *, prompts=PROMPTS, path=None, executor=None, options=None):
    if path is None:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(f'{{"text_prompt": "{prompt}", "seed": 7}}\n' for prompt in prompts), encoding="utf-8")
    job = JobSpec.from_options(
        prompts=path, ckpt_dir=tmp_path, output_dir=out, sample_steps=4, dtype="float32", device="cpu"
    )
    manifest = build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32")
    executor = executor or FakeExecutor(workers=("w0", "w1"))
    render(
        PreparedJob(job=job, manifest=manifest),
        options=options or RenderOptions(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )
    return manifest.table.column("clip_id").to_pylist()


def explain(out, *options, exit_code=0):
    result = CliRunner().invoke(app, ["explain", str(out), *options])
    assert result.exit_code == exit_code, result.output
    return result


def explain_json(out, *options, exit_code=0):
    return json.loads(explain(out, *options, "--json", exit_code=exit_code).stdout)


def troubled_executor():
    """Workers that die, fail, run out of memory, lose latents and find the disk full."""
    dogs, foxes = itertools.count(), itertools.count()

    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items == (0,):
            return (DIES, Fails(kind=FailureKind.OUT_OF_MEMORY, message="out of memory"), None)[min(next(foxes), 2)]
        if task.stage is Stage.DECODE and task.items == (1,):
            broken = Fails(kind=FailureKind.CANCELLED, message="latents: broken", cause=FailureCause.LATENTS)
            full = Fails(kind=FailureKind.CANCELLED, message="disk full", cause=FailureCause.STORAGE)
            return (broken, full, None)[min(next(dogs), 2)]
        if task.stage is Stage.DENOISE and task.items == (2,):
            return Fails(kind=FailureKind.BAD_INPUT, message="it cannot be")
        return None

    return FakeExecutor(workers=("w0", "w1"), script=script, replaces=True)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def troubled(out, tmp_path):
    """A job in which almost everything that can happen did; the ids of its clips."""
    storage = StoragePauseConfig(write_problem=lambda folder: "")
    options = RenderOptions(driver=DriverConfig(storage=storage))
    return render_job(out, tmp_path, executor=troubled_executor(), options=options)


# -- a clip ------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_clip_has_every_stage_with_its_worker_reason_and_time(out, tmp_path):
    ids = render_job(out, tmp_path)
    life = explain_json(out, "--clip", ids[0])
    assert (life["clip_id"], life["status"], life["error"]) == (ids[0], "done", "")
    assert [task["stage"] for task in life["tasks"]] == ["encode_text", "denoise", "decode"]
    assert [task["clip_id"] for task in life["tasks"]] == ["", ids[0], ids[0]]
    for task in life["tasks"]:
        assert task["worker"] in ("w0", "w1")
        assert (task["device"], task["node"], task["outcome"], task["seconds"]) == ("cpu", "host", "done", 1.0)
        assert task["reason"]
    text = explain(out, "--clip", ids[0]).stdout
    assert all(word in text for word in (ids[0], "encode_text", "denoise", "decode", "because", "cpu on host", "done"))


def test_the_life_of_a_clip_has_its_failures_and_attempts(out, troubled):
    life = explain_json(out, "--clip", troubled[0])
    denoises = [task for task in life["tasks"] if task["stage"] == "denoise"]
    assert [task["outcome"] for task in denoises] == ["worker lost", "failed", "done"]
    assert denoises[1]["failure"] == "out_of_memory"
    assert [task["attempt"] for task in denoises] == [1, 2, 3]
    again = [task["stage"] for task in explain_json(out, "--clip", troubled[1])["tasks"]]
    assert again.count("denoise") == 2
    assert explain_json(out, "--clip", troubled[2])["error"] == "it cannot be"
    assert "it cannot be" in explain(out, "--clip", troubled[2]).stdout


def test_the_life_of_a_clip_has_the_notes_on_it(out, tmp_path):
    class NotingExecutor(WritingExecutor):
        def notes(self, work):
            return (f"clip {work.clip_id} is silent throughout",) if isinstance(work, Decode) else ()

    first, second, _ = render_job(out, tmp_path, executor=NotingExecutor())
    assert explain_json(out, "--clip", first)["notes"] == [f"clip {first} is silent throughout"]
    assert f"note: clip {second} is silent throughout" in explain(out, "--clip", second).stdout


def test_the_beginning_of_an_id_is_enough(out, tmp_path):
    ids = render_job(out, tmp_path)
    assert explain_json(out, "--clip", ids[1][:8])["clip_id"] == ids[1]


def test_an_id_that_is_ambiguous_or_unknown_is_refused_with_what_there_is(out, tmp_path):
    ids = render_job(out, tmp_path)
    assert all(clip_id in explain(out, "--clip", "", exit_code=BAD_INPUT).output.replace("\n", "") for clip_id in ids)
    close = ids[1][:10] + "x"
    assert ids[1] in explain(out, "--clip", close, exit_code=BAD_INPUT).output.replace("\n", "")


def test_a_clip_is_found_in_the_last_run_that_rendered_it(out, tmp_path):
    first = render_job(out, tmp_path, prompts=("a fox",), executor=WritingExecutor())
    second = render_job(out, tmp_path, prompts=("a fox", "a dog"))
    assert explain_json(out, "--clip", first[0])["run"] == 1
    assert explain_json(out, "--clip", second[1])["run"] == 2


# -- a worker ----------------------------------------------------------------------------------------------------------


def test_the_life_of_a_worker_has_its_slot_its_tasks_and_its_end(out, troubled):
    lost = explain_json(out, "--worker", "w0") if "w0.1" in worker_names(out) else explain_json(out, "--worker", "w1")
    assert lost["slot"] == lost["worker"]
    assert lost["lost_s"] is not None
    assert lost["tasks"][-1]["outcome"] == "worker lost"
    successor = explain_json(out, "--worker", f"{lost['worker']}.1")
    assert (successor["slot"], successor["lost_s"], successor["device"]) == (lost["worker"], None, "cpu")
    assert "joined" in explain(out, "--worker", lost["worker"]).stdout


def worker_names(out):
    return [worker["worker"] for worker in explain_json(out)["workers"]]


def test_an_unknown_worker_is_refused_with_the_closest_name(out, tmp_path):
    render_job(out, tmp_path)
    assert "w1" in explain(out, "--worker", "w12", exit_code=BAD_INPUT).output


# -- runs --------------------------------------------------------------------------------------------------------------


def test_without_an_option_the_last_run_is_summarised(out, troubled):
    glance = explain_json(out)
    assert sum(worker["work"]["items"].get(Stage.DECODE, 0) for worker in glance["workers"]) == 2
    assert (glance["run"], glance["runs"], glance["clips"], glance["done"], glance["failed"]) == (1, 1, 3, 2, 1)
    assert not glance["was_killed"]
    assert glance["failures"] == {"it cannot be": 1, "out of memory": 1}
    assert sum(glance["reasons"]["decode"].values()) == 4
    assert any("disk full" in message for message in glance["messages"])
    text = explain(out).stdout
    assert all(word in text for word in ("run 1 of 1", "2 done, 1 failed", "it cannot be", "w0"))


def test_an_earlier_run_is_chosen_by_its_number(out, tmp_path):
    render_job(out, tmp_path, prompts=("a fox",), executor=WritingExecutor())
    render_job(out, tmp_path, prompts=("a fox", "a dog", "a cat"))
    assert explain_json(out)["clips"] == 2
    assert explain_json(out, "--run", "1")["clips"] == 1
    assert "1 to 2" in explain(out, "--run", "3", exit_code=BAD_INPUT).output


def test_the_record_of_a_killed_run_is_explained_as_far_as_it_goes(out, troubled):
    path = out / "events.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    glance = explain_json(out)
    assert glance["was_killed"]
    assert glance["done"] < 2
    assert explain_json(out, "--verify")["divergence"] is None


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_replay_of_a_troubled_job_decides_the_same(out, troubled):
    replayed = explain_json(out, "--verify")
    assert replayed["divergence"] is None
    assert replayed["actions"] > 15
    assert "all the same" in explain(out, "--verify").stdout


def test_a_record_whose_decisions_differ_is_told_apart(out, tmp_path):
    render_job(out, tmp_path)
    path = out / "events.jsonl"
    path.write_text(path.read_text().replace('"type":"Finish","clip":1', '"type":"Finish","clip":2', 1))
    replayed = explain_json(out, "--verify", exit_code=FAILED)
    assert replayed["divergence"]["recorded"] != replayed["divergence"]["replayed"]
    assert "differs" in explain(out, "--verify", exit_code=FAILED).stdout


# -- what cannot be explained ------------------------------------------------------------------------------------------


def test_a_folder_without_a_record_is_refused(tmp_path):
    assert "events.jsonl" in explain(tmp_path, exit_code=BAD_INPUT).output.replace("\n", "")


def test_two_questions_at_once_are_refused(out, tmp_path):
    render_job(out, tmp_path)
    explain(out, "--clip", "a", "--worker", "w0", exit_code=BAD_INPUT)


@pytest.mark.s3
def test_the_record_of_a_job_in_a_store_is_explained(s3_bucket, tmp_path):
    out = to_location(s3_bucket) / "out"
    ids = render_job(out, tmp_path)
    assert explain_json(out, "--clip", ids[0])["status"] == "done"
    assert explain_json(out, "--verify")["divergence"] is None


def test_a_run_that_finds_nothing_to_render_is_recorded_too(out, tmp_path):
    render_job(out, tmp_path, executor=WritingExecutor(workers=("w0",)))
    ids = render_job(out, tmp_path, executor=WritingExecutor(workers=("w0",)))
    summary = explain_json(out)
    assert (summary["run"], summary["runs"], summary["clips"], summary["done"]) == (2, 2, 0, 0)
    assert explain_json(out, "--clip", ids[0])["run"] == 1
    assert explain_json(out, "--verify")["divergence"] is None


def test_a_header_that_was_cut_off_hides_no_earlier_run(out, tmp_path):
    ids = render_job(out, tmp_path)
    record = out / "events.jsonl"
    record.write_bytes(record.read_bytes() + record.read_bytes()[:200])
    assert explain_json(out)["run"] == 1
    assert explain_json(out, "--clip", ids[0])["clip_id"] == ids[0]
    assert "header" in explain(out, "--run", "2", exit_code=BAD_INPUT).stderr


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "afile").write_text("x", encoding="utf-8")
    assert "unreadable" in explain(tmp_path / "afile", exit_code=BAD_INPUT).stderr


# -- what the list says of a clip ------------------------------------------------------------------------------------


def test_the_life_of_a_clip_begins_with_its_row_and_its_own_columns(out, tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('text_prompt,seed,meta_shot,meta_none\n"a\n\nfox",7,s1,\na dog,7,"[b]s2",\n', encoding="utf-8")
    _, dog = render_job(out, tmp_path, path=path)
    assert explain_json(out, "--clip", dog)["listed"] == {
        "row": 2,
        "line": 5,
        "repeat": 0,
        "meta": {"meta_shot": "[b]s2"},
    }
    assert "row 2 (line 5), meta_shot [b]s2" in explain(out, "--clip", dog).stdout
    (out / "manifest.parquet").unlink()
    assert explain_json(out, "--clip", dog)["listed"] is None
