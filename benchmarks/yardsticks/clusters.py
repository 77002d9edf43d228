"""Made-up clusters and jobs on which placement is hard, by what is hard about them. All are deterministic."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovi.stages import Stage
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.scheduling.device_profile import INT8_SIZES, DeviceProfile, StageRates
from ovi_ray.scheduling.workload import ClipKind, Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice, virtual_devices
from yardsticks.scenarios import KIND_5S, MIXED_KINDS, Scenario, make_workload

PROFILES = Path(__file__).parents[2] / "cluster" / "profiles"

GPU_80GB = DeviceProfile(
    name="80gb",
    memory_gb=76.0,
    rates=StageRates(encode_text=200, encode_first_frame=120, denoise=325, decode=120),
    load_gb_per_s=3.0,
)
GPU_24GB = DeviceProfile(
    name="24gb",
    memory_gb=22.5,
    sizes=INT8_SIZES,
    rates=StageRates(encode_text=60, encode_first_frame=30, denoise=70, decode=30),
    load_gb_per_s=1.2,
)
CPU = DeviceProfile(
    name="cpu",
    vendor="cpu",
    memory_gb=64.0,
    stages=frozenset({Stage.ENCODE_TEXT, Stage.ENCODE_FIRST_FRAME}),
    rates=StageRates(encode_text=0.05, encode_first_frame=0.05, denoise=0.05, decode=0.05),
)
WITH_IMAGE = dataclasses.replace(KIND_5S, has_image=True)
THREE_MODELS = (MIXED_KINDS[0], MIXED_KINDS[2], MIXED_KINDS[3])


def with_rates(profile: DeviceProfile, name: str, **factors: float) -> DeviceProfile:
    """The profile under another name, with the rates of the named stages multiplied."""
    changed = {stage: profile.rates.of(Stage(stage)) * factor for stage, factor in factors.items()}
    return dataclasses.replace(profile, name=name, rates=dataclasses.replace(profile.rates, **changed))


def devices(*profiles: tuple[DeviceProfile, int]) -> tuple[VirtualDevice, ...]:
    """So many devices of each profile."""
    return tuple(
        VirtualDevice(name=f"{profile.name}-{i}", profile=profile) for profile, count in profiles for i in range(count)
    )


def of_profile(name: str) -> tuple[VirtualDevice, ...]:
    """The devices of a cluster profile of this repository."""
    return tuple(virtual_devices(read_profile(PROFILES / f"{name}.yaml")))


def steps(count: int, kind: ClipKind = KIND_5S) -> ClipKind:
    """The kind with so many steps."""
    return dataclasses.replace(kind, sample_steps=count)


# --- what is hard


def declared_alike(here: Sequence[VirtualDevice]) -> tuple[VirtualDevice, ...]:
    """Every device is declared with the same rates, and is in truth what it was declared."""
    alike = StageRates(**{stage.value: 150.0 for stage in Stage})
    return tuple(
        dataclasses.replace(d, profile=dataclasses.replace(d.profile, rates=alike, load_gb_per_s=2.0), actual=d.profile)
        for d in here
    )


def declared_wrongly(here: Sequence[VirtualDevice], dice: random.Random) -> tuple[VirtualDevice, ...]:
    """Each class's rate of each stage is declared three times too high, right, or three times too low."""
    wrong = {
        profile: dataclasses.replace(
            profile,
            rates=StageRates(**{s.value: profile.rates.of(s) * dice.choice((1 / 3, 1.0, 3.0)) for s in Stage}),
        )
        for profile in dict.fromkeys(d.profile for d in here)
    }
    return tuple(dataclasses.replace(d, profile=wrong[d.profile], actual=d.profile) for d in here)


def undeclared(counts: Sequence[int] = (10, 20, 60, 100)) -> list[Scenario]:
    """Every GPU is declared with the same rates; in truth they differ by a factor of ten."""
    here = declared_alike(of_profile("b"))
    return [_job(f"declared alike: {clips} clips", make_workload(clips), here) for clips in counts]


def misdeclared(seeds: Sequence[int] = (1, 2, 3, 4, 5), clips: int = 40) -> list[Scenario]:
    """The rates of cluster b are declared wrong by three."""
    return [
        _job(
            f"rates wrong by three, seed {seed}: {clips} clips",
            make_workload(clips),
            declared_wrongly(of_profile("b"), random.Random(seed)),
        )
        for seed in seeds
    ]


def slow_encoders(counts: Sequence[int] = (60, 400), helpers: int = 4) -> list[Scenario]:
    """Helpers that encode a text in half a minute, beside GPUs that denoise a clip in seconds."""
    found = []
    for clips in counts:
        job = make_workload(clips, kinds=[steps(4)])
        found += [
            _job(f"4 steps, no helpers: {clips} clips", job, devices((GPU_80GB, 4))),
            _job(f"4 steps, {helpers} slow encoders: {clips} clips", job, devices((GPU_80GB, 4), (CPU, helpers))),
        ]
    return found


def specialists(
    ratios: Sequence[tuple[float, float]] = ((10, 10), (30, 24), (65, 24)), clips: int = 600, each: int = 4
) -> list[Scenario]:
    """Devices that denoise well and decode y times slower, beside devices that decode well and denoise x times slower."""
    return [
        _job(
            f"specialists, denoise x{x:g}, decode x{y:g}: {clips} clips",
            make_workload(clips),
            devices(
                (with_rates(GPU_80GB, "denoiser", decode=1 / y), each),
                (with_rates(GPU_80GB, "decoder", denoise=1 / x), each),
            ),
        )
        for x, y in ratios
    ]


