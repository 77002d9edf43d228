"""Lower bound on the makespan of a job on a cluster, whatever the scheduler.

`makespan_bound` is a linear program for a given end T, with T found by a search, or the longest clip alone if that takes
longer. Device-seconds until T are limited for each group of alike devices; loads are paid once on each device for each
component that it uses; no denoise begins before the first texts can be encoded, and the last one leaves time for a decode.
Joins, departures and slowdowns are known in advance; random variation is not, and counts with its mean.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from ovi.config import Component
from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, STAGES_WITH_LATENTS, Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.workload import NO_FRAME, ClipKind, Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice

NEVER_S = 1e12
"""Seconds beyond which a job is said never to end."""
_SHARED = frozenset(component.value for component in Component if component is not Component.TRANSFORMER)
"""Components that all models share; each has a transformer of its own."""
Weights = frozenset[str]
"""Loaded parts: shared components, and models whose transformers they are."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _WorkType:
    """All tasks of one stage and kind."""

    stage: Stage
    kind: int
    amount: float
    """Tasks, or tokens for texts."""
    needs: Weights
    """The weights that are loaded for it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Group:
    """Devices with equal profiles and times."""

    count: int
    device: VirtualDevice

    def seconds(self, work_type: _WorkType, workload: Workload) -> float:
        """Of one task, or of one token when the stage is batched; infinite where it does not fit."""
        kind = workload.kinds[work_type.kind]
        if not self.device.profile.fits(work_type.stage, kind):
            return math.inf
        spec = STAGES[work_type.stage]
        if spec.batched:
            return spec.tflop(kind) / (
                self.device.actual_profile.rates.of(work_type.stage) * self.device.actual_profile.speed
            )
        return self.device.actual_profile.prior_seconds(work_type.stage, spec.tflop(kind))

    def load_seconds(self, weights: Weights) -> float:
        """To load weights."""
        components = [Component(name) if name in _SHARED else Component.TRANSFORMER for name in weights]
        return sum(self.device.actual_profile.load_seconds(component) for component in components)

    def work_lost(self, load_s: float) -> float:
        """Seconds of work at first speed, at least, in the time of a load, which takes as long when a device is slow."""
        return load_s / max([1.0, *(factor for _, factor in self.device.slowdowns)])

    def effective(self, time: float) -> float:
        """Seconds of work at first speed that one device has had time for by `time`."""
        end = min(time, self.device.leaves_at_s)
        total, begin, factor = 0.0, self.device.joins_at_s, 1.0
        for change, next_factor in (*self.device.slowdowns, (math.inf, 1.0)):
            until = min(end, change)
            if until > begin:
                total += (until - begin) / factor
                begin = until
            factor = next_factor
        return total


@dataclass(kw_only=True, slots=True, frozen=True)
class BoundProblem:
    """The work of a job, and the groups of devices that it may run on."""

    work: tuple[_WorkType, ...]
    groups: tuple[_Group, ...]
    seconds: FloatArray
    """[groups, types] of one task or token."""
    first_denoise_s: float
    """No denoise can start before."""
    first_latents_s: float
    """No decode can start before."""
    denoise_s: float
    """The fastest denoise, which follows every input."""
    decode_s: float
    """The fastest decode, which follows every denoise."""

    def amount(self, stage: Stage) -> float:
        """Tasks of a stage, or tokens."""
        return sum(work_type.amount for work_type in self.work if work_type.stage is stage)


def bound_problem(workload: Workload, devices: Sequence[VirtualDevice]) -> BoundProblem:
    """The problem of a workload on devices. Work that no device can do is left out."""
    groups = _groups(devices)
    types = [
        work_type
        for work_type in _work_types(workload)
        if any(math.isfinite(g.seconds(work_type, workload)) for g in groups)
    ]
    seconds = np.array([[g.seconds(work_type, workload) for work_type in types] for g in groups])
    first_denoise = _first_inputs(workload, groups, types, seconds)
    fresh = not len(workload.clips_with_latents)
    return BoundProblem(
        work=tuple(types),
        groups=groups,
        seconds=seconds,
        first_denoise_s=first_denoise,
        first_latents_s=_first_latents(groups, types, seconds, first_denoise) if fresh else 0.0,
        denoise_s=_fastest(seconds, types, Stage.DENOISE),
        decode_s=_fastest(seconds, types, Stage.DECODE),
    )


def _first_inputs(
    workload: Workload, groups: Sequence[_Group], types: Sequence[_WorkType], seconds: FloatArray
) -> float:
    """Seconds before which the cheapest texts that a clip needs cannot be encoded; images are not counted."""
    earliest, items = 0.0, workload.stage_inputs()
    for j, work_type in enumerate(types):
        if STAGES[work_type.stage].batched:
            inputs = items[work_type.stage]
            tokens = inputs.fewest_tokens(inputs.of_clips.shape[1])
            ends = [
                g.device.joins_at_s + g.load_seconds(work_type.needs) + tokens * seconds[i, j]
                for i, g in enumerate(groups)
            ]
            earliest = max(earliest, min(ends))
    return earliest


def _first_latents(
    groups: Sequence[_Group], types: Sequence[_WorkType], seconds: FloatArray, first_denoise_s: float
) -> float:
    """Seconds before which no clip can be denoised."""
    ends = (
        max(first_denoise_s, group.device.joins_at_s + group.load_seconds(work_type.needs))
        + float(seconds[i, j]) * min([1.0, *(factor for _, factor in group.device.slowdowns)])
        for j, work_type in enumerate(types)
        if work_type.stage is Stage.DENOISE
        for i, group in enumerate(groups)
    )
    return min(ends, default=first_denoise_s)


def _fastest(seconds: FloatArray, types: Sequence[_WorkType], stage: Stage) -> float:
    return min(
        (float(seconds[:, j].min()) for j, work_type in enumerate(types) if work_type.stage is stage), default=0.0
    )


def _groups(devices: Sequence[VirtualDevice]) -> tuple[_Group, ...]:
    alike: dict[tuple[object, ...], list[VirtualDevice]] = {}
    for d in devices:
        alike.setdefault((d.profile, d.actual, d.joins_at_s, d.leaves_at_s, d.slowdowns), []).append(d)
    return tuple(_Group(count=len(same), device=same[0]) for same in alike.values())


def _work_types(workload: Workload) -> list[_WorkType]:
    """All work, less what kept latents save; texts count as work of the first kind."""
    fresh = np.ones(workload.clips, bool)
    fresh[workload.clips_with_latents] = False
    amounts: list[tuple[Stage, int, float]] = []
    for stage, inputs in workload.stage_inputs().items():
        items = np.unique(inputs.of_clips[fresh])
        items = items[items != NO_FRAME]
        if STAGES[stage].batched:
            amounts.append((stage, 0, inputs.tokens_of(items)))
        else:
            kinds = np.zeros(len(items), int) if inputs.kinds is None else inputs.kinds[items]
            amounts += [(stage, k, float((kinds == k).sum())) for k in range(len(workload.kinds))]
    for stage in CLIP_STAGES:
        kinds = workload.clip_kind if stage in STAGES_WITH_LATENTS else workload.clip_kind[fresh]
        amounts += [(stage, k, float((kinds == k).sum())) for k in range(len(workload.kinds))]
    return [
        _WorkType(stage=stage, kind=k, amount=amount, needs=_needs(stage, workload.kinds[k]))
        for stage, k, amount in amounts
        if amount > 0
    ]


def _needs(stage: Stage, kind: ClipKind) -> Weights:
    return frozenset(c.value if c.value in _SHARED else kind.model_name for c in STAGES[stage].components)


def makespan_bound(workload: Workload, devices: Sequence[VirtualDevice], *, tolerance: float = 1e-4) -> float:
    """Seconds before which no schedule can end the job. Stages that fit nowhere are left out."""
    problem = bound_problem(workload, devices)
    if not problem.work:
        return 0.0
    chain = _longest_chain(problem, workload)
    guess = float(problem.seconds.min(axis=0) @ [work_type.amount for work_type in problem.work]) / len(devices)
    fluid = _first_end(lambda end: _fraction_done_by(problem, end), guess + problem.first_latents_s, tolerance)
    return max(fluid, chain)


def _longest_chain(problem: BoundProblem, workload: Workload) -> float:
    """Seconds in which the longest clip, alone, can be denoised and decoded at best."""
    longest = 0.0
    for kind in range(len(workload.kinds)):
        ends = 0.0
        for stage in CLIP_STAGES:  # in order
            columns = [j for j, work in enumerate(problem.work) if work.stage is stage and work.kind == kind]
            for j in columns:
                begins = problem.first_denoise_s if stage is Stage.DENOISE else 0.0
                ends = min(
                    max(ends, begins, group.device.joins_at_s + group.load_seconds(problem.work[j].needs))
                    + problem.seconds[i, j] * min([1.0, *(factor for _, factor in group.device.slowdowns)])
                    for i, group in enumerate(problem.groups)
                )
        longest = max(longest, float(ends))
    return longest


def _first_end(fraction: Callable[[float], float], guess: float, tolerance: float) -> float:
    """The end at which `fraction`, which grows almost linearly with it, reaches 1; too early by less than `tolerance`."""
    low, low_done, high = 0.0, 0.0, max(guess, 1.0)
    while (high_done := fraction(high)) < 1.0:
        low, low_done, high = high, high_done, 2 * high
        if high > NEVER_S:
            return math.inf
    interpolate = True
    while high - low > tolerance * high:
        part = (1.0 - low_done) / (high_done - low_done) if interpolate and high_done > low_done else 0.5
        middle = low + (high - low) * min(max(part - 0.5 * tolerance, 0.02), 0.98)
        interpolate = not interpolate or high - low > 0.2 * high
        if (done := fraction(middle)) >= 1.0:
            high, high_done = middle, done
        else:
            low, low_done = middle, done
    return low


def _fraction_done_by(problem: BoundProblem, end: float) -> float:
    """The largest fraction of all work that can be done by `end`."""
    program = _Program(len(problem.work))
    for j, work_type in enumerate(problem.work):
        program.parts.append((j, 0, -work_type.amount))
    for i, group in enumerate(problem.groups):
        able = [j for j in range(len(problem.work)) if math.isfinite(problem.seconds[i, j])]
        of_group = program.limit(float(group.count))
        for used in _combinations({problem.work[j].needs for j in able}):
            devices = program.variable()
            program.limits.append((of_group, devices, 1.0))
            _add_tasks(program, problem, i, [j for j in able if problem.work[j].needs <= used], devices, used, end)
    return program.solve()


def _combinations(needs: Set[Weights]) -> list[Weights]:
    """All weights that a device may load for some of the work."""
    ordered = sorted(needs, key=sorted)
    chosen = (some for size in range(1, len(ordered) + 1) for some in itertools.combinations(ordered, size))
    return list(dict.fromkeys(frozenset().union(*some) for some in chosen))


def _add_tasks(
    program: "_Program",
    problem: BoundProblem,
    group: int,
    types: Sequence[int],
    devices: int,
    used: Weights,
    end: float,
) -> None:
    """The tasks of `types` done by those devices of a group that load exactly `used`, within their time."""
    tasks = {j: program.variable() for j in types}
    program.parts.extend((j, task, 1.0) for j, task in tasks.items())
    for stages, available in windows(problem, group, used, end):
        row = program.limit(0.0)
        program.limits.append((row, devices, -available))
        program.limits.extend(
            (row, task, problem.seconds[group, j]) for j, task in tasks.items() if problem.work[j].stage in stages
        )


class _Program:
    """A linear program in sparse form: maximise variable 0, the fraction done. All variables are non-negative."""

    def __init__(self, types: int) -> None:
        self.parts: list[tuple[int, int, float]] = []
        """(work type, variable, factor): the tasks of a type add up to the fraction of its amount."""
        self.limits: list[tuple[int, int, float]] = []
        """(row, variable, factor): each row's sum stays below its limit."""
        self._types = types
        self._variables = 1
        self._limits: list[float] = []

    def variable(self) -> int:
        """A new variable."""
        self._variables += 1
        return self._variables - 1

    def limit(self, value: float) -> int:
        """A new row that stays below a value."""
        self._limits.append(value)
        return len(self._limits) - 1

    def solve(self) -> float:
        """The largest fraction; 0 when the program has no solution."""
        goal = np.zeros(self._variables)
        goal[0] = -1.0
        result = linprog(
            goal,
            A_ub=_matrix(self.limits, len(self._limits), self._variables),
            b_ub=np.array(self._limits),
            A_eq=_matrix(self.parts, self._types, self._variables),
            b_eq=np.zeros(self._types),
            method="highs",
        )
        return float(-result.fun) if result.success else 0.0


