"""The interface of a scheduling policy: immutable snapshot in, decision with its reason out.

Shapes: [workers] workers in service, [classes] device classes, [types] work types (a stage and a kind of clip).
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
    work_s: float
    """Expected seconds of the work."""
    swap_s: float
    """Expected seconds of unloading and loading before it."""
    urgent: bool
    """Other devices will soon wait for its result."""


class IdleWorker(NamedTuple):
    """An idle worker as a policy sees it."""

    number: int
    """Identifies the worker as long as it is present."""
    factor: float
    """How many times slower than its class."""


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


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Allocation:
    """A division of the remaining work, which guides decisions until the next one is made."""

    makespan_s: float
    """Expected seconds from the time of planning until the end."""
    advantage: dict[tuple[int, Stage, int], float] = field(default_factory=dict)
    """(device class, stage, kind) -> value of the task over value of the class's best use, 0 to 1."""
    denoise_by_s: float = math.inf
    """A denoise that would end later, in seconds from the time of planning, is left to faster devices."""


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Snapshot:
    """Immutable view of the cluster that a decision is based on."""

    since_plan_s: float
    """Age of the allocation in seconds."""
    candidates: tuple[Candidate, ...]
    latents_fill: float
    """Latents waiting for decode over a quarter of their limit: at 1 their queue is worth draining."""
    end_times: Callable[[Stage, int], FloatArray]
    """(stage, kind) -> seconds in which each worker, after its running task, would end one such task; ascending."""


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

    def allocate(self, cluster: Cluster) -> Allocation:
        """Divide the remaining work."""
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
