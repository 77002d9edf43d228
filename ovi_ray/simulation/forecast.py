"""Forecast of a job on a cluster: time, utilisation, cost and bottlenecks, before anything is submitted.

The production scheduler runs the job on a virtual cluster. Bottlenecks are found by sensitivity analysis: how much earlier the
lower bound ends when one stage is faster on one class, or a class has one device more.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovi.stages import Stage
from ovi_ray.inputs.cluster_profile import ClusterProfile
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.device_profile import DeviceProfile, StageRates
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.lower_bound import makespan_bound
from ovi_ray.simulation.virtual_cluster import Outcome, Span, VirtualDevice, simulate, virtual_devices

MIN_SAVING = 0.02  # share of the time; a change that saves less is not a bottleneck


@dataclass(kw_only=True, slots=True, frozen=True)
class ClassForecast:
    """Utilisation and cost of the devices of one class."""

    name: str
    count: int
    device_hours: float
    """All of its devices are held until the job ends."""
    busy: dict[Stage, float]
    """Stage -> share of their time."""
    load: float
    """Share of their time spent on loading and unloading components."""
    cost: float | None
    """In the profile's currency; None when the class has no price."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Bottleneck:
    """A change that would end the job sooner."""

    what: str
    """The stage and class, or the class, that limits the job, such as "decode on nvidia-24gb"."""
    change: str
    """The change, such as "twice as fast"."""
    sooner: float
    """Share of the job's time that it would save."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Forecast:
    """Forecast of a job on a cluster."""

    clips: int
    texts: int
    first_frames: int
    eta_s: float
    """Seconds from the start to the last video."""
    bound_s: float
    """Lower bound of `eta_s`, whatever the schedule."""
    classes: tuple[ClassForecast, ...]
    bottlenecks: tuple[Bottleneck, ...]
    """Largest saving first."""
    cost: float | None
    """Sum over all classes; None when one has no price."""
    currency: str
    spans: tuple[Span, ...] = ()
    """Every task, for a timeline; empty unless `keep_spans` was set."""

    @property
    def clips_per_hour(self) -> float:
        """Average rate."""
        return self.clips * 3600 / self.eta_s if self.eta_s else 0.0


def forecast(
    workload: Workload, cluster: ClusterProfile, *, config: SchedulerConfig | None = None, keep_spans: bool = False
) -> Forecast:
    """Forecast a job. Raises InputError for a stage that fits on no device of the cluster."""
    cluster.check(workload.kinds, source=f"cluster {cluster.name}")
    devices = virtual_devices(cluster)
    bound_s = makespan_bound(workload, devices)
    outcome = simulate(workload, devices, scheduler=Scheduler(workload, config=config), keep_spans=keep_spans)
    classes = tuple(_class_forecasts(cluster, outcome))
    costs = [part.cost for part in classes]
    return Forecast(
        clips=workload.clips,
        texts=workload.texts,
        first_frames=workload.first_frames,
        eta_s=outcome.makespan_s,
        bound_s=bound_s,
        classes=classes,
        bottlenecks=bottlenecks_of(workload, cluster, bound_s),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        currency=cluster.currency,
        spans=outcome.spans,
    )


def bottlenecks_of(workload: Workload, cluster: ClusterProfile, bound_s: float) -> tuple[Bottleneck, ...]:
    """Sensitivity of the lower bound to a stage twice as fast on one class, and to one more device of a class."""
    devices = virtual_devices(cluster)
    bottlenecks = [
        Bottleneck(what=what, change=change, sooner=1 - makespan_bound(workload, changed) / bound_s)
        for what, change, changed in _changes(devices, cluster)
    ]
    return tuple(sorted((x for x in bottlenecks if x.sooner >= MIN_SAVING), key=lambda x: (-x.sooner, x.what)))


def _changes(
    devices: Sequence[VirtualDevice], cluster: ClusterProfile
) -> Iterator[tuple[str, str, Sequence[VirtualDevice]]]:
    for name, profile in cluster.device_profiles.items():
        for stage in sorted(profile.stages):
            faster = dataclasses.replace(profile, rates=_doubled(profile.rates, stage))
            yield f"{stage} on {name}", "twice as fast", [_with_profile(device, name, faster) for device in devices]
        yield f"devices of class {name}", "one more", [*devices, VirtualDevice(name=f"{name}-more", profile=profile)]


def _doubled(rates: StageRates, stage: Stage) -> StageRates:
    return dataclasses.replace(rates, **{stage.value: 2 * rates.of(stage)})


def _with_profile(device: VirtualDevice, name: str, profile: DeviceProfile) -> VirtualDevice:
    return dataclasses.replace(device, profile=profile) if device.profile.name == name else device


def _class_forecasts(cluster: ClusterProfile, outcome: Outcome) -> Iterator[ClassForecast]:
    for name, devices in cluster.devices.items():
        held_s = devices.count * outcome.makespan_s
        hours = held_s / 3600
        yield ClassForecast(
            name=name,
            count=devices.count,
            device_hours=hours,
            busy={stage: seconds / held_s for stage, seconds in outcome.busy_s.get(name, {}).items() if seconds},
            load=outcome.load_s.get(name, 0.0) / held_s,
            cost=None if devices.price_per_hour is None else hours * devices.price_per_hour,
        )
