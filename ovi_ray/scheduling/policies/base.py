"""The interface of a scheduling policy: immutable snapshot in, decision with its reason out.

Shapes: [workers] workers in service, [classes] device classes, [types] work types (a stage and a kind of clip).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ovi.config import Component
from ovi.stages import Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.task import Reason


class Candidate(NamedTuple):
    """A task that an idle worker could run now. A named tuple, because thousands are made per second."""

    worker: int
    """Number of the worker; it stands for all interchangeable idle workers."""
    device_class: int
    """Number of the worker's device class."""
    stage: Stage
    kind: int
    """Index of the kind of clip in `Workload.kinds`."""
    waiting: int
    """Tasks of this stage and kind that are ready."""
    units: float
    """Tokens of each when the stage is batched, else 1."""
    work_s: float
    """Expected seconds of the work."""
    swap_s: float
    """Expected seconds of unloading and loading before it."""
    urgent: bool
    """Other devices will soon wait for its result."""
    begun: float = 0.0
    """Share of the items of an input stage that are encoded or being encoded."""
    doubt: float = 1.0
    """The factor by which the work may take longer, as far as is known."""
    hope: float = 1.0
    """The factor by which it may be faster; it can be stopped when it is not."""
    measured_doubt: float = 1.0
    """Above 1, it is the first measurement of a device that was declared wrongly: the factor by which it may take longer."""


class IdleWorker(NamedTuple):
    """An idle worker as a policy sees it."""

    number: int
    """Identifies the worker as long as it is present."""
    factor: float
    """Slowness relative to its class (1 is as fast)."""


class Holding(NamedTuple):
    """The components resident on a worker."""

    components: frozenset[Component] = frozenset()
    model_name: str = ""
    """Model whose transformer is resident; empty when none is."""


Swap = Callable[[int, Holding, Stage, int], tuple[float, Holding]]
"""(device class, holding, stage, kind) -> seconds of the swap before such a task, and the holding after it."""


def no_swaps(device_class: int, holding: Holding, stage: Stage, kind: int) -> tuple[float, Holding]:
    """Everything is resident everywhere."""
    return 0.0, holding


def no_doubt(device_class: int, stage: Stage) -> float:
    """Every device has been measured."""
    return 1.0


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Cluster:
    """The remaining work and the workers, from which an allocation is made."""

    work_types: tuple[tuple[Stage, int], ...]
    """(stage, kind) of the work left to start."""
    amounts: FloatArray
    """[types] tasks left to start."""
    seconds: FloatArray
    """[classes, types] expected seconds per task, infinite where a class cannot do it."""
    numbers: npt.NDArray[np.int64]
    """[workers] number of each."""
    classes: npt.NDArray[np.int64]
    """[workers] device class of each."""
    factors: FloatArray
    """[workers] how many times slower than its class."""
    available_s: FloatArray
    """[workers] seconds until each is free; 0 when idle."""
    load_s: FloatArray
    """[workers] seconds to load a transformer; 0 when one is resident."""
    holdings: Sequence[Holding]
    """[workers] what is resident on each after its task."""
    running: Sequence[tuple[Stage, int] | None]
    """[workers] (stage, kind) of the task of each; None when idle."""
    swap: Swap = no_swaps
    """Seconds to change components."""
    inputs_s: float = 0.0
    """Seconds until the first clip has its inputs; 0 when one has, or none needs any."""
    doubt: Callable[[int, Stage], float] = no_doubt
    """(device class, stage) -> how many times longer the work may take, as far as is known."""
    latents_scale: float = 1.0
    """Waiting latents at which their queue is worth draining."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Preferences:
    """Decisions that the rules of a policy leave open, valid until the next allocation."""

    target_s: float = math.inf
    """The end to aim for, in seconds from the time of planning: a task that would end too late for it is left to others."""
    decode_weight: float = 1.0
    """Above 1, decodes come earlier than the allocation's prices say; below, later."""
    longest_first: bool = False
    """Long clips go before work that the device is better at."""
    least_use: float = 0.5
    """A long task with a lower use of the device is not begun while better work for it is to come."""
    wait_s: float = 0.0
    """Seconds in which such work should be ready."""
    longest_swap_s: float = math.inf
    """A device waits for work for which it need not swap components for longer."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Allocation:
    """A division of the remaining work, which guides decisions until the next one is made."""

    makespan_s: float
    """Expected seconds from the time of planning until the end."""
    advantage: Mapping[tuple[int, Stage, int], float] = field(default_factory=dict)
    """(device class, stage, kind) -> value of the task over value of the class's best use, 0 to 1."""
    preferences: Preferences = field(default_factory=Preferences)
    only_decodes: bool = False
    """Nothing but decodes is left to start."""
    fastest_s: Mapping[tuple[Stage, int], float] = field(default_factory=dict)
    """(stage, kind) -> seconds of a task on the fastest device."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Snapshot:
    """Immutable view of the cluster that a decision is based on."""

    since_plan_s: float
    """Age of the allocation in seconds."""
    candidates: tuple[Candidate, ...]
    latents_fill: float
    """Latents waiting for decode over `Cluster.latents_scale`: at 1 their queue is worth draining."""
    others_end: Callable[[Candidate], int]
    """Number of tasks like a candidate that the other workers, after their running ones, could end before it ends."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decision:
    """The candidate to run, or None for all of them to wait."""

    candidate: Candidate | None
    reason: Reason


class Policy(Protocol):
    """Interface between the scheduler and a policy."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def allocate(
        self, cluster: Cluster, in_force: Allocation | None = None, *, little_changed: bool = False
    ) -> Allocation:
        """Divide the remaining work.

        `in_force` is the allocation made last, its target as seen from now, and may be followed further. `little_changed`:
        since it was made, so that the search for a better one may be short.
        """
        ...

    def choose(self, snapshot: Snapshot, allocation: Allocation) -> Decision:
        """Choose one of the candidates, or none."""
        ...

    def group(self, worker: IdleWorker) -> int:
        """Idle workers with equal class, resident components and group are interchangeable."""
        ...


def device_totals(cluster: Cluster) -> tuple[FloatArray, FloatArray]:
    """[classes] devices, in units of the class's speed; [classes] device-seconds until they are free."""
    classes = len(cluster.seconds)
    capacity, committed = np.zeros(classes), np.zeros(classes)
    np.add.at(capacity, cluster.classes, 1 / cluster.factors)
    np.add.at(committed, cluster.classes, cluster.available_s / cluster.factors)
    return capacity, committed
