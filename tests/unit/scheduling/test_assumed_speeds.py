"""Speeds that devices are assumed to have before they are measured."""

import pytest

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.assumed_speeds import assumed_rates, peak_tflops


@pytest.mark.parametrize(
    ("device", "architecture", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "sm90", 989),
        ("NVIDIA H100 PCIe", "sm90", 756),
        ("NVIDIA A100-SXM4-80GB", "sm80", 312),
        ("NVIDIA L40S", "sm89", 362),
        ("NVIDIA L4", "sm89", 121),
        ("Tesla T4", "sm75", 65),
        ("NVIDIA GeForce RTX 4090", "sm89", 165),
        ("NVIDIA RTX 6000 Ada Generation", "sm89", 364),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "sm120", 503),
        ("AMD Instinct MI300X", "gfx942", 1307),
        ("Radeon 8060S Graphics", "gfx1151", 59),
        ("AMD Radeon Graphics", "gfx942:sramecc+:xnack-", 1307),
    ],
)
def test_the_peak_is_found_by_name_or_else_by_architecture(device, architecture, peak):
    assert peak_tflops(device, architecture) == peak


def test_an_unknown_gpu_is_taken_for_a_typical_one():
    rates = assumed_rates("NVIDIA X9", "nvidia", "sm999")
    assert all(rates.of(stage) == spec.assumed_tflops for stage, spec in STAGES.items())


def test_faster_cards_are_assumed_to_be_faster_at_every_stage():
    slow, fast = assumed_rates("NVIDIA L4", "nvidia", "sm89"), assumed_rates("NVIDIA H100", "nvidia", "sm90")
    assert all(fast.of(stage) > 5 * slow.of(stage) for stage in STAGES)


def test_convolutions_are_assumed_to_reach_less_of_the_peak_on_amd():
    amd, nvidia = assumed_rates("MI300X", "amd", "gfx942"), assumed_rates("H100", "nvidia", "sm90")
    assert amd.of(Stage.DENOISE) > 0.8 * nvidia.of(Stage.DENOISE)
    assert amd.of(Stage.DECODE) < 0.5 * nvidia.of(Stage.DECODE)


def test_a_cpu_is_assumed_to_be_thousands_of_times_slower():
    cpu, gpu = assumed_rates("cpu", "cpu", ""), assumed_rates("NVIDIA H100", "nvidia", "sm90")
    assert all(gpu.of(stage) > 1000 * cpu.of(stage) for stage in STAGES)
