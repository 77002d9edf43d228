"""Lower bound on the makespan with whole clips, by integer programming, for jobs of one kind of clip."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint, milp

from ovi.stages import Stage
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.lower_bound import NEVER_S, BoundProblem, bound_problem, windows
from ovi_ray.simulation.virtual_cluster import VirtualDevice


class _Use(NamedTuple):
    """What one device does, at most."""

    group: int
    denoises: int
    decodes: int


def integral_bound(workload: Workload, devices: Sequence[VirtualDevice], *, tolerance: float = 1e-3) -> float:
    """As `makespan_bound`, with whole denoises and decodes on each device. For jobs of one kind.

    It ignores first frames and the work on texts, and that each decode follows its own denoise (except the first and the last).
    Both make it lower than the best schedule, never higher.

    Raises ValueError for several kinds.
    """
    if len(workload.kinds) != 1:
        raise ValueError("integral_bound takes jobs of one kind")
    problem = bound_problem(workload, devices)
    return _bisect(lambda end: _whole_clips_by(problem, end), tolerance)


def _bisect(possible: Callable[[float], bool], tolerance: float) -> float:
    low, high = 0.0, 1.0
    while not possible(high):
        low, high = high, 2 * high
        if high > NEVER_S:
            return math.inf
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if possible(middle):
            high = middle
        else:
            low = middle
    return low


def _whole_clips_by(problem: BoundProblem, end: float) -> bool:
    """Whether the devices can be assigned whole denoises and decodes that end in time and add up to all clips."""
    needed = [problem.amount(stage) for stage in (Stage.DENOISE, Stage.DECODE)]
    uses = [use for group in range(len(problem.groups)) for use in _uses(problem, group, end)]
    table = np.array(uses, dtype=float).reshape(-1, 3)
    of_group = np.array([table[:, 0] == i for i in range(len(problem.groups))], dtype=float)
    result = milp(
        np.zeros(len(uses)),
        constraints=[
            LinearConstraint(of_group, -np.inf, [float(group.count) for group in problem.groups]),
            LinearConstraint(table[:, 1:].T, needed, np.inf),
        ],
        integrality=np.ones(len(uses)),
    )
    return bool(result.success)


def _uses(problem: BoundProblem, group: int, end: float) -> Iterator[_Use]:
    """What a device can do at most by `end`: for each number of denoises, the most decodes."""
    of_stage = {work_type.stage: j for j, work_type in enumerate(problem.work)}
    denoise, decode = of_stage.get(Stage.DENOISE), of_stage[Stage.DECODE]
    yield _Use(group, 0, _most(problem, group, decode, {}, end))
    if denoise is not None:
        for denoises in range(1, _most(problem, group, denoise, {}, end) + 1):
            yield _Use(group, denoises, _most(problem, group, decode, {denoise: denoises}, end))


def _most(problem: BoundProblem, group: int, work_type: int, others: Mapping[int, int], end: float) -> int:
    """Whole tasks of a type that a device can do by `end`, with so many of others."""
    if not math.isfinite(problem.seconds[group, work_type]):
        return 0
    stage, seconds = problem.work[work_type].stage, problem.seconds[group]
    used = problem.work[work_type].needs.union(*(problem.work[j].needs for j in others))
    left = min(
        available - sum(tasks * float(seconds[j]) for j, tasks in others.items() if problem.work[j].stage in stages)
        for stages, available in windows(problem, group, used, end)
        if stage in stages
    )
    return max(0, int(left / seconds[work_type] + 1e-9))
