"""`ovi-ray doctor` on every kind of device, with fake nodes, and on this machine."""

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from ovi.attention import AttentionBackend, Site
from ovi.attention.backends import BACKENDS
from ovi.attention.benchmark import Trial
from ovi.attention.target import AOTRITON_EXPERIMENTAL
from ovi.attention.types import INEXACT
from ovi.convolution.probe import ConvolutionTrial
from ovi.kernels import FusedKernel
from ovi.kernels.trial import KernelTrial
from ovi.stages import Stage
from ovi_ray.cli import app
from ovi_ray.devices.advice import DenoiseTime
from ovi_ray.devices.doctor import Benchmarks, examine_node, weights_plans
from ovi_ray.devices.measured_profile import profile_text
from ovi_ray.devices.node_report import MeasuredDevice, kernel_summary
from ovi_ray.devices.probe import probe
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.scheduling.assumed_speeds import assumed_rates
from tests.support.fake_devices import NODES

TIMES = {
    AttentionBackend.FLASH_ATTN_3: 0.003,
    AttentionBackend.SDPA_CUDNN: 0.004,
    AttentionBackend.SDPA_FLASH: 0.005,
    AttentionBackend.FLASH_ATTN_2: 0.005,
    AttentionBackend.SDPA_AOTRITON: 0.006,
    AttentionBackend.SDPA_EFFICIENT: 0.02,
    AttentionBackend.SDPA_MATH: 11.5,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def kept_trials(tmp_path_factory):
    return tmp_path_factory.mktemp("trials")


@pytest.fixture
def trials_of_this_machine(kept_trials, monkeypatch):
    """Trials of this machine, made once for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept_trials))


def convolve(path, device, shapes):
    return ConvolutionTrial(path=path, seconds=0.01, error=3e-3)


def try_kernels(kernels, device, dtype, shape):
    return [
        KernelTrial(
            kernel=kernel,
            seconds=0.001,
            eager_seconds=0.003,
            error=4e-4,
            reason="it is not faster" if kernel is FusedKernel.NORM_ROTATE else "",
        )
        for kernel in kernels
    ]


FAKES = {"convolution": convolve, "kernels": try_kernels}


@pytest.fixture
def examine(tmp_path):
    """Examine a fake node, with the published model's sizes."""

    def measure(target, jobs):
        return [Trial(backend=backend, seconds=TIMES[backend], error=2e-3) for backend, _ in jobs]

    def run(node, **options):
        benchmarks = Benchmarks(attention=measure, matmul_rate=lambda target, dim: 3e14, **FAKES)
        return examine_node(tmp_path, "720x720_5s", probed=probe(NODES[node]), benchmarks=benchmarks, **options)

    return run


@pytest.mark.parametrize(
    ("node", "chosen", "memory", "denoises"),
    [
        ("h100", "sdpa_cudnn", "resident", True),
        ("rtx4090", "sdpa_cudnn", None, False),
        ("mi300x", "sdpa_aotriton", "resident", True),
        ("cpu", "sdpa_flash", None, None),
    ],
)
def test_each_device_has_its_attention_its_memory_mode_and_its_time(examine, node, chosen, memory, denoises):
    (report,) = examine(node).devices
    assert report.attention[Site.VIDEO_SELF].chosen == chosen
    assert memory is None or report.memory == memory
    if denoises is not None:
        assert (Stage.DENOISE in report.stages) == denoises == (report.clip_s is not None)


def test_a_fast_device_needs_about_the_published_time(examine):
    (report,) = examine("h100").devices
    assert 30 < report.clip_s < 150


@pytest.mark.parametrize(("host_gb", "ways"), [(64.0, {"streamed", "qint8"}), (16.0, {"qint8"})])
def test_a_24_gb_card_is_shown_the_forms_of_the_weights_with_which_it_denoises_and_advised_to_use_one(
    examine, host_gb, ways
):
    found = examine("rtx4090", host_gb=host_gb)
    (report,) = found.devices
    assert {form for form, held in report.weights.items() if Stage.DENOISE in held.stages} == ways
    (line,) = [line for line in report.advice if "denoise" in line]
    assert {form for form in ("streamed", "qint8") if form in line} == ways
    shown = found.as_json()["devices"][0]["weights"]
    whole, streamed = shown["dtype"], shown["streamed"]
    assert streamed["components_gb"]["transformer"] < 4 < 23 < whole["components_gb"]["transformer"]
    assert {**streamed["components_gb"], "transformer": 0} == {**whole["components_gb"], "transformer": 0}
    assert (whole["host_gb"], 23 < streamed["host_gb"] < 40) == (0, True)
    assert whole["denoise_gb"] - streamed["denoise_gb"] > 19
    if "streamed" in ways:
        assert (streamed["memory_mode"], streamed["reason"]) == ("streamed resident", "")
    else:
        assert "of host memory for each device" in streamed["reason"]


@pytest.mark.parametrize("node", ["cpu", "gfx1151"])
def test_no_weights_are_streamed_from_the_memory_that_they_are_in(tmp_path, node):
    device = probe(NODES[node]).devices[0]
    shared = replace(device, shares_host_memory=True)
    assert set(weights_plans(shared, tmp_path, "720x720_5s", 64.0)) == {"dtype", "qint8"}


def test_a_gpu_on_which_torch_wants_a_variable_for_aotriton_is_advised_to_set_it(tmp_path):
    wants = "RuntimeError: No available kernel; Flash attention is experimental. Enable it with {}=1."

    def measure(target, jobs):
        reasons = {AttentionBackend.SDPA_AOTRITON: wants.format(AOTRITON_EXPERIMENTAL)}
        slow = Trial(backend=AttentionBackend.SDPA_MATH, seconds=11.5, error=2e-3)
        return [
            slow if name is slow.backend else Trial(backend=name, reason=reasons.get(name, "no kernel"))
            for name, _ in jobs
        ]

    (report,) = examine_node(
        tmp_path,
        "720x720_5s",
        probed=probe(NODES["gfx1151"]),
        benchmarks=Benchmarks(attention=measure, matmul_rate=lambda target, dim: 1e14, **FAKES),
    ).devices
    assert any(f"{AOTRITON_EXPERIMENTAL}=1" in line for line in report.advice)


def test_gfx1151_runs_aotriton_where_torch_does(examine):
    (report,) = examine("gfx1151").devices
    assert report.attention[Site.VIDEO_SELF].chosen == "sdpa_aotriton"
    assert not any("AOTRITON" in line for line in report.advice)


def test_an_h100_without_flash_attention_3_is_advised_to_install_it(examine):
    (report,) = examine("h100").devices
    (line,) = [line for line in report.advice if "install FlashAttention-3" in line]
    rate = 4 * 15_004**2 * 3072 / TIMES[AttentionBackend.SDPA_CUDNN] / 1e12
    assert f"{rate * report.attention[Site.VIDEO_SELF].shape.score_bytes / (96 * 15_004**2):,.0f} TFLOP/s" in line


def test_the_gain_of_another_attention_counts_its_part_of_the_clip_alone():
    time = DenoiseTime(seconds=100.0, self_attention_s=60.0, self_attention_flops=370e12 * 60)
    assert time.speedup_at(370e12) == pytest.approx(1.0)
    assert time.speedup_at(740e12) == pytest.approx(100 / 70)


def test_why_cudnn_has_no_attention_on_an_h100_is_told(tmp_path):
    def measure(target, jobs):
        return [
            Trial(backend=name, reason="it deviates")
            if name == "sdpa_cudnn"
            else Trial(backend=name, seconds=1.0, error=0.0)
            for name, _ in jobs
        ]

    benchmarks = Benchmarks(attention=measure, matmul_rate=lambda target, dim: 3e14, **FAKES)
    (report,) = examine_node(tmp_path, "720x720_5s", probed=probe(NODES["h100"]), benchmarks=benchmarks).devices
    assert any("cuDNN" in line and "it deviates" in line for line in report.advice)


def test_an_amd_gpu_is_advised_to_have_aiter_measured(examine):
    (report,) = examine("mi300x").devices
    assert any("amd-aiter" in line for line in report.advice)


def test_if_no_attention_works_the_reasons_are_reported(tmp_path):
    def broken(target, jobs):
        return [Trial(backend=backend, reason="it hung") for backend, _ in jobs]

    benchmarks = Benchmarks(attention=broken, matmul_rate=lambda target, dim: 1e14, **FAKES)
    report = examine_node(tmp_path, "720x720_5s", probed=probe(NODES["h100"]), benchmarks=benchmarks)
    assert "sdpa_flash: it hung" in report.devices[0].attention_error
    assert report.devices[0].clip_s is None


@pytest.mark.parametrize("node", sorted(NODES))
def test_every_report_can_be_written_as_json(examine, node):
    report = json.loads(json.dumps(examine(node).as_json()))
    device = report["devices"][0]
    assert {"vendor", "architecture", "memory_gb", "attention", "stages", "denoise_clip_s", "advice"} <= set(device)
    assert set(device["attention"]["video_self"]["backends"]) == set(BACKENDS) - {"sdpa"} - INEXACT
    tried = {} if device["vendor"] == "cpu" else dict.fromkeys(FusedKernel, True) | {FusedKernel.NORM_ROTATE: False}
    assert {kernel: trial["used"] for kernel, trial in device["kernels"].items()} == tried
    assumed = assumed_rates(device["name"], device["vendor"], device["architecture"])
    assert device["assumed_tflops"] == {stage: round(assumed.of(stage), 2) for stage in Stage}


@pytest.mark.usefixtures("trials_of_this_machine")
def test_the_command_prints_a_table_or_json_of_this_machine(tiny_dir):
    runner = CliRunner()
    table = runner.invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir)], env={"COLUMNS": "200"})
    assert table.exit_code == 0, table.output
    assert f"model 720x720_5s, 9 frames of 64x64, sizes of {tiny_dir / 'architecture.json'}" in table.output
    assert "sdpa_flash" in table.output
    assert "it runs on NVIDIA GPUs only" in table.output
    found = runner.invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir), "--json"])
    (node,) = json.loads(found.stdout)["nodes"]
    (device,) = node["devices"]
    assert (node["model"]["name"], node["model"]["frames"]) == ("720x720_5s", 9)
    assert device["attention"]["video_self"]["chosen"] in ("sdpa_flash", "sdpa_math")
    assert device["stages"] == ["encode_text", "encode_first_frame", "denoise", "decode"]


