"""`auto`: backends are benchmarked, checked and cached; a plan is what runs."""

import dataclasses
import sys

import pytest
import torch

from ovi import OviPipeline
from ovi.attention import AttentionBackend, AttentionShape, Site
from ovi.attention.autotune import TrialCache, choose, plan_attention
from ovi.attention.backends import BACKENDS, SdpaFlash
from ovi.attention.benchmark import EXACT_ERROR, Trial, measure
from ovi.attention.subprocess_trial import measure_in_subprocess
from ovi.attention.target import AttentionTarget
from ovi.config import SamplingParams
from ovi.errors import AttentionUnavailable
from ovi.types import PromptEmbeds

FLASH, MATH, SAGE = AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_MATH, AttentionBackend.SAGE
CPU = AttentionTarget.of(torch.device("cpu"), torch.float32)
SHAPE = AttentionShape(query_length=96, key_length=40, num_heads=2, head_dim=16)
SHAPES = dict.fromkeys(Site, SHAPE) | {Site.VIDEO_SELF: dataclasses.replace(SHAPE, key_length=96)}


class Broken(SdpaFlash):
    """A backend whose output goes through `fault`, which may change it or raise."""

    def __init__(self, fault, *, exact=True, version="1"):
        self.fault = fault
        self.exact = exact
        self._version = version

    def version(self):
        return self._version

    def run(self, q, k, v):
        return self.fault(super().run(q, k, v))


class Recording:
    """A backend that adds its name to `ran` whenever it runs."""

    def __init__(self, real, name, ran):
        self._real, self._name, self._ran = real, name, ran

    def __getattr__(self, attribute):
        return getattr(self._real, attribute)

    def run(self, q, k, v):
        self._ran.add(self._name)
        return self._real.run(q, k, v)


@pytest.fixture
def cache(tmp_path):
    return TrialCache(tmp_path / "cache" / "attention.json")


def runner(times, calls=None):
    """A fake `run`: each backend has the given seconds, or fails with the given reason. `calls` collects the jobs."""

    def run(target, jobs):
        if calls is not None:
            calls.extend(jobs)
        trials = []
        for backend, _ in jobs:
            result = times[backend]
            trials.append(
                Trial(backend=backend, reason=result)
                if isinstance(result, str)
                else Trial(backend=backend, seconds=result, error=1e-6)
            )
        return trials

    return run


def replace_backend(monkeypatch, fault, name=FLASH, **options):
    """Register a faulty backend in place of a real one."""
    monkeypatch.setitem(BACKENDS, name, Broken(fault, **options))


def unchanged(out):
    return out


def raises(message):
    def fault(out):
        raise RuntimeError(message)

    return fault


def test_a_trial_has_a_time_and_a_small_error():
    trial = measure(FLASH, CPU, SHAPE)
    assert trial.seconds > 0
    assert 0 <= trial.error < 1e-5
    assert trial.reason == ""


def test_bf16_is_checked_against_float32():
    trial = measure(FLASH, dataclasses.replace(CPU, dtype=torch.bfloat16), SHAPE)
    assert 1e-4 < trial.error < 1e-2
    assert trial.seconds is not None


@pytest.mark.parametrize("fault", [lambda out: out * 1.01, lambda out: out * float("nan")])
def test_an_inaccurate_backend_is_unusable_and_its_error_is_kept(monkeypatch, fault):
    replace_backend(monkeypatch, fault)
    trial = measure(FLASH, CPU, SHAPE)
    assert trial.seconds is None
    assert not trial.error < EXACT_ERROR[torch.float32]  # also true for NaN
    assert trial.reason


def test_a_backend_that_raises_is_unusable_and_its_message_is_kept(monkeypatch):
    replace_backend(monkeypatch, raises("no kernel image"))
    trial = measure(FLASH, CPU, SHAPE)
    assert (trial.seconds, trial.error) == (None, None)
    assert trial.reason == "RuntimeError: no kernel image"


def test_the_fastest_backend_is_chosen_at_each_site(cache):
    def run(target, jobs):
        fast = {96: FLASH, 40: MATH}
        return [
            Trial(backend=backend, seconds=1.0 if fast[shape.key_length] is backend else 2.0, error=0.0)
            for backend, shape in jobs
        ]

    choices = choose(CPU, SHAPES, cache=cache, run=run)
    assert choices[Site.VIDEO_SELF].chosen is FLASH
    assert choices[Site.AUDIO_SELF].chosen is MATH


def test_an_unusable_backend_is_not_chosen_and_its_reason_is_kept(cache):
    choice = choose(CPU, SHAPES, cache=cache, run=runner({FLASH: "it hung", MATH: 5.0}))[Site.VIDEO_SELF]
    assert choice.chosen is MATH
    reasons = {trial.backend: trial.reason for trial in choice.trials}
    assert reasons[FLASH] == "it hung"
    flash_3 = BACKENDS[AttentionBackend.FLASH_ATTN_3]
    assert reasons[AttentionBackend.FLASH_ATTN_3] == flash_3.unsupported_reason(CPU, choice.shape) != ""


def test_no_backend_is_measured_twice(cache):
    calls = []
    first = choose(CPU, SHAPES, cache=cache, run=runner({FLASH: 1.0, MATH: "broken"}, calls))
    assert len(calls) == 4  # two backends on two shapes
    assert choose(CPU, SHAPES, cache=cache, run=runner({}, calls)) == first
    assert len(calls) == 4


