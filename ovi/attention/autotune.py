"""`auto`: benchmark the backends on the job's shapes, cache the results, pick the fastest accurate backend per site.

Trials are cached on disk, keyed by all that they depend on: device, driver, torch, cuDNN, the backend's version, dtype and
the bucket of the shape. A backend that refuses a call or is inaccurate is cached with its reason and not tried again until the
key changes; one that ran out of memory, hung, crashed or found the GPU taken is tried again by the next process.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ovi.attention.backends import BACKENDS, selected_kernel
from ovi.attention.benchmark import Trial, measure
from ovi.attention.subprocess_trial import Job, measure_in_subprocess
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionPlan, AttentionShape, Site
from ovi.errors import AttentionUnavailable
from ovi.files import user_cache_folder
from ovi.trials import TrialFile, build_of_torch

Measure = Callable[[AttentionTarget, Sequence[Job]], list[Trial]]
Found = Mapping[AttentionShape, dict[AttentionBackend, Trial]]
LAST_RESORTS = frozenset({AttentionBackend.SDPA_MATH})
"""Backends that on a GPU are tried only where no other works: they are far slower, and their scores fill its memory."""
CANDIDATES = tuple(backend for backend in BACKENDS if backend is not AttentionBackend.SDPA)
"""The backends that `auto` tries. SDPA is left out because it selects one of the others."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Choice:
    """The backend chosen for one site, and the trials that it was chosen from."""

    shape: AttentionShape
    """The shape that was benchmarked."""
    trials: tuple[Trial, ...]
    chosen: AttentionBackend


class TrialCache:
    """Trials in a JSON file. An unreadable file counts as empty; if it cannot be written, trials are repeated next time.

    Failures that may pass are remembered by this object alone.
    """

    def __init__(self, path: Path) -> None:
        self._file = TrialFile(path)
        self._passing: dict[str, Trial] = {}

    @classmethod
    def default(cls) -> Self:
        """The cache in the user's cache folder."""
        return cls(user_cache_folder() / "attention.json")

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def get(self, target: AttentionTarget, job: Job) -> Trial | None:
        """The known trial of a backend on a shape; None if there is none for the current versions."""
        key = _key(target, job)
        known = self._file.get(key)
        try:
            return self._passing.get(key) if known is None else Trial(**{**known, "backend": job[0]})
        except TypeError:  # written by another version
            return None

    def put(self, target: AttentionTarget, trials: Mapping[Job, Trial]) -> None:
        """Add trials, replacing older ones with the same key; those with a failure that may pass are not written."""
        found = {_key(target, job): trial for job, trial in trials.items()}
        self._passing = {key: trial for key, trial in (self._passing | found).items() if trial.transient}
        self._file.put({key: dataclasses.asdict(trial) for key, trial in found.items() if not trial.transient})


def plan_attention(
    backend: AttentionBackend,
    target: AttentionTarget,
    shapes: Mapping[Site, AttentionShape],
    *,
    allow_inexact: bool = False,
    cache: TrialCache | None = None,
) -> AttentionPlan:
    """The backend of every site: the requested one, or the choices of `auto`.

    `sdpa` is resolved to the kernel that PyTorch selects for each shape, so the plan names the kernels that really run.
    Raises AttentionUnavailable for a backend that cannot run, with the reason and the backends that can.
    """
    if backend is AttentionBackend.AUTO:
        choices = choose(target, shapes, allow_inexact=allow_inexact, cache=cache)
        return AttentionPlan.of({site: choice.chosen for site, choice in choices.items()})
    for site, shape in shapes.items():
        check_available(backend, target, shape, where=f" at {site} ({shape})")
    if backend is AttentionBackend.SDPA:
        return AttentionPlan.of({site: selected_kernel(target, shape) for site, shape in shapes.items()})
    return AttentionPlan.uniform(backend)


def check_available(backend: AttentionBackend, target: AttentionTarget, shape: AttentionShape, where: str = "") -> None:
    """Raise AttentionUnavailable if a backend cannot run a call of this shape, with the reason and the usable backends."""
    if reason := BACKENDS[backend].unavailable_reason(target, shape):
        others = [str(name) for name, other in BACKENDS.items() if not other.unavailable_reason(target, shape)]
        usable = (str(AttentionBackend.AUTO), *others)
        message = f"attention {backend} cannot run on {target.name}{where}: {reason}; usable: {', '.join(usable)}"
        raise AttentionUnavailable(message, reason=reason, usable=usable)


