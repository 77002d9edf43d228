"""`ovi-ray doctor` on every kind of device, and on this machine."""

import json

import pytest
from typer.testing import CliRunner

from ovi.attention import AttentionBackend, Site
from ovi.attention.backends import BACKENDS
from ovi.attention.benchmark import Trial
from ovi.stages import Stage
from ovi_ray.cli import app
from ovi_ray.devices.doctor import Instruments, examine_node
from ovi_ray.devices.probe import probe
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


@pytest.fixture
def examine(tmp_path):
    """Doctor a node that is not there, with the published model's sizes."""

    def measure(target, jobs):
        return [Trial(backend=backend, seconds=TIMES[backend], error=2e-3) for backend, _ in jobs]

    def run(node, **options):
        instruments = Instruments(attention=measure, product_rate=lambda target, dim: 3e14)
        findings = probe(NODES[node])
        return examine_node(tmp_path, "720x720_5s", findings=findings, instruments=instruments, **options)

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
def test_each_device_gets_its_attention_its_mode_and_its_time(examine, node, chosen, memory, denoises):
    (report,) = examine(node).devices
    assert report.attention[Site.VIDEO_SELF].chosen == chosen
    assert memory is None or report.memory == memory
    if denoises is not None:
        assert (Stage.DENOISE in report.stages) == denoises == (report.clip_s is not None)


def test_a_fast_device_takes_about_what_is_published(examine):
    (report,) = examine("h100").devices
    assert 30 < report.clip_s < 150


def test_a_24_gb_card_is_told_of_qint8(examine):
    (report,) = examine("rtx4090").devices
    assert any("with --qint8 it can" in line for line in report.advice)


def test_gfx1151_is_told_the_variable_and_what_it_is_worth(examine, monkeypatch):
    monkeypatch.delenv("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", raising=False)
    (report,) = examine("gfx1151").devices
    (line,) = [line for line in report.advice if "AOTRITON" in line]
    assert "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 before torch starts" in line
    assert "1,920 times faster" in line


def test_with_the_variable_gfx1151_runs_aotriton(examine, monkeypatch):
    monkeypatch.setenv("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1")
    (report,) = examine("gfx1151").devices
    assert report.attention[Site.VIDEO_SELF].chosen == "sdpa_aotriton"
    assert not any("AOTRITON" in line for line in report.advice)


def test_an_h100_without_flash_attention_3_is_told_to_install_it(examine):
    (report,) = examine("h100").devices
    assert any("install FlashAttention-3" in line for line in report.advice)


def test_where_no_attention_works_the_reasons_are_kept(tmp_path):
    def broken(target, jobs):
        return [Trial(backend=backend, reason="it hung") for backend, _ in jobs]

    instruments = Instruments(attention=broken, product_rate=lambda target, dim: 1e14)
    report = examine_node(tmp_path, "720x720_5s", findings=probe(NODES["h100"]), instruments=instruments)
    assert "sdpa_flash: it hung" in report.devices[0].attention_error
    assert report.devices[0].clip_s is None


@pytest.mark.parametrize("node", sorted(NODES))
def test_every_node_is_plain_json(examine, node):
    report = json.loads(json.dumps(examine(node).as_json()))
    (device,) = report["devices"]
    assert {"vendor", "architecture", "memory_gb", "attention", "stages", "denoise_clip_s", "advice"} <= set(device)
    assert set(device["attention"]["video_self"]["backends"]) == set(BACKENDS) - {"sdpa", "sage"}


def test_the_command_prints_a_table_or_json_of_this_machine(tiny_dir):
    runner = CliRunner()
    table = runner.invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir)])
    assert table.exit_code == 0, table.output
    assert "sdpa_flash" in table.output
    assert "it runs on NVIDIA GPUs only" in table.output
    found = runner.invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir), "--json"])
    (device,) = json.loads(found.stdout)["nodes"][0]["devices"]
    assert device["attention"]["video_self"]["chosen"] in ("sdpa_flash", "sdpa_math")
    assert device["stages"] == ["encode_text", "encode_first_frame", "denoise", "decode"]


def test_the_command_prints_labels_for_ray():
    assert "vendor=" in CliRunner().invoke(app, ["doctor", "--labels"]).stdout


def test_an_unknown_model_is_refused(tiny_dir):
    result = CliRunner().invoke(app, ["doctor", "--ckpt-dir", str(tiny_dir), "--model-name", "720p"])
    assert result.exit_code == 2
