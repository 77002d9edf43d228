"""Recommendations of `ovi-ray doctor` for a device, from its trials and its memory plans."""

from collections.abc import Iterator, Mapping

from ovi.attention import AttentionBackend, Site
from ovi.attention.autotune import Choice
from ovi.attention.backends import BACKENDS
from ovi.attention.target import AOTRITON_EXPERIMENTAL
from ovi.memory.plan import MemoryPlan
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.probe import Device


def advice(
    device: Device, attention: Mapping[Site, Choice], plans: Mapping[WeightFormat, MemoryPlan]
) -> tuple[str, ...]:
    """Recommendations for the user of a device; `plans` holds the weight formats in which a stage fits."""
    return (*_attention_advice(device, attention), *_memory_advice(plans), *_cpu_advice(device))


def _attention_advice(device: Device, attention: Mapping[Site, Choice]) -> Iterator[str]:
    reasons = {trial.backend: trial.reason for choice in attention.values() for trial in choice.trials}
    if device.vendor == "amd" and AOTRITON_EXPERIMENTAL in reasons.get(AttentionBackend.SDPA_AOTRITON, ""):
        yield (
            f"set {AOTRITON_EXPERIMENTAL}=1 before torch is imported: attention then runs on AOTriton, which was measured"
            " about 1,920 times faster than unfused attention on gfx1151 (ovi-ray sets it for its workers on nodes with"
            " the label vendor=amd)"
        )
    flash_3 = AttentionBackend.FLASH_ATTN_3
    if device.architecture == "sm90" and reasons.get(flash_3) and BACKENDS[flash_3].import_error():
        yield "install FlashAttention-3 (flash_attn_interface): it is the fastest exact attention on sm90"


def _memory_advice(plans: Mapping[WeightFormat, MemoryPlan]) -> Iterator[str]:
    denoising = {weights for weights, plan in plans.items() if Stage.DENOISE in plan.stages}
    if denoising == {WeightFormat.QINT8}:
        yield "too small to denoise in bf16; use --qint8, which needs half the memory and changes pixels slightly"
    if not plans:
        yield "too small for any stage of the model"


def _cpu_advice(device: Device) -> Iterator[str]:
    if device.vendor == "cpu":
        yield "suitable for encoding texts and decoding; on a CPU, denoise only small models and tests"
