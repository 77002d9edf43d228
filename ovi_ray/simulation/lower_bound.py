"""How soon a cluster could end a job at best, whatever the scheduler: a yardstick that no schedule can beat. Pure.

`makespan_bound` is a linear program for a given end T, with T found by a search. Device-seconds until T are limited
for each group of alike devices; loads are paid once on each device for each component that it uses; no denoise begins
before the first texts can be encoded, and the last one leaves time for a decode. Joins, departures and slowdowns are
known to it beforehand; random variation is not, and counts as its mean.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from ovi.config import Component
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.workload import NO_FRAME, TEXTS_PER_CLIP, Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice

NEVER_S = 1e12


@dataclass(kw_only=True, slots=True, frozen=True)
class _Job:
    stage: Stage
    kind: int
    amount: float
    """Tasks, or tokens for texts."""
    needs: str
    """What is loaded for it: 'text', 'vae', or a model's name."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Group:
    """Devices that are alike, with their times."""

    count: int
    device: VirtualDevice
    truth: DeviceProfile

    def seconds(self, job: _Job, workload: Workload) -> float:
        """Of one task, or of one token; infinite where it does not fit."""
        kind = workload.kinds[job.kind]
        if not self.device.profile.fits(job.stage, kind):
            return math.inf
        spec = STAGES[job.stage]
        if spec.batched:
            return spec.tflop(kind) / (self.truth.rates.of(job.stage) * self.truth.speed)
        return self.truth.prior_seconds(job.stage, spec.tflop(kind))

    def load_seconds(self, needs: str) -> float:
        """Of what a job needs."""
        components = {"text": [Component.TEXT_ENCODER], "vae": [Component.VIDEO_VAE]}
        return sum(self.truth.load_seconds(c) for c in components.get(needs, [Component.TRANSFORMER]))

    def effective(self, time: float) -> float:
        """Seconds at first speed that one device has worked by `time`."""
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
    """The work of a job and the groups of devices it may run on, as the bounds see them."""

    jobs: tuple[_Job, ...]
    groups: tuple[_Group, ...]
    seconds: FloatArray
    """[groups, jobs]"""
    first_denoise_s: float
    """No denoise can begin before."""
    first_latents_s: float
    """No decode can begin before."""
    decode_s: float
    """The fastest decode: what follows any denoise."""


def bound_problem(workload: Workload, devices: Sequence[VirtualDevice]) -> BoundProblem:
    """The problem of a workload on devices; work that no device can do is left out."""
    groups = _groups(devices)
    jobs = [job for job in _jobs(workload) if any(math.isfinite(g.seconds(job, workload)) for g in groups)]
    seconds = np.array([[g.seconds(job, workload) for job in jobs] for g in groups])
    first_denoise = 0.0
    for j, job in enumerate(jobs):
        if job.stage is Stage.ENCODE_TEXT:
            tokens = int(np.sort(workload.text_tokens)[:TEXTS_PER_CLIP].sum())
            first_denoise = min(
                g.device.joins_at_s + g.load_seconds("text") + tokens * seconds[i, j] for i, g in enumerate(groups)
            )
    fresh = not len(workload.clips_with_latents)
    return BoundProblem(
        jobs=tuple(jobs),
        groups=groups,
        seconds=seconds,
        first_denoise_s=first_denoise,
        first_latents_s=first_denoise + _fastest(seconds, jobs, Stage.DENOISE) if fresh else 0.0,
        decode_s=_fastest(seconds, jobs, Stage.DECODE),
    )


def _fastest(seconds: FloatArray, jobs: Sequence[_Job], stage: Stage) -> float:
    return min((float(seconds[:, j].min()) for j, job in enumerate(jobs) if job.stage is stage), default=0.0)


def _groups(devices: Sequence[VirtualDevice]) -> tuple[_Group, ...]:
    alike: dict[tuple[object, ...], list[VirtualDevice]] = {}
    for d in devices:
        alike.setdefault((d.profile, d.truth, d.joins_at_s, d.leaves_at_s, d.slowdowns), []).append(d)
    return tuple(
        _Group(count=len(same), device=same[0], truth=same[0].truth or same[0].profile) for same in alike.values()
    )


def _jobs(workload: Workload) -> list[_Job]:
    kinds = range(len(workload.kinds))
    fresh = np.ones(workload.clips, bool)
    fresh[workload.clips_with_latents] = False
    tokens = float(workload.text_tokens[np.unique(workload.clip_texts[fresh])].sum())
    frames = np.unique(workload.frames_of_clips[fresh])
    frame_kinds = workload.first_frame_kind[frames[frames != NO_FRAME]]
    jobs = [_Job(stage=Stage.ENCODE_TEXT, kind=0, amount=tokens, needs="text")]
    for k in kinds:
        model = workload.kinds[k].model_name
        clips = workload.clip_kind == k
        jobs += [
            _Job(stage=Stage.ENCODE_FIRST_FRAME, kind=k, amount=float((frame_kinds == k).sum()), needs="vae"),
            _Job(stage=Stage.DENOISE, kind=k, amount=float((clips & fresh).sum()), needs=model),
            _Job(stage=Stage.DECODE, kind=k, amount=float(clips.sum()), needs="vae"),
        ]
    return [job for job in jobs if job.amount > 0]


