"""Made-up jobs and troubles to measure a policy by: every one deterministic. Pure."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ovi_ray.limits import Limits
from ovi_ray.lower_bound import integral_bound, makespan_bound
from ovi_ray.policies import Policy
from ovi_ray.profiles import ClusterProfile
from ovi_ray.simulate import Outcome, VirtualDevice, simulate
from ovi_ray.stages import Stage
from ovi_ray.workload import NO_FRAME, ClipKind, Workload

KIND_5S = ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50)
MIXED_KINDS = (
    KIND_5S,
    ClipKind(model_name="720x720_5s", height=512, width=992, video_latent_length=31, sample_steps=50),
    ClipKind(model_name="960x960_5s", height=704, width=1280, video_latent_length=31, sample_steps=50),
    ClipKind(model_name="960x960_10s", height=960, width=960, video_latent_length=61, sample_steps=50),
)


def make_workload(
    clips: int, *, kinds: Sequence[ClipKind] = (KIND_5S,), tokens: int = 120, variants_per_prompt: int = 1
) -> Workload:
    """Clips in which the kinds alternate, with prompts of half to one and a half times `tokens` and two negatives."""
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
    """A job, a cluster and its troubles."""

    name: str
    workload: Workload
    devices: tuple[VirtualDevice, ...]
    limits: Limits = dataclasses.field(default_factory=Limits)
    whole_clips: bool = False
    """So few clips that the bound must count whole ones."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Measured:
    """A scenario's outcome beside the bound."""

    outcome: Outcome
    bound_s: float

    @property
    def ratio(self) -> float:
        """Makespan over bound: 1 is perfect."""
        return self.outcome.makespan_s / self.bound_s


def bound_of(scenario: Scenario) -> float:
    """Seconds that no schedule can beat."""
    if scenario.whole_clips:
        return integral_bound(scenario.workload, scenario.devices)
    return makespan_bound(scenario.workload, scenario.devices)


def measure(scenario: Scenario, policy: Policy) -> Measured:
    """Simulate a scenario under a policy."""
    outcome = simulate(scenario.workload, scenario.devices, policy=policy, limits=scenario.limits)
    return Measured(outcome=outcome, bound_s=bound_of(scenario))


def _changed(
    devices: Sequence[VirtualDevice], wanted: Callable[[int, VirtualDevice], bool], **changes: object
) -> tuple[VirtualDevice, ...]:
    return tuple(dataclasses.replace(d, **changes) if wanted(i, d) else d for i, d in enumerate(devices))  # type: ignore[arg-type]


def _slower(device: VirtualDevice, **times: float) -> VirtualDevice:
    """The device, in truth so many times slower in the named stages than its profile says."""
    rates = device.profile.rates
    changed = {stage: rates.of(Stage(stage)) / factor for stage, factor in times.items()}
    return dataclasses.replace(
        device, truth=dataclasses.replace(device.profile, rates=dataclasses.replace(rates, **changed))
    )


def _of(*classes: str) -> Callable[[int, VirtualDevice], bool]:
    return lambda _, device: device.profile.name in classes


def scenarios(profile: ClusterProfile, clips: int) -> list[Scenario]:
    """Troubles on a cluster with the classes of profile b, placed in time by how long the job would take without them."""
    devices = tuple(profile.virtual_devices())
    workload = make_workload(clips)
    calm = makespan_bound(workload, devices)
    fast = [d for d in devices if d.profile.name in ("nvidia-80gb", "amd-192gb")]
    half = {d.name for d in fast[::2]}
    every = dict.fromkeys(("encode_text", "encode_first_frame", "denoise", "decode"), 2.0)
    one_host = next(d.name for d in devices if d.profile.name == "nvidia-12gb")
    no_text = frozenset(Stage) - {Stage.ENCODE_TEXT}
    one_encoder = tuple(
        d if d.name == one_host else dataclasses.replace(d, profile=dataclasses.replace(d.profile, stages=no_text))
        for d in devices
    )
    tight = tuple(
        dataclasses.replace(d, profile=dataclasses.replace(d.profile, memory_gb=16.0))
        if d.profile.name == "nvidia-24gb"
        else d
        for d in devices
    )
    images = [dataclasses.replace(KIND_5S, has_image=True)]

    def scenario(name: str, devices: tuple[VirtualDevice, ...], workload: Workload = workload) -> Scenario:
        return Scenario(name=name, workload=workload, devices=devices)

    return [
        scenario("everything takes twice the prior", tuple(_slower(d, **every) for d in devices)),
        scenario(
            "denoise on 80 GB and decode on 24 GB take twice the prior",
            tuple(
                _slower(d, denoise=2.0)
                if d.profile.name == "nvidia-80gb"
                else _slower(d, decode=2.0)
                if d.profile.name == "nvidia-24gb"
                else d
                for d in devices
            ),
        ),
        scenario(
            "half the fast devices slow down by half at a third of the job",
            _changed(devices, lambda _, d: d.name in half, slowdowns=((calm / 3, 2.0),)),
        ),
        scenario(
            "half the fast devices join at half of the job",
            _changed(devices, lambda _, d: d.name in half, joins_at_s=calm / 2),
        ),
        scenario(
            "half the fast devices leave at half of the job",
            _changed(devices, lambda _, d: d.name in half, leaves_at_s=calm / 2),
        ),
        scenario(
            "24 GB cards leave at a third, unified-memory machines join there",
            _changed(
                _changed(devices, _of("nvidia-24gb"), leaves_at_s=calm / 3), _of("amd-unified"), joins_at_s=calm / 3
            ),
        ),
        scenario(
            "5 s and 10 s, four sizes, three models in one manifest", devices, make_workload(clips, kinds=MIXED_KINDS)
        ),
        scenario("one host for the text encoder", one_encoder),
        scenario("24 GB cards hold one model part at a time", tight),
        scenario("first-frame images", devices, make_workload(clips, kinds=images)),
        scenario("sixteen variants of each prompt", devices, make_workload(clips, variants_per_prompt=16)),
    ]


def tails(profile: ClusterProfile) -> list[Scenario]:
    """Fewer clips than devices, or few more."""
    devices = tuple(profile.virtual_devices())
    found = [
        Scenario(name=f"tail: {clips} clips", workload=make_workload(clips), devices=devices, whole_clips=True)
        for clips in (1, 4, 8, 20, 40)
    ]
    fast = next(d.name for d in devices)
    stuck = _changed(devices, lambda _, d: d.name == fast, slowdowns=((100.0, 20.0),))
    for copies in (False, True):
        name = f"tail: 20 clips, a device almost stops, copies {'on' if copies else 'off'}"
        limits = Limits(straggler_copies=copies)
        found.append(Scenario(name=name, workload=make_workload(20), devices=stuck, limits=limits, whole_clips=True))
    return found
