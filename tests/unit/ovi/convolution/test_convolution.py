"""Convolutions: the ways to run them are equal, a wrong one is found, and the choice follows the trials."""

import json
import os
import sys

import pytest
import torch

from ovi.attention.target import AttentionTarget
from ovi.config import MODEL_SPECS, Architecture
from ovi.convolution.choice import choose_path
from ovi.convolution.paths import ConvolutionPath, conv3d_as_conv2d, convolving
from ovi.convolution.probe import ConvolutionShape, ConvolutionTrial, decoder_shapes, measure, measure_in_child
from ovi.errors import ConvolutionsWrong

DEFAULT, SEARCHED, FAST_FIND, WITHOUT_CUDNN, AS_CONV2D = ConvolutionPath
OFF_ROCM = [DEFAULT, SEARCHED, WITHOUT_CUDNN, AS_CONV2D]
VIDEO = ConvolutionShape(input=(1, 6, 6, 20, 21), weight=(5, 6, 3, 3, 3), padding=(0, 1, 1), dtype="float32")
AUDIO = ConvolutionShape(input=(1, 6, 50), weight=(5, 6, 11), padding=(5,), dtype="float32")
WRONG = {"error": 0.5, "reason": "wrong"}
TAKEN = {"reason": "busy or unavailable", "transient": True}


def gpu(vendor):
    return AttentionTarget(
        device="cuda", dtype=torch.bfloat16, vendor=vendor, architecture="x", memory_bytes=10**10, name=f"{vendor} card"
    )


def runner(results, calls):
    """A fake `run`: for each way its seconds, or the fields of a failed trial."""

    def run(path, device, shapes):
        calls.append(path)
        result = results.get(path, 1.0)
        fields = result if isinstance(result, dict) else {"seconds": result, "error": 1e-3}
        return ConvolutionTrial(path=path, **fields)

    return run


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": (0, 1, 1)},
        {"padding": 1, "stride": (2, 1, 2)},
        {"stride": 2, "dilation": (2, 1, 1)},
        {"groups": 2},
    ],
)
def test_a_3d_convolution_is_a_sum_of_2d_ones(options):
    x, bias = torch.randn(2, 4, 7, 9, 8), torch.randn(6)
    weight = torch.randn(6, 4 // options.get("groups", 1), 3, 3, 3)
    expected = torch.conv3d(x, weight, bias, **options)
    torch.testing.assert_close(conv3d_as_conv2d(x, weight, bias, **options), expected, rtol=1e-4, atol=1e-4)
    with convolving(AS_CONV2D):
        through_module = torch.nn.functional.conv3d(x, weight, bias, **options)
    torch.testing.assert_close(through_module, expected, rtol=1e-4, atol=1e-4)


def test_the_settings_of_the_process_are_restored():
    before = (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark)
    for path in ConvolutionPath:
        with pytest.raises(KeyError), convolving(path):
            raise KeyError
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("path", ConvolutionPath)
def test_every_way_is_right_on_this_machine(path):
    trial = measure(path, "cpu", [VIDEO, AUDIO])
    assert trial.reason == ""
    assert trial.error < 1e-5
    assert trial.seconds > 0


@pytest.mark.parametrize("place", [(0, 0), (10, 10), (-1, -1)])
def test_a_way_that_is_wrong_at_an_edge_alone_is_found(monkeypatch, place):
    right = torch.conv3d

    def wrong(*args):
        out = right(*args)
        if out.shape[-1] == VIDEO.input[-1]:  # not the reference
            out[..., place[0], place[1]] += 3
        return out

    monkeypatch.setattr(torch, "conv3d", wrong)
    trial = measure(DEFAULT, "cpu", [VIDEO])
    assert trial.seconds is None
    assert trial.error > 1e-2
    assert not trial.transient


def test_a_way_that_runs_out_of_memory_may_pass(monkeypatch):
    def raises(*args):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "conv3d", raises)
    assert measure(DEFAULT, "cpu", [VIDEO]).transient


