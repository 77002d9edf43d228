"""Who gets what. A policy looks at a frozen snapshot and returns a decision with its reason. Pure, without state.

`Production` follows the prices of a linear program over the remaining work (what one more task costs the makespan, what
a device-second is worth), corrected by how full the queues are; near the end it asks where a clip ends soonest.
`StaticStriding` and `MeanSpeed` are what others do, for comparison.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ovi.stages import Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.task import Reason


class Candidate(NamedTuple):
    """Something that an idle worker could do now."""

    worker: int
    """Number of the worker; it stands for all idle workers like it."""
    device: int
    """Number of its class."""
    stage: Stage
    kind: int
    waiting: int
    """Tasks of this stage and kind that are ready."""
    work_s: float
    """Expected seconds of the work."""
    swap_s: float
    """Expected seconds of unloading and loading before it."""
    urgent: bool
    """Other devices will soon wait for its result."""
    denoises: int = 0
    """Begun by the worker since it joined."""
    owed: int = 0
    """Of these, how many more than it has decoded."""


class Worker(NamedTuple):
    """An idle worker as a policy sees it."""

    number: int
    factor: float
    """Times slower than its class."""
    denoises: int
    """Begun since it joined."""
    owed: int
    """Of these, how many more than it has decoded."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Cluster:
    """What a plan is made from."""

    jobs: tuple[tuple[Stage, int], ...]
    """(stage, kind) of what is left to start."""
    amounts: FloatArray
    """[jobs] tasks left to start."""
    seconds: FloatArray
    """[classes, jobs] expected seconds, infinite where a class cannot do it."""
    numbers: npt.NDArray[np.int64]
    """[workers]"""
    classes: npt.NDArray[np.int64]
    """[workers] class of each."""
    factors: FloatArray
    """[workers] times slower than its class."""
    available_s: FloatArray
    """[workers] seconds until each is free; 0 when idle."""
    load_s: FloatArray
    """[workers] seconds to load a transformer; 0 when it holds one."""
    denoises: int
    """Begun so far by all of them."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Plan:
    """What a policy works out now and then, for its choices until the next plan."""

    makespan_s: float
    """Expected seconds from the time of planning until the end."""
    advantage: dict[tuple[int, Stage, int], float] = field(default_factory=dict)
    """(class, stage, kind) -> how near the class's best use it is, 0 to 1."""
    quota: dict[int, int] = field(default_factory=dict)
    """Worker -> denoises that it may begin."""
    roles: dict[int, frozenset[Stage]] = field(default_factory=dict)
    """Worker -> stages that it may run."""
    denoise_by_s: float = math.inf
    """A denoise that would end later, counted from the time of planning, is better left to others."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Snapshot:
    """What a choice is made from."""

    since_plan_s: float
    candidates: tuple[Candidate, ...]
    latents_fill: float
    """Latents that wait for decode, over how many may wait."""
    others: Callable[[Stage, int], FloatArray]
    """Seconds in which each worker, after what it does now, would end one task of a stage and kind, ascending."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decision:
    """Which candidate runs, or that all of them wait."""

    candidate: Candidate | None
    reason: Reason


class Policy(Protocol):
    """What the scheduler asks of a policy."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def groups_follow_plan(self) -> bool:
        """Whether `group` may change with the plan."""
        ...

    def plan(self, cluster: Cluster) -> Plan:
        """Prepare for the choices to come."""
        ...

    def choose(self, snapshot: Snapshot, plan: Plan) -> Decision:
        """Pick one of the candidates, or none."""
        ...

    def group(self, worker: Worker, plan: Plan) -> int:
        """Idle workers of a class with equal numbers here are interchangeable."""
        ...


def device_totals(cluster: Cluster) -> tuple[FloatArray, FloatArray]:
    """[classes] devices' worth of speed, and device-seconds already given away."""
    classes = len(cluster.seconds)
    capacity, committed = np.zeros(classes), np.zeros(classes)
    np.add.at(capacity, cluster.classes, 1 / cluster.factors)
    np.add.at(committed, cluster.classes, cluster.available_s / cluster.factors)
    return capacity, committed