def makespan_bound(workload: Workload, devices: Sequence[VirtualDevice], *, tolerance: float = 1e-4) -> float:
    """Seconds before which no schedule can end the job. Stages that fit nowhere are left out."""
    problem = bound_problem(workload, devices)
    if not problem.jobs:
        return 0.0
    guess = float(problem.seconds.min(axis=0) @ [job.amount for job in problem.jobs]) / len(devices)
    return _first_end(lambda end: _fraction_done_by(problem, end), guess + problem.first_latents_s, tolerance)


def _first_end(fraction: Callable[[float], float], guess: float, tolerance: float) -> float:
    """The end, a little too early, at which `fraction` (which grows with it, nearly straight) reaches 1."""
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
    """The largest fraction of every job that can be done by `end`."""
    program = _Program(len(problem.jobs))
    for j, job in enumerate(problem.jobs):
        program.parts.append((j, 0, -job.amount))
    for i, group in enumerate(problem.groups):
        able = [j for j in range(len(problem.jobs)) if math.isfinite(problem.seconds[i, j])]
        needs = sorted({problem.jobs[j].needs for j in able})
        of_group = program.limit(float(group.count))
        for size in range(1, len(needs) + 1):
            for used in itertools.combinations(needs, size):
                devices = program.variable()
                program.limits.append((of_group, devices, 1.0))
                _add_tasks(program, problem, i, [j for j in able if problem.jobs[j].needs in used], devices, used, end)
    return program.solve()


def _add_tasks(
    program: "_Program",
    problem: BoundProblem,
    group: int,
    jobs: Sequence[int],
    devices: int,
    used: tuple[str, ...],
    end: float,
) -> None:
    """The tasks of `jobs` that the devices of a group do which load just `used`, within their time."""
    tasks = {j: program.variable() for j in jobs}
    program.parts.extend((j, task, 1.0) for j, task in tasks.items())
    for stages, available in _windows(problem, problem.groups[group], used, end):
        row = program.limit(0.0)
        program.limits.append((row, devices, -available))
        program.limits.extend(
            (row, task, problem.seconds[group, j]) for j, task in tasks.items() if problem.jobs[j].stage in stages
        )


class _Program:
    """Maximise variable 0, the fraction; the others are devices and tasks, none of them negative."""

    def __init__(self, jobs: int) -> None:
        self.parts: list[tuple[int, int, float]] = []
        """(job, variable, factor): the tasks of a job add up to the fraction of it."""
        self.limits: list[tuple[int, int, float]] = []
        """(row, variable, factor) of what stays below the row's limit."""
        self._jobs = jobs
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
        """The largest fraction."""
        goal = np.zeros(self._variables)
        goal[0] = -1.0
        result = linprog(
            goal,
            A_ub=_matrix(self.limits, len(self._limits), self._variables),
            b_ub=np.array(self._limits),
            A_eq=_matrix(self.parts, self._jobs, self._variables),
            b_eq=np.zeros(self._jobs),
            method="highs",
        )
        return float(-result.fun) if result.success else 0.0


def _windows(
    problem: BoundProblem, group: _Group, used: tuple[str, ...], end: float
) -> list[tuple[frozenset[Stage], float]]:
    """Seconds at first speed that a device has for all its work, for denoise and for decode alone."""
    joins = group.device.joins_at_s
    loads = sum(group.load_seconds(n) for n in used)
    windows = [(frozenset(Stage), max(0.0, group.effective(end) - loads))]
    models = [n for n in used if n not in ("text", "vae")]
    if models:
        begin = max(problem.first_denoise_s, joins + min(group.load_seconds(n) for n in models))
        last = end - problem.decode_s
        windows.append((frozenset({Stage.DENOISE}), max(0.0, group.effective(last) - group.effective(begin))))
    if "vae" in used:
        begin = max(problem.first_latents_s, joins)
        windows.append((frozenset({Stage.DECODE}), max(0.0, group.effective(end) - group.effective(begin))))
    return windows


def _matrix(entries: list[tuple[int, int, float]], rows: int, columns: int) -> object:
    r, c, v = zip(*entries, strict=True)
    return coo_array((np.array(v), (np.array(r), np.array(c))), shape=(rows, columns)).tocsr()
