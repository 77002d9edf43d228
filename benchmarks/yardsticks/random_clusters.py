"""Clusters and jobs drawn at random, of each kind on which placement is hard. The same seed gives the same ones."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice
from yardsticks.clusters import (
    CPU,
    GPU_24GB,
    GPU_80GB,
    THREE_MODELS,
    WITH_IMAGE,
    declared_alike,
    declared_wrongly,
    devices,
    steps,
    with_rates,
)
from yardsticks.scenarios import KIND_5S, MIXED_KINDS, Scenario, make_workload

CLIPS = (10, 40, 100, 400)
Here = tuple[VirtualDevice, ...]
Case = tuple[Here, Workload]


def random_clusters(count: int, seed: int = 0) -> Iterator[tuple[str, Scenario]]:
    """(kind, scenario): so many, the kinds in turn."""
    for number, kind in zip(range(count), itertools.cycle(KINDS)):
        dice = random.Random(f"{seed} {number}")
        clips = CLIPS[(number // len(KINDS) + number) % len(CLIPS)]
        here, workload = KINDS[kind](dice, clips)
        name = f"{number} of seed {seed}: {clips} clips, {len(here)} devices"
        yield kind, Scenario(name=name, workload=workload, devices=here)


def _scaled(dice: random.Random, least: float, most: float) -> float:
    """Between the two, as likely to be half of something as twice it."""
    return math.exp(dice.uniform(math.log(least), math.log(most)))


def _mixed(dice: random.Random, *, slowest: float = 1 / 10) -> Here:
    """A few 80 GB devices, and up to three classes of others, each with speeds of its own."""
    found = [(GPU_80GB, dice.randint(1, 4))]
    for number in range(dice.randint(1, 3)):
        base, speed = dice.choice([GPU_80GB, GPU_24GB]), _scaled(dice, slowest, 1.5)
        factors = {stage.value: speed * _scaled(dice, 0.5, 2.0) for stage in Stage}
        profile = with_rates(base, f"class{number}", **factors)
        found.append((dataclasses.replace(profile, load_gb_per_s=_scaled(dice, 0.5, 4.0)), dice.randint(1, 8)))
    return devices(*found)


def _as_declared(dice: random.Random, clips: int) -> Case:
    return _mixed(dice), make_workload(clips, kinds=[dice.choice([KIND_5S, WITH_IMAGE, steps(20)])])


def _declared_alike(dice: random.Random, clips: int) -> Case:
    return declared_alike(_mixed(dice)), make_workload(clips)


def _declared_wrongly(dice: random.Random, clips: int) -> Case:
    return declared_wrongly(_mixed(dice), dice), make_workload(clips)


def _slow_encoders(dice: random.Random, clips: int) -> Case:
    rate = _scaled(dice, 0.02, 1.0)
    helper = with_rates(CPU, "slow encoder", encode_text=rate / 0.05, encode_first_frame=rate / 0.05)
    kind = dataclasses.replace(steps(dice.choice([4, 8, 20])), has_image=dice.random() < 0.5)
    return devices((GPU_80GB, dice.randint(1, 6)), (helper, dice.randint(1, 8))), make_workload(clips, kinds=[kind])


def _specialists(dice: random.Random, clips: int) -> Case:
    denoiser = with_rates(GPU_80GB, "denoiser", decode=1 / _scaled(dice, 3, 65))
    decoder = with_rates(GPU_80GB, "decoder", denoise=1 / _scaled(dice, 3, 65))
    return devices((denoiser, dice.randint(1, 6)), (decoder, dice.randint(1, 6))), make_workload(clips)


def _slow_loads(dice: random.Random, clips: int) -> Case:
    slow = dataclasses.replace(GPU_80GB, load_gb_per_s=_scaled(dice, 0.05, 0.4))
    small = dataclasses.replace(GPU_24GB, load_gb_per_s=_scaled(dice, 0.05, 0.4))
    here = devices((slow, dice.randint(2, 8)), (small, dice.choice([0, 4])))
    return here, make_workload(clips, kinds=[steps(dice.choice([10, 20, 50]))])


def _one_fast(dice: random.Random, clips: int) -> Case:
    times = _scaled(dice, 4, 40)
    slow = with_rates(GPU_80GB, "slow", **{stage.value: 1 / times for stage in Stage})
    return devices((GPU_80GB, 1), (slow, dice.randint(8, 50))), make_workload(clips)


def _mixed_lengths(dice: random.Random, clips: int) -> Case:
    return _mixed(dice, slowest=1 / 4), make_workload(clips, kinds=dice.choice([MIXED_KINDS, THREE_MODELS]))


def _decode_dominated(dice: random.Random, clips: int) -> Case:
    return _mixed(dice), make_workload(clips, kinds=[steps(dice.randint(1, 4))])


def _kept_latents(dice: random.Random, clips: int) -> Case:
    kept = np.arange(int(clips * dice.uniform(0.3, 0.95)))
    return _mixed(dice), dataclasses.replace(make_workload(clips), clips_with_latents=kept)


def _one_text_host(dice: random.Random, clips: int) -> Case:
    here = _mixed(dice)
    host = dice.randrange(len(here))
    others = frozenset(Stage) - {Stage.ENCODE_TEXT}
    changed = (d if i == host else _with_profile(d, stages=others) for i, d in enumerate(here))
    return tuple(changed), make_workload(clips)


def _with_profile(device: VirtualDevice, **changes: object) -> VirtualDevice:
    return dataclasses.replace(device, profile=dataclasses.replace(device.profile, **changes))  # type: ignore[arg-type]


def _spot(dice: random.Random, clips: int) -> Case:
    """Some devices join late, some leave, some slow down, but for the first one."""
    here = _mixed(dice)
    tflop = STAGES[Stage.DENOISE].tflop(KIND_5S)
    work_s = clips / sum(1 / d.profile.prior_seconds(Stage.DENOISE, tflop) for d in here)

    def changed(device: VirtualDevice) -> VirtualDevice:
        at = dice.uniform(0.1, 0.9) * work_s
        change: Sequence[Mapping[str, object]] = [{"joins_at_s": at}, {"leaves_at_s": at}, {"slowdowns": ((at, 2.0),)}]
        return dataclasses.replace(device, **dice.choice([{}, {}, *change]))  # type: ignore[arg-type]

    return (here[0], *map(changed, here[1:])), make_workload(clips)


KINDS: Mapping[str, Callable[[random.Random, int], Case]] = {
    "as declared": _as_declared,
    "declared alike": _declared_alike,
    "rates wrong by three": _declared_wrongly,
    "slow encoders": _slow_encoders,
    "specialists": _specialists,
    "slow loads": _slow_loads,
    "one fast": _one_fast,
    "mixed lengths": _mixed_lengths,
    "decode dominated": _decode_dominated,
    "kept latents": _kept_latents,
    "one text host": _one_text_host,
    "spot": _spot,
}
