"""Lower bound on the makespan with whole clips, by integer programming, for jobs of one kind of clip."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint, milp

from ovi.stages import Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.lower_bound import NEVER_S, BoundProblem, bound_problem, windows
from ovi_ray.simulation.virtual_cluster import VirtualDevice

IntArray = npt.NDArray[np.int64]
_MOST_NODES = 200  # of the search, after which an assignment counts as possible
_INFEASIBLE = 2  # status of scipy.optimize.milp
_ALMOST = 1e-9
"""Share of a task that may be missing: rounding errors never make the bound higher."""


def integral_bound(
    workload: Workload, devices: Sequence[VirtualDevice], *, least_s: float = 0.0, tolerance: float = 1e-3
) -> float:
    """As `makespan_bound`, with whole denoises and decodes on each device, each decode after its denoise. For jobs of one kind.

    It ignores first frames and the work on texts, which makes it lower than the best schedule, never higher. `least_s` is a
    bound that is known already. Raises ValueError for several kinds.
    """
    if len(workload.kinds) != 1:
        raise ValueError("integral_bound takes jobs of one kind")
    problem = bound_problem(workload, devices)
    fresh = workload.clips - len(workload.clips_with_latents)
    if (problem.amount(Stage.DENOISE), problem.amount(Stage.DECODE)) != (fresh, workload.clips) or not workload.clips:
        return least_s  # nothing to do, or nobody to do it
    groups = [_GroupWork.of(problem, group) for group in range(len(problem.groups))]
    return _bisect(lambda end: _is_possible(groups, fresh, workload.clips, end), least_s, tolerance)


def _bisect(possible: Callable[[float], bool], least_s: float, tolerance: float) -> float:
    low, high = least_s, max(1.0, (1 + 8 * tolerance) * least_s)
    while not possible(high):
        low, high = high, 1.5 * high
        if high > NEVER_S:
            return math.inf
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if possible(middle):
            high = middle
        else:
            low = middle
    return low


def _whole(seconds: npt.ArrayLike, each_s: float) -> IntArray:
    """Tasks that are possible in the seconds."""
    return np.maximum(0, np.asarray(seconds) / each_s + _ALMOST).astype(np.int64)


@dataclass(kw_only=True, slots=True, frozen=True)
class _GroupWork:
    """Denoises and decodes on the devices of a group."""

    problem: BoundProblem
    group: int
    denoise_s: float
    """Of one; infinite where it does not fit, or none is to be done."""
    decode_s: float
    weights: dict[Stage, frozenset[str]]
    """Loaded for each stage."""

    @classmethod
    def of(cls, problem: BoundProblem, group: int) -> "_GroupWork":
        """The work of a group."""
        seconds = {work.stage: float(problem.seconds[group, j]) for j, work in enumerate(problem.work)}
        return cls(
            problem=problem,
            group=group,
            denoise_s=seconds.get(Stage.DENOISE, math.inf),
            decode_s=seconds.get(Stage.DECODE, math.inf),
            weights={work.stage: work.needs for work in problem.work},
        )

    @property
    def device(self) -> VirtualDevice:
        """One of them."""
        return self.problem.groups[self.group].device

    def uses(self, fresh: int, clips: int, end: float) -> IntArray:
        """[uses, 2] what a device can do by `end`: each number of denoises, and the most decodes beside them."""
        for_denoise, for_decode = (self.weights.get(stage, frozenset()) for stage in (Stage.DENOISE, Stage.DECODE))
        alone_s = self._left_s(Stage.DENOISE, for_denoise, np.zeros(1, np.int64), end)
        denoises = np.arange(min(fresh, int(_whole(alone_s, self.denoise_s)[0])) + 1)
        decodes = _whole(self._left_s(Stage.DECODE, for_denoise | for_decode, denoises, end), self.decode_s)
        decodes[:1] = _whole(self._left_s(Stage.DECODE, for_decode, denoises[:1], end), self.decode_s)
        return np.stack([denoises, np.minimum(decodes, clips)], axis=1)

    def _left_s(self, stage: Stage, loaded: frozenset[str], denoises: IntArray, end: float) -> FloatArray:
        """[uses] seconds for tasks of a stage by `end`, beside the denoises."""
        work_s, none = self._work_s(denoises), np.zeros(len(denoises))
        found = windows(self.problem, self.group, loaded, end)
        beside = [left_s - (work_s if Stage.DENOISE in stages else none) for stages, left_s in found if stage in stages]
        return np.asarray(np.min(beside, axis=0), dtype=np.float64)

    def _work_s(self, denoises: IntArray) -> FloatArray:
        """[uses] seconds of denoises."""
        return np.multiply(denoises, self.denoise_s if denoises.any() else 0.0, dtype=np.float64)

    def in_order(self, uses: IntArray, time: float, end: float) -> IntArray:
        """[uses] denoises that have ended by a time, and decodes that begin later, at most."""
        denoises, decodes = uses.T
        effective = self.problem.groups[self.group].effective
        before = max(0.0, effective(time) - effective(self._first_denoise_s()))
        after = effective(end) - effective(time) - np.maximum(0.0, self._work_s(denoises) - before)
        return np.minimum(denoises, _whole(before, self.denoise_s)) + np.minimum(decodes, _whole(after, self.decode_s))

    def _first_denoise_s(self) -> float:
        load_s = self.problem.groups[self.group].load_seconds(self.weights.get(Stage.DENOISE, frozenset()))
        return max(self.problem.first_denoise_s, self.device.joins_at_s + load_s)

    def turning_points(self, end: float) -> Iterator[float]:
        """Times at which the order may matter: when a denoise is about to end, or the last decodes have begun."""
        for number in (1, 2, 3):
            if math.isfinite(self.decode_s):
                yield end - number * self.decode_s * (1 - 1e-6)
            if math.isfinite(self.denoise_s):
                yield self._first_denoise_s() + number * self.denoise_s * (1 - 1e-6)


def _is_possible(groups: Sequence[_GroupWork], fresh: int, clips: int, end: float) -> bool:
    """Whether the devices can be assigned whole denoises and decodes that end in time and add up to all clips.

    At any time, each clip that is denoised has been, or its decode is still to begin.
    """
    uses = [group.uses(fresh, clips, end) for group in groups]
    members = np.repeat(np.arange(len(groups)), [len(of_group) for of_group in uses])
    points = {end * share / 16 for share in range(1, 16)}.union(*(group.turning_points(end) for group in groups))
    in_order = [
        np.concatenate([group.in_order(mine, time, end) for group, mine in zip(groups, uses, strict=True)])
        for time in sorted(points)
        if 0 < time < end
    ]
    denoises, decodes = np.concatenate(uses).T
    counts = [float(group.problem.groups[group.group].count) for group in groups]
    result = milp(
        np.zeros(len(members)),
        constraints=[
            LinearConstraint((members == np.arange(len(groups))[:, None]).astype(float), -np.inf, counts),
            LinearConstraint(denoises[None].astype(float), fresh, fresh),
            LinearConstraint(decodes[None].astype(float), clips, np.inf),
            LinearConstraint(np.array(in_order, dtype=float), fresh, np.inf),
        ],
        integrality=np.ones(len(members)),
        options={"node_limit": _MOST_NODES},
    )
    return result.status != _INFEASIBLE
