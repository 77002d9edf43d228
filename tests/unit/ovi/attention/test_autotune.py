"""`auto`: backends are benchmarked, checked and cached; a plan is what runs."""

import dataclasses
import itertools
import subprocess
import sys
import warnings

import pytest
import torch

from ovi import OviPipeline
from ovi.attention import AttentionBackend, AttentionShape, Site
from ovi.attention.autotune import TrialCache, choose, plan_attention
from ovi.attention.backends import BACKENDS, SdpaFlash
from ovi.attention.benchmark import EXACT_ERROR, Trial, measure
from ovi.attention.subprocess_trial import measure_in_subprocess
from ovi.attention.target import AttentionTarget
from ovi.attention.types import attention_shapes
from ovi.config import Architecture, SamplingParams
from ovi.errors import AttentionUnavailable
from ovi.geometry import latent_grid, snap_size
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


def last_row(value):
    def fault(out):
        out[:, -1] = value
        return out

    return fault


@pytest.mark.parametrize("length", [300, 1000, 1023])
def test_a_backend_that_is_wrong_in_the_last_row_alone_is_unusable(monkeypatch, length):
    replace_backend(monkeypatch, last_row(0.5))
    trial = measure(FLASH, CPU, dataclasses.replace(SHAPE, query_length=length))
    assert trial.seconds is None
    assert not trial.transient


def test_a_result_that_is_not_finite_is_found_in_every_row(monkeypatch):
    def fault(out):
        out[:, 7] = float("inf")
        return out

    replace_backend(monkeypatch, fault)
    trial = measure(FLASH, CPU, dataclasses.replace(SHAPE, query_length=1000))
    assert trial.seconds is None
    assert "32 of its 32000 results" in trial.reason


@pytest.mark.parametrize(
    ("message", "transient", "spoilt"),
    [
        ("CUDA out of memory. Tried to allocate 43 GB", True, False),
        ("CUDNN_STATUS_ALLOC_FAILED", True, False),
        ("CUDA error: an illegal memory access was encountered", True, True),
        ("HIP error: all CUDA-capable devices are busy or unavailable", True, True),
        ("CUDA error: no kernel image is available for execution on the device", False, True),
        ("No available kernel. Aborting execution.", False, False),
    ],
)
def test_a_failure_that_may_pass_is_told_from_one_that_will_hold(monkeypatch, message, transient, spoilt):
    replace_backend(monkeypatch, raises(message))
    trial = measure(FLASH, CPU, SHAPE)
    assert (trial.transient, trial.spoilt) == (transient, spoilt)


def test_what_torch_warns_of_is_part_of_the_reason(monkeypatch):
    def fault(out):
        warnings.warn(
            "Flash attention on this GPU is experimental. Set X=1. (Triggered internally at a.cpp:1.)", stacklevel=1
        )
        raise RuntimeError("No available kernel")

    replace_backend(monkeypatch, fault)
    reason = measure(FLASH, CPU, SHAPE).reason
    assert reason == "RuntimeError: No available kernel; Flash attention on this GPU is experimental. Set X=1."


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


# -- what is remembered, and what is tried again -----------------------------------------------------------------------

GPU = AttentionTarget(
    device="cuda",
    dtype=torch.bfloat16,
    vendor="nvidia",
    architecture="sm89",
    memory_bytes=24 * 10**9,
    name="NVIDIA GeForce RTX 4090",
)
TORCH = (AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_CUDNN, AttentionBackend.SDPA_EFFICIENT)


def failing(*names, reason="CUDA out of memory", transient=True, calls=None):
    """A fake `run` in which the named backends fail, and every other takes a second."""

    def run(target, jobs):
        if calls is not None:
            calls.extend(jobs)
        return [
            Trial(backend=name, reason=reason, transient=transient)
            if name in names
            else Trial(backend=name, seconds=1.0, error=0.0)
            for name, _ in jobs
        ]

    return run


def test_a_failure_that_may_pass_is_tried_again_by_the_next_process_and_not_by_this_one(cache):
    calls = []
    for _ in range(2):
        choose(GPU, SHAPES, cache=cache, run=failing(FLASH, calls=calls))
    assert [name for name, _ in calls].count(FLASH) == 2  # once for each of two shapes
    later = choose(GPU, SHAPES, cache=TrialCache(cache.path), run=failing(calls=calls))
    assert [name for name, _ in calls].count(FLASH) == 4
    assert {trial.reason for trial in later[Site.VIDEO_SELF].trials if trial.backend is FLASH} == {""}


def test_a_refusal_that_holds_is_not_tried_again_by_another_process(cache):
    choose(GPU, SHAPES, cache=cache, run=failing(FLASH, reason="no kernel image", transient=False))
    calls = []
    choose(GPU, SHAPES, cache=TrialCache(cache.path), run=failing(calls=calls))
    assert calls == []


