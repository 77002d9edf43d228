"""`auto`: measure the backends on the job's own shapes, remember what came of it, take the fastest that agrees.

Trials are kept on disk under what they depend on: device, driver, torch, the backend's version, dtype and shape. One that
errs, hangs or disagrees is kept with its reason, and is not tried again until one of these changes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ovi.attention.backends import BACKENDS, torchs_kernel
from ovi.attention.benchmark import Trial, measure
from ovi.attention.subprocess_trial import Job, measure_apart
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionPlan, AttentionShape, Site
from ovi.errors import AttentionUnavailable
from ovi.files import atomic_writer, user_cache_folder

Measure = Callable[[AttentionTarget, Sequence[Job]], list[Trial]]
CANDIDATES = tuple(backend for backend in BACKENDS if backend is not AttentionBackend.SDPA)
"""What `auto` tries; torch's own choice is one of these under another name."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Choice:
    """The backend of one site and what it was chosen among."""

    shape: AttentionShape
    trials: tuple[Trial, ...]
    chosen: AttentionBackend


class TrialCache:
    """Trials on disk. A file that cannot be read is an empty one; one that cannot be written costs the measuring again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls) -> Self:
        """In the user's cache folder."""
        return cls(user_cache_folder() / "attention.json")

    def get(self, target: AttentionTarget, job: Job) -> Trial | None:
        """The trial of a backend on a shape, or None when it was never made with these versions."""
        known = self._read().get(_key(target, job))
        return None if known is None else Trial(**{**known, "backend": job[0]})

    def put(self, target: AttentionTarget, trials: Mapping[Job, Trial]) -> None:
        """Remember trials."""
        rows = {_key(target, job): dataclasses.asdict(trial) for job, trial in trials.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.path) as unfinished:
                unfinished.write_text(json.dumps(self._read() | rows, indent=1), encoding="utf-8")
        except OSError:  # a read-only home
            return

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def plan_attention(
    backend: AttentionBackend,
    target: AttentionTarget,
    shapes: Mapping[Site, AttentionShape],
    *,
    allow_inexact: bool = False,
    cache: TrialCache | None = None,
) -> AttentionPlan:
    """The backend of every site: the one that is asked for, or what `auto` finds.

    Torch's own choice (`sdpa`) is asked of torch and then forced, so that the plan is what runs. Raises
    AttentionUnavailable for a backend that cannot run, with the reason and what can.
    """
    if backend is AttentionBackend.AUTO:
        choices = choose(target, shapes, allow_inexact=allow_inexact, cache=cache)
        return AttentionPlan.of({site: choice.chosen for site, choice in choices.items()})
    for site, shape in shapes.items():
        check_available(backend, target, shape, where=f" at {site} ({shape})")
    if backend is AttentionBackend.SDPA:
        return AttentionPlan.of({site: torchs_kernel(target, shape) for site, shape in shapes.items()})
    return AttentionPlan.uniform(backend)


def check_available(backend: AttentionBackend, target: AttentionTarget, shape: AttentionShape, where: str = "") -> None:
    """Raise AttentionUnavailable when a backend cannot run such a call, with the reason and what can."""
    if reason := BACKENDS[backend].why_not(target, shape):
        usable = [name for name, other in BACKENDS.items() if not other.why_not(target, shape)]
        message = f"attention {backend} cannot run on {target.name}{where}: {reason}"
        raise AttentionUnavailable(f"{message}; what can: {', '.join((AttentionBackend.AUTO, *usable))}")


def choose(
    target: AttentionTarget,
    shapes: Mapping[Site, AttentionShape],
    *,
    allow_inexact: bool = False,
    cache: TrialCache | None = None,
    run: Measure | None = None,
) -> dict[Site, Choice]:
    """The fastest backend that agrees with the reference, for each site. Raises AttentionUnavailable when none does."""
    cache = cache or TrialCache.default()
    jobs = [(name, shape) for shape in dict.fromkeys(shapes.values()) for name in CANDIDATES]
    if not allow_inexact:
        jobs = [job for job in jobs if BACKENDS[job[0]].exact]
    trials = _trials(target, jobs, cache, run or _measure_on(target))
    return {site: _choice(shape, [trials[job] for job in jobs if job[1] == shape]) for site, shape in shapes.items()}


def _trials(target: AttentionTarget, jobs: Sequence[Job], cache: TrialCache, run: Measure) -> dict[Job, Trial]:
    """Trials of all jobs; only those that are not in the cache and that may work are run."""
    known: dict[Job, Trial] = {}
    for job in jobs:
        if reason := BACKENDS[job[0]].why_not(target, job[1]):
            known[job] = Trial(backend=job[0], reason=reason)
        elif (trial := cache.get(target, job)) is not None:
            known[job] = trial
    new = [job for job in jobs if job not in known]
    if new:
        made = dict(zip(new, run(target, new), strict=True))
        cache.put(target, made)
        known |= made
    return known


def _choice(shape: AttentionShape, trials: Sequence[Trial]) -> Choice:
    usable = [(trial.seconds, trial.backend) for trial in trials if trial.seconds is not None]
    if not usable:
        reasons = "; ".join(f"{trial.backend}: {trial.reason}" for trial in trials)
        raise AttentionUnavailable(f"no attention backend works for {shape}: {reasons}")
    return Choice(shape=shape, trials=tuple(trials), chosen=min(usable)[1])


def _measure_on(target: AttentionTarget) -> Measure:
    """GPU kernels may hang or crash, so they are tried apart; torch's own on a CPU do not, and a process costs seconds."""
    return _measure_here if target.vendor == "cpu" else measure_apart


def _measure_here(target: AttentionTarget, jobs: Sequence[Job]) -> list[Trial]:
    return [measure(backend, target, shape) for backend, shape in jobs]


def _key(target: AttentionTarget, job: Job) -> str:
    backend, shape = job
    build = f"torch {torch.__version__} cuda {torch.version.cuda} hip {torch.version.hip}"
    experimental = " aotriton-experimental" if target.aotriton_experimental else ""
    where = f"{target.name} {target.architecture} driver {target.driver or '-'}{experimental}"
    return " | ".join((where, build, f"{backend} {BACKENDS[backend].version()}", str(target.dtype), str(shape)))
