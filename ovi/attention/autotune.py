"""`auto`: benchmark the backends on the job's shapes, cache the results, pick the fastest accurate backend per site.

Trials are cached on disk, keyed by all that they depend on: device, driver, torch, the backend's version, dtype and
shape. A backend that raises, hangs or is inaccurate is cached with its reason and not tried again until the key changes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ovi.attention.backends import BACKENDS, selected_kernel
from ovi.attention.benchmark import Trial, measure
from ovi.attention.subprocess_trial import Job, measure_in_subprocess
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionPlan, AttentionShape, Site
from ovi.errors import AttentionUnavailable
from ovi.files import atomic_writer, user_cache_folder

Measure = Callable[[AttentionTarget, Sequence[Job]], list[Trial]]
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
    """Trials in a JSON file. An unreadable file counts as empty; if it cannot be written, trials are repeated next time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls) -> Self:
        """The cache in the user's cache folder."""
        return cls(user_cache_folder() / "attention.json")

    def get(self, target: AttentionTarget, job: Job) -> Trial | None:
        """The cached trial of a backend on a shape; None if there is none for the current versions."""
        known = self._read().get(_key(target, job))
        return None if known is None else Trial(**{**known, "backend": job[0]})

    def put(self, target: AttentionTarget, trials: Mapping[Job, Trial]) -> None:
        """Add trials to the cache, replacing older ones with the same key."""
        rows = {_key(target, job): dataclasses.asdict(trial) for job, trial in trials.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.path) as unfinished:
                unfinished.write_text(json.dumps(self._read() | rows, indent=1), encoding="utf-8")
        except OSError:  # for example a read-only home directory
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
) -> dict[Site, Choice]:
    """The fastest accurate backend for each site. Raises AttentionUnavailable if a site has none.

    `run` performs the trials; by default in this process on a CPU, in a subprocess on a GPU.
    """
    cache = cache or TrialCache.default()
    jobs = [(name, shape) for shape in dict.fromkeys(shapes.values()) for name in CANDIDATES]
    if not allow_inexact:
        jobs = [job for job in jobs if BACKENDS[job[0]].exact]
    trials = _trials(target, jobs, cache, run or _measure_on(target))
    return {site: _choice(shape, [trials[job] for job in jobs if job[1] == shape]) for site, shape in shapes.items()}


def _trials(target: AttentionTarget, jobs: Sequence[Job], cache: TrialCache, run: Measure) -> dict[Job, Trial]:
    """The trial of every job; runs only those that are available and not cached."""
    known: dict[Job, Trial] = {}
    for job in jobs:
        if reason := BACKENDS[job[0]].unavailable_reason(target, job[1]):
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
    """GPU kernels may hang or crash, so they run in a subprocess; PyTorch's CPU kernels do not, and a process costs seconds."""
    return _measure_in_process if target.vendor == "cpu" else measure_in_subprocess


def _measure_in_process(target: AttentionTarget, jobs: Sequence[Job]) -> list[Trial]:
    return [measure(backend, target, shape) for backend, shape in jobs]


def _key(target: AttentionTarget, job: Job) -> str:
    backend, shape = job
    build = f"torch {torch.__version__} cuda {torch.version.cuda} hip {torch.version.hip}"
    experimental = " aotriton-experimental" if target.aotriton_experimental else ""
    where = f"{target.name} {target.architecture} driver {target.driver or '-'}{experimental}"
    return " | ".join((where, build, f"{backend} {BACKENDS[backend].version()}", str(target.dtype), str(shape)))