def windows(problem: BoundProblem, group: int, used: Weights, end: float) -> Iterator[tuple[frozenset[Stage], float]]:
    """Seconds at first speed that a device which loads `used` has by `end`: for all its work, and for some stages alone."""
    of = problem.groups[group]
    yield frozenset(Stage), max(0.0, of.effective(end) - of.work_lost(of.load_seconds(used)))
    yield (
        frozenset(CLIP_STAGES),
        of.effective(end) - of.effective(min(problem.first_denoise_s, problem.first_latents_s)),
    )
    after = dict.fromkeys(INPUT_STAGES, problem.denoise_s + problem.decode_s) | {Stage.DENOISE: problem.decode_s}
    earliest = {Stage.DENOISE: problem.first_denoise_s, Stage.DECODE: problem.first_latents_s}
    for stage in Stage:
        loads = [of.load_seconds(work.needs) for work in problem.work if work.stage is stage and work.needs <= used]
        if loads:
            begin = max(earliest.get(stage, 0.0), of.device.joins_at_s + min(loads))
            last = end - after.get(stage, 0.0)
            yield frozenset({stage}), max(0.0, of.effective(last) - of.effective(begin))


def _matrix(entries: list[tuple[int, int, float]], rows: int, columns: int) -> object:
    r, c, v = zip(*entries, strict=True)
    return coo_array((np.array(v), (np.array(r), np.array(c))), shape=(rows, columns)).tocsr()
