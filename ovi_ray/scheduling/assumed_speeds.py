"""Speeds that devices are assumed to have before they are measured: a share of the peak that its vendor publishes.

Right within a factor of two or three, which is enough to begin with: without it, a card of a tenth of the speed gets as many
clips as the fastest one until it has been measured.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from ovi.config import Component
from ovi.stages import STAGES, StageSpec
from ovi_ray.scheduling.device_profile import StageRates

_PEAK_TFLOPS: Mapping[str, float] = MappingProxyType(
    {
        # Matrix products in bfloat16 (float16 where there is none), dense, accumulated in float32. NVIDIA: data sheets of the
        # products; GeForce and RTX: white papers of the Ampere, Ada and Blackwell architectures.
        "b300": 2250,
        "gb300": 2500,
        "b200": 2250,
        "gb200": 2500,
        "h200": 989,
        "h200 nvl": 835,
        "h100": 989,
        "h100 pcie": 756,
        "h100 nvl": 835,
        "gh200": 989,
        "h800": 989,
        "h20": 148,
        "a100": 312,
        "a800": 312,
        "a40": 150,
        "a30": 165,
        "a10": 125,
        "a10g": 70,
        "l40s": 362,
        "l40": 181,
        "l20": 120,
        "l4": 121,
        "v100": 125,
        "t4": 65,
        "rtx pro 6000": 503,
        "rtx 6000 ada": 364,
        "rtx 5000 ada": 261,
        "rtx a6000": 155,
        "rtx a5000": 111,
        "rtx 5090": 209,
        "rtx 5080": 113,
        "rtx 5070": 62,
        "rtx 4090": 165,
        "rtx 4080": 97,
        "rtx 4070": 58,
        "rtx 4060": 30,
        "rtx 3090": 71,
        "rtx 3080": 60,
        "rtx 3070": 41,
        "rtx 3060": 26,
        # AMD: data sheets of the products. An MI250 is two devices; each is counted with half.
        "mi355x": 2516,
        "mi350x": 2307,
        "mi325x": 1307,
        "mi300x": 1307,
        "mi300a": 980,
        "mi250x": 191,
        "mi250": 181,
        "mi210": 181,
        "mi100": 92,
        "rx 9070 xt": 195,
        "rx 7900 xtx": 123,
        "rx 7900 xt": 103,
        "rx 7900 gre": 92,
        "pro w7900": 122,
        "8060s": 59,
        # where the name is not known
        "sm100": 2250,
        "sm103": 2250,
        "sm120": 209,
        "sm90": 989,
        "sm89": 165,
        "sm86": 71,
        "sm80": 312,
        "sm75": 65,
        "sm70": 125,
        "gfx950": 2307,
        "gfx942": 1307,
        "gfx90a": 181,
        "gfx908": 92,
        "gfx1201": 195,
        "gfx1100": 123,
        "gfx1151": 59,
    }
)
_TYPICAL_PEAK_TFLOPS = 450.0
"""Of the device that the rates of the table of stages are assumed for. Shares of the peak: a third for denoise (83 s are
published for a clip of 720x720 on a card with a peak of 989 TFLOP/s, decode included), less elsewhere."""
_CPU_TFLOPS = 0.05
_AMD_SHARE = 0.7
"""Assumed: attention reaches less of the peak through AOTriton."""
_AMD_CONVOLUTION_SHARE = 0.25
"""Assumed: 3-D convolutions reach far less of it through MIOpen."""


def assumed_rates(device: str, vendor: str, architecture: str) -> StageRates:
    """The speed of a device by its name ("NVIDIA L40S"), else by its vendor ("nvidia") and architecture ("sm89")."""
    if vendor == "cpu":
        return StageRates(**{stage.value: _CPU_TFLOPS for stage in STAGES})
    scale = peak_tflops(device, architecture) / _TYPICAL_PEAK_TFLOPS
    return StageRates(
        **{stage.value: scale * spec.assumed_tflops * _share(spec, vendor) for stage, spec in STAGES.items()}
    )


def _share(spec: StageSpec, vendor: str) -> float:
    if vendor != "amd":
        return 1.0
    return _AMD_CONVOLUTION_SHARE if spec.main_component is Component.VIDEO_VAE else _AMD_SHARE


def peak_tflops(device: str, architecture: str) -> float:
    """The published peak of the entry that has the most words of the device's name, else of its architecture."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    named = [name for name in _PEAK_TFLOPS if words >= set(name.split())]
    best = max(named, key=lambda name: len(name.split()), default=architecture.split(":")[0])
    return _PEAK_TFLOPS.get(best, _TYPICAL_PEAK_TFLOPS)