def choose(
    target: AttentionTarget,
    shapes: Mapping[Site, AttentionShape],
    *,
    allow_inexact: bool = False,
    cache: TrialCache | None = None,
    run: Measure | None = None,
    run_here: Measure | None = None,
) -> dict[Site, Choice]:
    """The fastest accurate backend for each site. Raises AttentionUnavailable if a site has none.

    `run` performs the trials; by default in this process on a CPU, in a subprocess on a GPU. Where no backend works there for
    a reason that may pass, such as a GPU in exclusive mode, which only this process can use, `run_here` tries torch's own
    kernels: by default in this process.
    """
    tuner = _Tuner(
        target=target,
        cache=cache or TrialCache.default(),
        run=run or _measure_on(target),
        run_here=run_here or (_measure_in_process if run is None and target.vendor != "cpu" else None),
        candidates=tuple(name for name in CANDIDATES if allow_inexact or BACKENDS[name].exact),
    )
    found = tuner.trials(list(dict.fromkeys(shapes.values())))
    return {site: _choice(shape.bucket, found[shape]) for site, shape in shapes.items()}


@dataclass(kw_only=True, slots=True, frozen=True)
class _Tuner:
    """Tries backends on a device: first those that may be fast, then what is left where none of them works."""

    target: AttentionTarget
    cache: TrialCache
    run: Measure
    run_here: Measure | None
    candidates: tuple[AttentionBackend, ...]

    def trials(self, shapes: Sequence[AttentionShape]) -> dict[AttentionShape, list[Trial]]:
        """The trials of every candidate on each shape, in the candidates' order."""
        found = {shape: self._refusals(shape) for shape in shapes}
        last = [name for name in self.candidates if self.target.vendor != "cpu" and name in LAST_RESORTS]
        for names in ([name for name in self.candidates if name not in last], last):
            self._try(names, _unserved(found), self.run)
            if self.run_here is not None:
                self._try_here(names, _unserved(found), self.run_here)
        unneeded = "it is the slowest, and tried only where no other works"
        return {
            shape: [trials.get(name) or Trial(backend=name, reason=unneeded) for name in self.candidates]
            for shape, trials in found.items()
        }

    def _refusals(self, shape: AttentionShape) -> dict[AttentionBackend, Trial]:
        """The candidates that need not be tried on a shape, each with its reason."""
        reasons = {name: BACKENDS[name].unavailable_reason(self.target, shape) for name in self.candidates}
        return {name: Trial(backend=name, reason=reason) for name, reason in reasons.items() if reason}

    def _try(self, names: Sequence[AttentionBackend], found: Found, run: Measure) -> None:
        """Add the trials of backends on shapes that have none of them yet, from the cache or by running them."""
        wanted = [(shape, name) for shape, known in found.items() for name in names if name not in known]
        jobs = list(dict.fromkeys((name, shape.bucket) for shape, name in wanted))
        made = {job: trial for job in jobs if (trial := self.cache.get(self.target, job)) is not None}
        made |= self._run([job for job in jobs if job not in made], run)
        for shape, name in wanted:
            found[shape][name] = made[name, shape.bucket]

    def _try_here(self, names: Sequence[AttentionBackend], found: Found, run: Measure) -> None:
        """Try torch's own kernels again in this process, where their failure may pass."""
        again = [
            (shape, name)
            for shape, known in found.items()
            for name in names
            if BACKENDS[name].package == "torch" and known[name].transient
        ]
        made = self._run(list(dict.fromkeys((name, shape.bucket) for shape, name in again)), run)
        for shape, name in again:
            found[shape][name] = made[name, shape.bucket]

    def _run(self, jobs: Sequence[Job], run: Measure) -> dict[Job, Trial]:
        if not jobs:
            return {}
        made = dict(zip(jobs, run(self.target, jobs), strict=True))
        self.cache.put(self.target, made)
        return made


def _unserved(found: Found) -> Found:
    """The shapes that no backend works for yet."""
    return {shape: trials for shape, trials in found.items() if not any(map(_works, trials.values()))}


def _works(trial: Trial) -> bool:
    return trial.seconds is not None


def _choice(shape: AttentionShape, trials: Sequence[Trial]) -> Choice:
    usable = [(trial.seconds, trial.backend) for trial in trials if trial.seconds is not None]
    if not usable:
        reasons = "; ".join(f"{trial.backend}: {trial.reason}" for trial in trials)
        raise AttentionUnavailable(f"no attention backend works for {shape}: {reasons}")
    return Choice(shape=shape, trials=tuple(trials), chosen=min(usable)[1])


def _measure_on(target: AttentionTarget) -> Measure:
    """GPU kernels may hang or crash, so they run in a subprocess; PyTorch's CPU kernels do not, and a process costs seconds."""
    return _measure_in_process if target.vendor == "cpu" else measure_in_subprocess


def _measure_in_process(target: AttentionTarget, jobs: Sequence[Job]) -> list[Trial]:
    return [measure(backend, target, shape) for backend, shape in jobs]


def _key(target: AttentionTarget, job: Job) -> str:
    backend, shape = job
    experimental = " aotriton-experimental" if target.aotriton_experimental else ""
    where = f"{target.name} {target.architecture} driver {target.driver or '-'}{experimental}"
    return " | ".join(
        (where, build_of_torch(), f"{backend} {BACKENDS[backend].version()}", str(target.dtype), str(shape))
    )