@pytest.mark.parametrize(
    "change", [{"driver": "999"}, {"name": "another"}, {"dtype": torch.bfloat16}, {"architecture": "sm90"}]
)
def test_another_device_driver_or_dtype_is_measured_again(cache, change):
    run = runner({FLASH: 1.0, MATH: 2.0})
    choose(CPU, SHAPES, cache=cache, run=run)
    calls = []
    choose(dataclasses.replace(CPU, **change), SHAPES, cache=cache, run=runner({FLASH: 1.0, MATH: 2.0}, calls))
    assert len(calls) == 4


def test_another_version_of_a_backend_is_measured_again(cache, monkeypatch):
    choose(CPU, SHAPES, cache=cache, run=runner({FLASH: 1.0, MATH: 2.0}))
    replace_backend(monkeypatch, unchanged, MATH, version="999")
    calls = []
    choose(CPU, SHAPES, cache=cache, run=runner({FLASH: 1.0, MATH: 2.0}, calls))
    assert {backend for backend, _ in calls} == {MATH}


def test_a_cache_that_is_corrupt_or_not_writable_is_ignored(cache, tmp_path):
    cache.path.parent.mkdir()
    cache.path.write_text("{not json")
    assert choose(CPU, SHAPES, cache=cache, run=runner({FLASH: 1.0, MATH: 2.0}))[Site.VIDEO_SELF].chosen is FLASH
    (tmp_path / "file").write_text("")
    nowhere = TrialCache(tmp_path / "file" / "attention.json")
    assert choose(CPU, SHAPES, cache=nowhere, run=runner({FLASH: 1.0, MATH: 2.0}))[Site.VIDEO_SELF].chosen is FLASH


def test_an_inexact_backend_is_used_only_if_it_is_allowed(cache, monkeypatch):
    replace_backend(monkeypatch, unchanged, SAGE, exact=False)
    times = {FLASH: 2.0, MATH: 3.0, SAGE: 1.0}
    assert choose(CPU, SHAPES, cache=cache, run=runner(times))[Site.VIDEO_SELF].chosen is FLASH
    allowed = choose(CPU, SHAPES, cache=cache, run=runner(times), allow_inexact=True)
    assert allowed[Site.VIDEO_SELF].chosen is SAGE


def test_a_site_without_a_usable_backend_is_an_error_with_every_reason(cache):
    with pytest.raises(AttentionUnavailable, match=r"sdpa_flash: broken; .* sdpa_math: broken too"):
        choose(CPU, SHAPES, cache=cache, run=runner({FLASH: "broken", MATH: "broken too"}))


# -- requested backends ------------------------------------------------------------------------------------------------


def test_a_backend_that_cannot_run_is_refused_with_the_reason_and_the_usable_ones():
    with pytest.raises(AttentionUnavailable) as raised:
        plan_attention(AttentionBackend.FLASH_ATTN_3, CPU, SHAPES)
    assert raised.value.reason == BACKENDS[AttentionBackend.FLASH_ATTN_3].unsupported_reason(CPU, SHAPE) != ""
    assert raised.value.usable == ("auto", "sdpa", "sdpa_flash", "sdpa_math")
    assert ", ".join(raised.value.usable) in str(raised.value)


def test_sdpa_is_resolved_to_the_kernel_that_runs():
    assert str(plan_attention(AttentionBackend.SDPA, CPU, SHAPES)) == "sdpa_flash"


@pytest.mark.parametrize("backend", [AttentionBackend.AUTO, MATH])
def test_a_pipeline_runs_the_backends_of_its_plan(tiny_dir, tmp_path, monkeypatch, backend):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe = OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=torch.float32, attention_backend=backend)
    rows = torch.zeros(2, 24)
    embeds = PromptEmbeds(positive=rows, video_negative=rows, audio_negative=rows)
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=1)
    ran = set()
    for name, real in dict(BACKENDS).items():
        monkeypatch.setitem(BACKENDS, name, Recording(real, name, ran))
    latents = pipe.denoise(embeds, params)
    ran.clear()
    pipe.denoise(embeds, params)
    plan = pipe.attention_plan(latents.video.shape, latents.audio.shape[0])
    assert {getattr(plan, site) for site in Site} == ran
    assert (tmp_path / "ovi-ray" / "attention.json").exists() == (backend is AttentionBackend.AUTO)


# -- trials in a subprocess --------------------------------------------------------------------------------------------


def fake_child(tmp_path, body):
    script = tmp_path / "child.py"
    script.write_text(
        "import json, sys, time, os\n"
        "for backend, _ in json.loads(sys.argv[-1])['jobs']:\n"
        f"    {body}\n"
        "    print(json.dumps({'backend': backend, 'seconds': 1.0, 'error': 0.0, 'reason': ''}), flush=True)\n"
    )
    return [sys.executable, "-I", "-S", str(script)]  # isolated, so that it starts at once on a busy machine


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("backend == 'sdpa_flash' and time.sleep(86_400)", "it hung"),
        ("backend == 'sdpa_flash' and os.kill(os.getpid(), 11)", "exit code -11"),
    ],
)
def test_a_backend_that_hangs_or_crashes_is_unusable_and_the_others_are_tried(tmp_path, body, reason):
    jobs = [(backend, SHAPE) for backend in (MATH, FLASH, SAGE)]
    trials = measure_in_subprocess(CPU, jobs, timeout_s=5.0, command=fake_child(tmp_path, body))
    assert [trial.backend for trial in trials] == [MATH, FLASH, SAGE]
    assert [trial.seconds is None for trial in trials] == [False, True, False]
    assert reason in trials[1].reason


def test_a_trial_in_a_subprocess_is_like_one_in_this_process():
    (trial,) = measure_in_subprocess(CPU, [(FLASH, SHAPE)])
    assert trial.error == pytest.approx(measure(FLASH, CPU, SHAPE).error, rel=0.5)
    assert trial.seconds > 0