def test_the_command_prints_labels_for_ray():
    assert "vendor=" in CliRunner().invoke(app, ["doctor", "--labels"]).stdout


def test_a_kernel_that_changes_pixels_is_used_by_jobs_that_ask_for_it(examine):
    (report,) = examine("h100").devices
    users = {trial.kernel: kernel_summary(trial)[1] for trial in report.kernels.trials}
    assert users[FusedKernel.RESIDUAL_NORM] == "all"
    assert users[FusedKernel.NORM_ROTATE] == "none"
    assert "--kernels fused" in users[FusedKernel.LINEAR_GELU]


def test_an_unknown_model_is_refused(tiny_dir):
    result = CliRunner().invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir), "--model-name", "720p"])
    assert result.exit_code == 2


# -- measured profiles -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trials_of_this_machine")
def test_a_measured_profile_of_this_machine_is_accepted_by_plan_and_by_a_dry_run(tiny_dir, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    written, prompts = tmp_path / "mine.yaml", tmp_path / "prompts.txt"
    written.write_text(run("doctor", "--ckpt-dir", tiny_dir, "--profile"))
    prompts.write_text("a fox\na dog\n")
    (device,) = read_profile(written).devices.values()
    assert (device.vendor, device.count) == ("cpu", 1)
    assert "assumed" not in written.read_text()
    where = ("--cluster", written, "--ckpt-dir", tiny_dir, "--sample-steps", 2, "--json")
    planned = json.loads(run("plan", prompts, *where))
    would = json.loads(run("render", prompts, *where, "--out", tmp_path / "out", "--dry-run"))
    assert planned["clips"] == would["new"] == 2
    assert planned["eta_s"] == pytest.approx(would["eta_s"])
    assert 0 < planned["eta_s"] < 3600


def test_a_measurement_without_weights_is_refused_with_every_missing_file(tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--ckpt-dir", str(tmp_path), "--profile"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "model.safetensors" in result.stderr
    assert "Wan2.2_VAE.pth" in result.stderr


def test_a_profile_has_a_class_for_each_name_and_tells_what_is_assumed(examine):
    def report(node, rate, **reasons):
        found = examine(node)
        section = {
            "vendor": "nvidia",
            "memory_gb": 70.0 + rate,
            "tflops": dict.fromkeys(map(str, Stage), rate),
            "load_gb_per_s": 3.0,
        }
        measured = MeasuredDevice(section=section, not_measured={Stage(name): why for name, why in reasons.items()})
        first, *others = found.devices
        return replace(found, devices=(replace(first, measured=measured), *others, first))

    text = profile_text([report("h100", 100.0, denoise="it does not fit"), report("h100", 200.0)])
    (device,) = yaml.safe_load(text)["devices"].values()
    assert (device["count"], device["tflops"]["denoise"]) == (4, 100.0)
    assert device["memory_gb"] < 85
    assert "# nvidia-h100-80gb-hbm3: denoise is assumed, not measured: it does not fit" in text.splitlines()