def test_another_version_of_cudnn_is_measured_again(cache, monkeypatch):
    choose(GPU, SHAPES, cache=cache, run=failing())
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_501)
    calls = []
    choose(GPU, SHAPES, cache=cache, run=failing(calls=calls))
    assert {name for name, _ in calls} == set(TORCH)


def test_where_only_this_process_can_use_the_gpu_torchs_kernels_are_tried_in_it(cache):
    here = []
    choices = choose(
        GPU, SHAPES, cache=cache, run=failing(*TORCH, MATH, reason="busy or unavailable"), run_here=failing(calls=here)
    )
    assert {choice.chosen for choice in choices.values()} <= set(TORCH)
    assert {name for name, _ in here} == set(TORCH)


def test_a_refusal_that_holds_is_not_tried_in_this_process(cache):
    here = []
    run = failing(*TORCH, reason="no kernel image", transient=False)
    choices = choose(GPU, SHAPES, cache=cache, run=run, run_here=failing(calls=here))
    assert {choice.chosen for choice in choices.values()} == {MATH}
    assert here == []


def test_unfused_attention_is_tried_on_a_gpu_only_where_nothing_else_works(cache):
    calls = []
    choice = choose(GPU, SHAPES, cache=cache, run=failing(calls=calls))[Site.VIDEO_SELF]
    assert MATH not in {name for name, _ in calls}
    assert next(trial for trial in choice.trials if trial.backend is MATH).reason
    choose(GPU, SHAPES, cache=TrialCache(cache.path.with_name("other")), run=failing(*TORCH, calls=calls))
    assert MATH in {name for name, _ in calls}


def test_twenty_sizes_of_clips_cost_one_measurement(cache):
    arch, calls = Architecture(), []
    frames = [snap_size(height, width, 720 * 720) for height, width in itertools.product((9, 10, 12, 16), repeat=2)]
    frames += [snap_size(height, 10, 720 * 720) for height in (13, 14, 15, 17, 18, 19, 20)]
    counts = []
    for size in frames:
        shapes = attention_shapes(arch.video, arch.audio, (48, 31, *latent_grid(*size)), 157)
        choose(GPU, shapes, cache=cache, run=failing(calls=calls))
        counts.append(len(calls))
    assert len(set(frames)) >= 12
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


def test_a_bucket_is_measured_with_a_ragged_length():
    shape = dataclasses.replace(SHAPE, query_length=15_004, key_length=512)
    assert (shape.bucket.query_length, shape.bucket.key_length) == (16_383, 512)
    assert shape.bucket.bucket == shape.bucket


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


def test_a_backend_that_crashes_is_not_tried_at_its_other_shapes_and_its_last_words_are_kept(tmp_path):
    crash = "backend == 'sdpa_flash' and (print('what(): bad tile', file=sys.stderr, flush=True), os.abort())"
    shapes = [dataclasses.replace(SHAPE, query_length=length) for length in (10, 20, 30)]
    jobs = [(backend, shape) for shape in shapes for backend in (FLASH, MATH)]
    trials = measure_in_subprocess(CPU, jobs, command=fake_child(tmp_path, crash))
    assert [trial.seconds is None for trial in trials] == [True, False] * 3
    assert all("what(): bad tile" in trial.reason and trial.transient for trial in trials[::2])


@pytest.mark.parametrize("noise", ["[aiter] import", "{}", '{"backend": "sage"}', "1", "null", "[]", ""])
def test_what_a_backend_prints_does_not_break_the_protocol(tmp_path, noise):
    trials = measure_in_subprocess(
        CPU, [(FLASH, SHAPE), (MATH, SHAPE)], command=fake_child(tmp_path, f"print({noise!r})")
    )
    assert [trial.seconds for trial in trials] == [1.0, 1.0]


def test_a_childs_output_is_for_its_answers_alone_and_it_ends_with_its_parent():
    script = (
        "import os, sys, time\n"
        "from ovi.trials import private_output\n"
        "answers = private_output()\n"
        "print('a library', flush=True); os.write(1, b'a kernel')\n"
        "answers.write('an answer\\n'); answers.flush()\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        answer = child.stdout.readline()
        printed, said = child.communicate()  # which closes its input, as the end of this process would
    assert (answer, printed, child.returncode) == ("an answer\n", "", 1)
    assert "a library" in said
    assert "a kernel" in said


def test_a_trial_in_a_subprocess_is_like_one_in_this_process():
    (trial,) = measure_in_subprocess(CPU, [(FLASH, SHAPE)])
    assert trial.error == pytest.approx(measure(FLASH, CPU, SHAPE).error, rel=0.5)
    assert trial.seconds > 0
