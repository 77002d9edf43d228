"""The choice of fused kernels follows their trials, and a trial in a child may go wrong in every way."""

import json
import sys

import pytest
import torch

from ovi import OviPipeline
from ovi.attention.target import AttentionTarget
from ovi.config import Architecture, Component
from ovi.kernels import FusedKernel, KernelMode, KernelPlan
from ovi.kernels.choice import choose_kernels
from ovi.kernels.trial import KernelShape, KernelTrial, answer, measure, measure_in_child
from ovi.models.fusion import FusionTransformer
from ovi.models.video_vae import VideoVAE

RESIDUAL_NORM, NORM_ROTATE, LINEAR_GELU, CHANNELS_LAST, NORM_SILU = FusedKernel
AS_EAGER = [RESIDUAL_NORM, NORM_ROTATE, CHANNELS_LAST, NORM_SILU]
SHAPE = KernelShape.of(Architecture())
WRONG = {"error": 0.5, "reason": "it deviates"}
TAKEN = {"reason": "busy or unavailable", "transient": True}


def target(vendor="nvidia", driver="1"):
    return AttentionTarget(
        device="cuda", dtype=torch.bfloat16, vendor=vendor, architecture="x", memory_bytes=10**10, driver=driver
    )


def runner(results, calls):
    """A fake `run`: the fields of each kernel's trial."""

    def run(kernels, device, dtype, shape):
        calls.extend(kernels)
        right = {"seconds": 1.0, "eager_seconds": 2.0, "error": 1e-3}
        return [KernelTrial(kernel=kernel, **results.get(kernel, right)) for kernel in kernels]

    return run


@pytest.mark.parametrize(
    ("mode", "vendor", "results", "chosen", "tried"),
    [
        (KernelMode.AUTO, "nvidia", {}, AS_EAGER, AS_EAGER),
        (KernelMode.AUTO, "amd", {RESIDUAL_NORM: WRONG}, [NORM_ROTATE, CHANNELS_LAST, NORM_SILU], AS_EAGER),
        (KernelMode.FUSED, "nvidia", {}, list(FusedKernel), list(FusedKernel)),
        (KernelMode.FUSED, "amd", dict.fromkeys(FusedKernel, TAKEN), [], list(FusedKernel)),
        (KernelMode.EAGER, "nvidia", {}, [], []),
        (KernelMode.FUSED, "cpu", {}, [], []),
    ],
)
def test_the_choice_follows_the_mode_and_the_trials(tmp_path, mode, vendor, results, chosen, tried):
    calls = []
    choice = choose_kernels(mode, target(vendor), SHAPE, file=tmp_path / "k.json", run=runner(results, calls))
    assert choice.plan == KernelPlan.of(chosen)
    assert calls == tried == [trial.kernel for trial in choice.trials]


def test_what_holds_is_remembered_for_a_driver_and_what_may_pass_is_tried_again(tmp_path):
    calls, file = [], tmp_path / "k.json"
    for driver in ("1", "1", "2"):
        run = runner({NORM_ROTATE: TAKEN, LINEAR_GELU: WRONG}, calls)
        plan = choose_kernels(KernelMode.FUSED, target(driver=driver), SHAPE, file=file, run=run).plan
        assert plan == KernelPlan(residual_norm=True, channels_last=True, norm_silu=True)
    assert [calls.count(kernel) for kernel in FusedKernel] == [2, 3, 2, 2, 2]
    assert len(json.loads(file.read_text())) == 8


def test_a_trial_of_another_version_is_made_again(tmp_path):
    calls, file = [], tmp_path / "k.json"
    choose_kernels(KernelMode.AUTO, target(), SHAPE, file=file, run=runner({}, calls))
    file.write_text(json.dumps({key: {"other": 1} for key in json.loads(file.read_text())}))
    choose_kernels(KernelMode.AUTO, target(), SHAPE, file=file, run=runner({}, calls))
    assert len(calls) == 8


def test_a_trial_in_a_child_may_crash_hang_and_be_noisy_and_the_others_are_made(tmp_path):
    child, started = tmp_path / "child.py", tmp_path / "started"
    child.write_text(
        "import json, os, sys, time\n"
        "request = json.loads(sys.argv[1])\n"
        f"open({str(started)!r}, 'a').write('x')\n"
        "print('a library prints')\n"
        "for kernel in request['kernels']:\n"
        "    if kernel == 'norm_rotate':\n"
        "        print('no kernel image', file=sys.stderr, flush=True); os.abort()\n"
        "    if kernel == 'channels_last':\n"
        "        time.sleep(600)\n"
        "    print(json.dumps({'kernel': kernel, 'seconds': request['shape']['dim']}), flush=True)\n"
    )
    command = [sys.executable, "-I", "-S", str(child)]

    def run(kernels, timeout_s):
        return measure_in_child(kernels, "cuda", torch.bfloat16, SHAPE, timeout_s=timeout_s, command=command)

    first, crashed, last = run([RESIDUAL_NORM, NORM_ROTATE, LINEAR_GELU], 60.0)
    assert first.seconds == last.seconds == SHAPE.dim
    assert (crashed.transient, crashed.seconds) == (True, None)
    assert "no kernel image" in crashed.reason
    assert started.read_text() == "xx"
    (hung,) = run([CHANNELS_LAST], 0.5)
    assert (hung.transient, hung.seconds) == (True, None)


def test_a_request_is_answered_in_lines_that_the_parent_reads(tmp_path):
    small = KernelShape(tokens=5, dim=48, num_heads=3, ffn_dim=64, channels=40)
    request, reply = tmp_path / "request.json", tmp_path / "reply.json"
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys\nopen({str(request)!r}, 'w').write(sys.argv[1])\nprint(open({str(reply)!r}).read())\n"
    )

    def ask():
        command = [sys.executable, "-I", "-S", str(child)]
        return measure_in_child([LINEAR_GELU], "cpu", torch.float32, small, command=command)[0]

    assert ask().transient  # it has no reply yet
    with reply.open("w") as out:
        answer(json.loads(request.read_text()), out)
    assert ask() == measure(LINEAR_GELU, "cpu", torch.float32, small)


@pytest.mark.parametrize(
    ("kernels", "text"),
    [([], "eager"), (FusedKernel, "residual_norm, norm_rotate, linear_gelu, channels_last, norm_silu")],
)
def test_a_plan_is_named_in_results_by_its_kernels(kernels, text):
    assert str(KernelPlan.of(kernels)) == text


def test_each_model_uses_its_part_of_the_plan_and_a_compiled_one_none(tiny_dir):
    plan = KernelPlan.of(FusedKernel)

    def parts(**options):
        pipe = OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=torch.float32, **options)
        pipe._kernel_plan = plan  # as on a GPU on which each kernel is right and faster
        transformer = pipe._require(Component.TRANSFORMER, FusionTransformer)
        return transformer._kernels, pipe._require(Component.VIDEO_VAE, VideoVAE)._kernels

    assert parts() == (plan.in_transformer, plan.in_decoder)
    assert parts(compile_blocks=True) == (KernelPlan(), plan.in_decoder)
    assert str(plan.in_decoder) == "channels_last, norm_silu"