def test_a_trial_in_a_child_may_crash_and_be_noisy(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys\n"
        "request = json.loads(sys.argv[1])\n"
        "print('MIOpen(HIP): Warning')\n"
        "if request['path'] == 'default':\n"
        "    print('no workspace', file=sys.stderr, flush=True); os.abort()\n"
        "print(json.dumps({'path': request['path'], 'seconds': len(request['shapes'])}))\n"
    )
    command = [sys.executable, "-I", "-S", str(child)]
    crashed, worked = (measure_in_child(path, "cuda", [VIDEO, AUDIO], command=command) for path in (DEFAULT, AS_CONV2D))
    assert crashed.transient
    assert "no workspace" in crashed.reason
    assert worked.seconds == 2


def test_the_shapes_are_those_of_the_published_decoders():
    video, audio = decoder_shapes(Architecture(), MODEL_SPECS["720x720_5s"], torch.bfloat16)
    assert (video.input, video.weight, video.dtype) == ((1, 256, 6, 352, 352), (256, 256, 3, 3, 3), "bfloat16")
    assert (audio.weight, audio.dtype) == ((768, 768, 11), "float32")


@pytest.mark.parametrize(
    ("vendor", "results", "chosen", "tried"),
    [
        ("nvidia", {}, DEFAULT, [DEFAULT]),
        ("nvidia", {DEFAULT: WRONG}, SEARCHED, [DEFAULT, SEARCHED]),
        ("nvidia", {DEFAULT: WRONG, SEARCHED: WRONG, WITHOUT_CUDNN: TAKEN}, AS_CONV2D, OFF_ROCM),
        ("nvidia", dict.fromkeys(ConvolutionPath, TAKEN), DEFAULT, OFF_ROCM),
        ("amd", {DEFAULT: 9.0, AS_CONV2D: 0.5}, AS_CONV2D, list(ConvolutionPath)),
        ("amd", {DEFAULT: 0.5}, DEFAULT, list(ConvolutionPath)),
        ("cpu", {}, DEFAULT, []),
    ],
)
def test_the_choice_follows_the_trials(tmp_path, vendor, results, chosen, tried):
    calls = []
    choice = choose_path(gpu(vendor), [VIDEO], file=tmp_path / "c.json", run=runner(results, calls))
    assert choice.path is chosen
    assert calls == tried == [trial.path for trial in choice.trials]


def test_where_every_way_that_runs_is_wrong_nothing_is_decoded(tmp_path):
    results = dict.fromkeys(ConvolutionPath, WRONG) | {SEARCHED: TAKEN}
    with pytest.raises(ConvolutionsWrong, match="default: wrong"):
        choose_path(gpu("nvidia"), [VIDEO], file=tmp_path / "c.json", run=runner(results, []))


def test_what_holds_is_remembered_and_what_may_pass_is_tried_again(tmp_path):
    calls, file = [], tmp_path / "c.json"
    for _ in range(2):
        choose_path(gpu("amd"), [VIDEO], file=file, run=runner({SEARCHED: TAKEN, WITHOUT_CUDNN: WRONG}, calls))
    assert sorted(calls) == sorted([*ConvolutionPath, SEARCHED])
    assert len(json.loads(file.read_text())) == 4


def test_miopens_own_choice_is_tried_with_its_variable_unless_the_environment_sets_it(tmp_path, monkeypatch):
    with convolving(FAST_FIND):
        assert os.environ["MIOPEN_FIND_MODE"] == "FAST"
    assert "MIOPEN_FIND_MODE" not in os.environ
    monkeypatch.setenv("MIOPEN_FIND_MODE", "NORMAL")
    calls = []
    choose_path(gpu("amd"), [VIDEO], file=tmp_path / "c.json", run=runner({}, calls))
    assert calls == OFF_ROCM
