"""Requests of a job file beside its clips: retries, kept latents, the environment, and a part of the clips."""

import contextlib
import os

import pytest

from ovi.config import Architecture
from ovi.stages import Stage
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.shard import Shard
from ovi_ray.output.event_log import EVENTS_FILE, recorded_runs
from ovi_ray.output.results import Results
from ovi_ray.preparation import PreparedJob, prepare
from ovi_ray.protocol.messages import Denoise
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.scheduling.config import Pairing
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import to_location
from tests.support.fake_executor import Fails, FakeExecutor
from tests.support.rendered_jobs import render_job, write_rows


@pytest.fixture
def prepared(tiny_dir, tmp_path):
    """A checked job of one prompt with four seeds, changed by the given options."""

    def make(**options):
        given = {"text_prompt": "A fox", "ckpt_dir": tiny_dir, "output_dir": tmp_path / "out", "sweep": ["seed=0-3"]}
        job = JobSpec.from_options(**{**given, **options})
        manifest = build_manifest(job, Architecture.read(tiny_dir), weights=lambda name: name, numerics=job.numerics)
        return PreparedJob(job=job, manifest=manifest)

    return make


def failing(worker, task, tries):
    return Fails(kind=FailureKind.ERROR, message="again and again") if task.stage is Stage.DENOISE else None


@pytest.mark.parametrize(("retries", "attempts"), [(None, 3), (0, 1), (4, 5)])
def test_a_failing_clip_is_tried_again_as_often_as_the_job_says(prepared, retries, attempts):
    executor = FakeExecutor(script=failing)
    job = prepared(sweep=None, retries=retries)
    result = render(
        job,
        options=RenderOptions(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )
    assert (result.failed, len(executor.works(Denoise))) == (1, attempts)


@pytest.mark.parametrize("speculation", [True, False])
def test_a_job_says_whether_idle_devices_run_copies(prepared, tmp_path, speculation):
    executor = FakeExecutor()
    render(
        prepared(sweep=None, speculation=speculation),
        options=RenderOptions(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )
    (run,) = recorded_runs(tmp_path / "out" / EVENTS_FILE)
    assert run.config.speculation.enabled is speculation


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, Pairing.TAIL), ({"pairing": False}, Pairing.OFF), ({"latency": True}, Pairing.ALWAYS)],
)
def test_a_job_says_when_two_devices_share_a_clip(prepared, tmp_path, options, expected):
    executor = FakeExecutor()
    render(
        prepared(sweep=None, **options),
        options=RenderOptions(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )
    (run,) = recorded_runs(tmp_path / "out" / EVENTS_FILE)
    assert run.config.pairing.when is expected


def test_two_devices_for_each_clip_are_refused_where_none_are_to_be_shared(prepared):
    with pytest.raises(InputError) as refused:
        prepared(pairing=False, latency=True)
    assert [problem.field for problem in refused.value.problems] == ["--latency"]


def test_the_environment_of_a_job_is_that_of_its_driver(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("OVI_RAY_TEST_VARIABLE", raising=False)
    job = JobSpec.from_options(
        text_prompt="A fox",
        ckpt_dir=tiny_dir,
        output_dir=tmp_path / "out",
        dtype="float32",
        video_frame_height_width=[64, 64],
        slg_layer=1,
        environment={"OVI_RAY_TEST_VARIABLE": "set"},
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare(job)
    assert os.environ["OVI_RAY_TEST_VARIABLE"] == "set"


def test_the_parts_of_a_job_hold_every_clip_once(prepared):
    whole = prepared()
    parts = [Shard.parse(f"{part}/3").of(whole.manifest).table.column("clip_id").to_pylist() for part in range(3)]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert sorted(clip for part in parts for clip in part) == sorted(whole.manifest.table.column("clip_id").to_pylist())


def test_a_part_may_be_empty(prepared):
    assert len(Shard.parse("9/10").of(prepared().manifest)) == 0


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/3", "a/b", "0/0", "1/2/3"])
def test_what_is_no_part_is_refused(shard):
    with pytest.raises(InputError) as caught:
        Shard.parse(shard)
    assert caught.value.problems[0].field == "--shard"


def test_latents_that_a_run_kept_stay_until_a_run_is_told_to_remove_them(tmp_path):
    out, prompts = to_location(tmp_path / "out"), write_rows(tmp_path, ["a fox"])
    render_job(out, prompts, keep_latents=True)
    (clip_id,) = Results(out).read().column("clip_id").to_pylist()
    latents = out / "latents" / f"{clip_id}.safetensors"
    latents.write_bytes(b"kept")
    render_job(out, prompts)
    render_job(out, write_rows(tmp_path, ["a fox", "a dog"]))
    assert latents.exists()
    render_job(out, prompts, keep_latents=False)
    assert not latents.exists()
    latents.write_bytes(b"left behind by a driver that was killed")
    render_job(out, prompts)
    assert not latents.exists()
