"""Lower bound on the makespan with whole clips, by integer programming, for jobs of one kind of clip."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import LinearConstraint, milp

from ovi.stages import Stage
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.lower_bound import NEVER_S, BoundProblem, bound_problem
from ovi_ray.simulation.virtual_cluster import VirtualDevice


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


def integral_bound(workload: Workload, devices: Sequence[VirtualDevice], *, tolerance: float = 1e-3) -> float:
    """As `makespan_bound`, with whole denoises and decodes on each device. For jobs of one kind.

    It ignores first frames, that each decode follows its own denoise (except the first and the last), and that loads on one
    device do not overlap with the wait for texts. All of these make it lower than the best schedule, never higher.

    Raises ValueError for several kinds, and devices that join, leave or are slow from the start.
    """
    if len(workload.kinds) != 1:
        raise ValueError("integral_bound takes jobs of one kind")
    if any(d.joins_at_s or d.leaves_at_s != math.inf for d in devices):
        raise ValueError("integral_bound takes devices that are present all the time")
    problem = bound_problem(workload, devices)
    if any(change < problem.first_latents_s for d in devices for change, _ in d.slowdowns):
        raise ValueError("integral_bound takes devices that slow down after the first latents at the earliest")
    return _bisect(lambda end: _whole_clips_by(problem, end), tolerance)


def _whole_clips_by(problem: BoundProblem, end: float) -> bool:
    """Whether the devices can be assigned whole denoises and decodes that end in time and add up to all clips."""
    stages = [work_type.stage for work_type in problem.work]
    denoise, decode = stages.index(Stage.DENOISE), stages.index(Stage.DECODE)
    denoises, decodes = int(problem.work[denoise].amount), int(problem.work[decode].amount)
    uses: list[tuple[int, int, int]] = []  # group, denoises, decodes on one device
    for i, group in enumerate(problem.groups):
        each, after = problem.seconds[i, denoise], problem.seconds[i, decode]
        load, load_vae = group.load_seconds(problem.work[denoise].needs), group.load_seconds(problem.work[decode].needs)
        left = group.effective(end)
        for a in range(denoises + 1):
            alone = max(problem.first_denoise_s, load) + a * each if a else 0.0
            if not alone <= left - (problem.decode_s if a and left == end else 0.0):
                break
            for b in range(decodes + 1):
                ends = alone + (load_vae + b * after if b else 0.0)
                if b and not a:
                    ends = max(problem.first_latents_s, load_vae) + b * after
                if not ends <= left:
                    break
                uses.append((i, a, b))
    if not uses:
        return False
    table = np.array(uses)
    of_group = np.array([table[:, 0] == i for i in range(len(problem.groups))], dtype=float)
    counts = np.array([g.count for g in problem.groups], dtype=float)
    result = milp(
        np.zeros(len(uses)),
        constraints=[
            LinearConstraint(of_group, -np.inf, counts),
            LinearConstraint(table[:, 1:].T.astype(float), [denoises, decodes], np.inf),
        ],
        integrality=np.ones(len(uses)),
    )
    return bool(result.success)
