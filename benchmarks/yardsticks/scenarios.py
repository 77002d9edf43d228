"""Deterministic jobs and disturbances by which schedulers are compared."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ovi.stages import Stage
from ovi_ray.inputs.cluster_profile import ClusterProfile
from ovi_ray.scheduling.config import SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.workload import NO_FRAME, ClipKind, Workload
from ovi_ray.simulation.lower_bound import makespan_bound
from ovi_ray.simulation.virtual_cluster import Outcome, VirtualDevice, simulate, virtual_devices
from yardsticks.baseline_policies import production
from yardsticks.integral_bound import integral_bound

KIND_5S = ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50)
MIXED_KINDS = (
    KIND_5S,
    ClipKind(model_name="720x720_5s", height=512, width=992, video_latent_length=31, sample_steps=50),
    ClipKind(model_name="960x960_5s", height=704, width=1280, video_latent_length=31, sample_steps=50),
    ClipKind(model_name="960x960_10s", height=960, width=960, video_latent_length=61, sample_steps=50),
)

_MOST_WHOLE_CLIPS = 2_000  # of a job: with more, fractions of a clip do not matter


def make_workload(
    clips: int, *, kinds: Sequence[ClipKind] = (KIND_5S,), tokens: int = 120, variants_per_prompt: int = 1
) -> Workload:
    """Clips of alternating kinds, with prompts of half to one and a half times `tokens` and two shared negative prompts."""
    rows = np.arange(clips)
    prompt = rows // variants_per_prompt
    prompts = int(prompt.max(initial=-1)) + 1
    kind = rows % len(kinds)
    has_image = np.array([k.has_image for k in kinds])[kind]
    return Workload(
        kinds=tuple(kinds),
        clip_kind=kind,
        clip_texts=np.stack([prompt, np.full(clips, prompts), np.full(clips, prompts + 1)], axis=1),
        text_tokens=np.append(tokens // 2 + np.arange(prompts) * 37 % (tokens + 1), [9, 9]),
        clip_first_frame=np.where(has_image, np.cumsum(has_image) - 1, NO_FRAME),
        first_frame_kind=kind[has_image],
    )


@dataclass(kw_only=True, slots=True, frozen=True)
class Scenario:
    """A job and a cluster with its disturbances."""

    name: str
    workload: Workload
    devices: tuple[VirtualDevice, ...]
    config: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig)


@dataclass(kw_only=True, slots=True, frozen=True)
class Measured:
    """A scenario's outcome and its lower bound."""

    outcome: Outcome
    bound_s: float

    @property
    def ratio(self) -> float:
        """Makespan over lower bound; 1 is optimal."""
        return self.outcome.makespan_s / self.bound_s


def bound_of(scenario: Scenario) -> float:
    """Lower bound of the makespan: of whole clips where all are of one kind, which leaves out the work on texts."""
    bound = makespan_bound(scenario.workload, scenario.devices)
    if len(scenario.workload.kinds) > 1 or scenario.workload.clips > _MOST_WHOLE_CLIPS:
        return bound
    return integral_bound(scenario.workload, scenario.devices, least_s=bound)


MakeScheduler = Callable[[Workload, SchedulerConfig], Scheduler]


def measure(scenario: Scenario, make_scheduler: MakeScheduler = production) -> Measured:
    """Simulate a scenario with a new scheduler."""
    scheduler = make_scheduler(scenario.workload, scenario.config)
    outcome = simulate(scenario.workload, scenario.devices, scheduler=scheduler)
    return Measured(outcome=outcome, bound_s=bound_of(scenario))


def _changed(
    devices: Sequence[VirtualDevice], wanted: Callable[[int, VirtualDevice], bool], **changes: object
) -> tuple[VirtualDevice, ...]:
    return tuple(dataclasses.replace(d, **changes) if wanted(i, d) else d for i, d in enumerate(devices))  # type: ignore[arg-type]


def _slower(device: VirtualDevice, **times: float) -> VirtualDevice:
    """The device, actually so many times slower in the named stages than its profile declares."""
    rates = device.profile.rates
    changed = {stage: rates.of(Stage(stage)) / factor for stage, factor in times.items()}
    return dataclasses.replace(
        device, actual=dataclasses.replace(device.profile, rates=dataclasses.replace(rates, **changed))
    )