def slow_loading(
    cases: Sequence[tuple[float, int, int]] = ((0.05, 50, 40), (0.1, 20, 40), (0.05, 50, 12), (0.1, 50, 120)),
) -> list[Scenario]:
    """Loading a transformer takes as long as several clips: (GB/s, steps, clips) on eight 80 GB devices."""
    return [
        _job(
            f"loading at {rate:g} GB/s, {count} steps: {clips} clips",
            make_workload(clips, kinds=[steps(count)]),
            devices((dataclasses.replace(GPU_80GB, load_gb_per_s=rate), 8)),
        )
        for rate, count, clips in cases
    ]


def one_fast(counts: Sequence[int] = (2, 5, 10, 20, 40), slow: int = 50, times: float = 30.0) -> list[Scenario]:
    """One fast device and many that are hopeless, except for decodes that are not the last ones."""
    factors = dict.fromkeys((stage.value for stage in Stage), 1 / times)
    here = devices((GPU_80GB, 1), (with_rates(GPU_80GB, "slow", **factors), slow))
    return [_job(f"one fast and {slow} slow: {clips} clips", make_workload(clips), here) for clips in counts]


def mixed_lengths(
    cases: Sequence[tuple[int, int]] = ((8, 60), (16, 30), (4, 40), (12, 100)), profile: DeviceProfile = GPU_24GB
) -> list[Scenario]:
    """Clips of three models, the longest seven times the shortest: (devices, clips)."""
    return [
        _job(f"{count} x {profile.name}, three models: {clips} clips", make_workload(clips, kinds=THREE_MODELS), here)
        for count, clips in cases
        for here in [devices((profile, count))]
    ]


def unbalanced() -> list[Scenario]:
    """Jobs in which denoise is not most of the work, or in which inputs come slowly."""
    decodes = make_workload(40, kinds=[steps(1)])
    kept = dataclasses.replace(make_workload(100), clips_with_latents=np.arange(90))
    slow_text = with_rates(CPU, "text-host", encode_text=1.0)
    no_text = dataclasses.replace(GPU_80GB, stages=frozenset(Stage) - {Stage.ENCODE_TEXT})
    return [
        _job("b, 1 step: 40 clips", decodes, of_profile("b")),
        _job("a, latents of 90 kept: 100 clips", kept, of_profile("a")),
        _job("b, latents of 90 kept: 100 clips", kept, of_profile("b")),
        _job("one slow text host: 16 clips", make_workload(16), devices((no_text, 8), (slow_text, 1))),
        _job("first frames of their own: 400 clips", make_workload(400, kinds=[WITH_IMAGE]), devices((GPU_80GB, 8))),
        _job(
            "first frames of their own, 4 steps: 2000 clips",
            make_workload(2000, kinds=[steps(4, WITH_IMAGE)]),
            devices((GPU_80GB, 8)),
        ),
    ]


def hard_clusters() -> list[Scenario]:
    """All of them."""
    return [
        *undeclared(),
        *misdeclared(),
        *slow_encoders(),
        *specialists(),
        *slow_loading(),
        *one_fast(),
        *mixed_lengths(),
        *unbalanced(),
        *map(random_cluster, range(24)),
    ]


def small_hard_clusters() -> list[Scenario]:
    """A small one of each."""
    return [
        *undeclared((10, 20)),
        *misdeclared((1, 2)),
        *slow_encoders((60,)),
        *specialists(((30, 24),), clips=100),
        *slow_loading(((0.05, 50, 40),)),
        *one_fast((2, 10)),
        *mixed_lengths(((8, 60),)),
        *unbalanced()[:4],
        *map(random_cluster, range(4)),
    ]


def _job(name: str, workload: Workload, here: tuple[VirtualDevice, ...]) -> Scenario:
    return Scenario(name=name, workload=workload, devices=here)


# --- at random


def random_cluster(seed: int) -> Scenario:
    """A small cluster of up to four device classes, and a job of up to 200 clips, drawn at random. Declared as it is."""
    dice = random.Random(seed)
    classes = [_random_profile(dice, f"class{i}") for i in range(dice.randint(1, 3))]
    here = devices((GPU_80GB, dice.randint(1, 4)), *((profile, dice.randint(1, 6)) for profile in classes))
    kinds = dice.choice([(KIND_5S,), (KIND_5S,), THREE_MODELS, (steps(4),), (WITH_IMAGE,)])
    clips = dice.choice([3, 8, 15, 30, 60, 120, 200])
    job = make_workload(clips, kinds=kinds)
    return _job(f"random {seed}: {clips} clips", job, here)


def _random_profile(dice: random.Random, name: str) -> DeviceProfile:
    base = dice.choice([GPU_80GB, GPU_24GB, GPU_24GB])
    factors = {stage.value: 2.0 ** dice.uniform(-4, 1) for stage in Stage}
    changed = with_rates(base, name, **factors)
    stages = dice.choice(
        [frozenset(Stage)] * 4 + [frozenset(Stage) - {Stage.DENOISE}, frozenset(Stage) - {Stage.DECODE}]
    )
    return dataclasses.replace(changed, load_gb_per_s=2.0 ** dice.uniform(-3, 2), stages=stages)
