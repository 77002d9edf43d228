"""Recommendations of `ovi-ray doctor` for a device, from its trials and its memory plans."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ovi.attention import AttentionBackend, Site
from ovi.attention.autotune import Choice
from ovi.attention.backends import BACKENDS
from ovi.attention.target import AOTRITON_EXPERIMENTAL
from ovi.stages import Stage
from ovi_ray.devices.node_report import WeightsPlan
from ovi_ray.devices.probe import GB, Device
from ovi_ray.inputs.job_spec import Weights

FLASH_3_FLOPS = 648e12
"""FLOP/s of FlashAttention-3 on an H100 SXM, forward, with heads of 128 channels and 16k tokens (arXiv 2407.08608)."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DenoiseTime:
    """Expected seconds of a clip's denoise, and the part of them that is the video's self-attention."""

    seconds: float
    self_attention_s: float
    """Measured, with the chosen backend."""
    self_attention_flops: float
    """Counted."""

    def speedup_at(self, flops_per_s: float) -> float:
        """Speed-up of the clip with self-attention at another rate."""
        return self.seconds / (self.seconds - self.self_attention_s + self.self_attention_flops / flops_per_s)


def advice(
    device: Device,
    attention: Mapping[Site, Choice],
    weights: Mapping[Weights, WeightsPlan],
    time: DenoiseTime | None,
) -> tuple[str, ...]:
    """Recommendations for the user of a device, which holds the model as `weights` tells for each form.

    `time` is None where the device cannot denoise.
    """
    return (*_attention_advice(device, attention, time), *_memory_advice(weights), *_cpu_advice(device))


def _attention_advice(device: Device, attention: Mapping[Site, Choice], time: DenoiseTime | None) -> Iterator[str]:
    reasons = {trial.backend: trial.reason for choice in attention.values() for trial in choice.trials}
    if device.vendor == "amd" and AOTRITON_EXPERIMENTAL in reasons.get(AttentionBackend.SDPA_AOTRITON, ""):
        yield (
            f"set {AOTRITON_EXPERIMENTAL}=1 before torch is imported: attention then runs on AOTriton, which was measured"
            " about 1,920 times faster than unfused attention on gfx1151 (ovi-ray sets it for its workers on nodes with"
            " the label vendor=amd)"
        )
    flash_3 = AttentionBackend.FLASH_ATTN_3
    if device.architecture == "sm90" and reasons.get(flash_3) and BACKENDS[flash_3].import_error():
        gain = "" if time is None else f"; {_gain_of_flash_3(attention[Site.VIDEO_SELF].chosen, time)}"
        yield f"install FlashAttention-3 (flash_attn_interface): it is the fastest exact attention on sm90{gain}"
    trials = attention[Site.VIDEO_SELF].trials if attention else ()
    cudnn = next((trial.reason for trial in trials if trial.backend is AttentionBackend.SDPA_CUDNN), "")
    if device.architecture == "sm90" and cudnn:
        yield f"cuDNN's attention, the fastest on sm90 after FlashAttention-3, cannot be used: {cudnn}"
    if device.vendor == "amd" and BACKENDS[AttentionBackend.AITER].import_error():
        yield "AITER (amd-aiter, from source or in AMD's images) may be faster: `auto` measures it where it is installed"


def _gain_of_flash_3(chosen: AttentionBackend, time: DenoiseTime) -> str:
    rate = time.self_attention_flops / time.self_attention_s / 1e12
    gain = time.speedup_at(FLASH_3_FLOPS)
    return (
        f"the video's self-attention runs at {rate:,.0f} TFLOP/s with {chosen} and takes"
        f" {time.self_attention_s / time.seconds:.0%} of a clip's denoise, which at FlashAttention-3's published"
        f" {FLASH_3_FLOPS / 1e12:.0f} TFLOP/s would be {gain:.2f} times as fast"
    )


def _memory_advice(weights: Mapping[Weights, WeightsPlan]) -> Iterator[str]:
    if not any(found.stages for found in weights.values()):
        yield "too small for any stage of the model"
    able = {form for form, found in weights.items() if Stage.DENOISE in found.stages}
    if Weights.DTYPE in able or not able:
        return
    ways = []
    if Weights.STREAMED in able:
        pinned = weights[Weights.STREAMED].demand.pinned / GB
        ways.append(f"--weights streamed, with {pinned:.1f} GB of host memory and the same pixels")
    if Weights.QINT8 in able:
        ways.append("--qint8, which needs half the memory and changes pixels slightly")
    yield f"too small to denoise with bf16 weights on it; use {', or '.join(ways)}"


def _cpu_advice(device: Device) -> Iterator[str]:
    if device.vendor == "cpu":
        yield "suitable for encoding texts and decoding; on a CPU, denoise only small models and tests"