def _of(*classes: str) -> Callable[[int, VirtualDevice], bool]:
    return lambda _, device: device.profile.name in classes


def scenarios(profile: ClusterProfile, clips: int) -> list[Scenario]:
    """Disturbances of a cluster with the classes of profile b, timed by how long the job would take without them."""
    devices = tuple(virtual_devices(profile))
    workload = make_workload(clips)
    disturbances = _wrong_priors(devices) | _changes(devices, makespan_bound(workload, devices)) | _narrow(devices)
    jobs = {
        "5 s and 10 s, four sizes, three models in one manifest": make_workload(clips, kinds=MIXED_KINDS),
        "first-frame images": make_workload(clips, kinds=[dataclasses.replace(KIND_5S, has_image=True)]),
        "sixteen variants of each prompt": make_workload(clips, variants_per_prompt=16),
    }
    return [Scenario(name=name, workload=workload, devices=changed) for name, changed in disturbances.items()] + [
        Scenario(name=name, workload=job, devices=devices) for name, job in jobs.items()
    ]


def _wrong_priors(devices: tuple[VirtualDevice, ...]) -> dict[str, tuple[VirtualDevice, ...]]:
    every = dict.fromkeys((stage.value for stage in Stage), 2.0)
    some = {"nvidia-80gb": {"denoise": 2.0}, "nvidia-24gb": {"decode": 2.0}}
    return {
        "everything takes twice the prior": tuple(_slower(d, **every) for d in devices),
        "denoise on 80 GB and decode on 24 GB take twice the prior": tuple(
            _slower(d, **some.get(d.profile.name, {})) for d in devices
        ),
        "times vary by up to a fifth (the bound is for their mean)": _changed(devices, lambda _, d: True, jitter=0.2),
    }


def _changes(devices: tuple[VirtualDevice, ...], calm_s: float) -> dict[str, tuple[VirtualDevice, ...]]:
    half = {d.name for d in [d for d in devices if d.profile.name in ("nvidia-80gb", "amd-192gb")][::2]}

    def in_half(_: int, device: VirtualDevice) -> bool:
        return device.name in half

    without_middle = _changed(devices, _of("nvidia-24gb"), leaves_at_s=calm_s / 3)
    return {
        "half the fast devices slow down by half at a third of the job": _changed(
            devices, in_half, slowdowns=((calm_s / 3, 2.0),)
        ),
        "half the fast devices join at half of the job": _changed(devices, in_half, joins_at_s=calm_s / 2),
        "half the fast devices leave at half of the job": _changed(devices, in_half, leaves_at_s=calm_s / 2),
        "24 GB cards leave at a third, unified-memory machines join there": _changed(
            without_middle, _of("amd-unified"), joins_at_s=calm_s / 3
        ),
    }


def _narrow(devices: tuple[VirtualDevice, ...]) -> dict[str, tuple[VirtualDevice, ...]]:
    encoder = next(d.name for d in devices if d.profile.name == "amd-unified")
    return {
        "one host for the text encoder": tuple(
            d if d.name == encoder else _with_profile(d, stages=frozenset(Stage) - {Stage.ENCODE_TEXT}) for d in devices
        ),
        "24 GB cards hold one model part at a time": tuple(
            _with_profile(d, memory_gb=16.0) if d.profile.name == "nvidia-24gb" else d for d in devices
        ),
    }


def _with_profile(device: VirtualDevice, **changes: object) -> VirtualDevice:
    profile = dataclasses.replace(device.profile, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(device, profile=profile)


def tails(profile: ClusterProfile) -> list[Scenario]:
    """Jobs with fewer clips than devices, or a few more: only the tail matters."""
    devices = tuple(virtual_devices(profile))
    found = [
        Scenario(name=f"tail: {clips} clips", workload=make_workload(clips), devices=devices)
        for clips in (1, 4, 8, 20, 40)
    ]
    fast = next(d.name for d in devices)
    stuck = _changed(devices, lambda _, d: d.name == fast, slowdowns=((100.0, 20.0),))
    for copies in (False, True):
        name = f"tail: 20 clips, a device almost stops, copies {'on' if copies else 'off'}"
        config = SchedulerConfig(speculation=SpeculationConfig(enabled=copies))
        found.append(Scenario(name=name, workload=make_workload(20), devices=stuck, config=config))
    return found
