"""The workers: what each holds and does, what fits where, and what a task would cost there. Pure."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ovi_ray.costs import COMPONENTS, STAGES, CostModel, DeviceProfile
from ovi_ray.events import RunTask, WorkerJoined
from ovi_ray.policies import Worker
from ovi_ray.stages import STAGE_COMPONENTS, Component, Stage

_TRANSFORMER = frozenset({Component.TRANSFORMER})


class Swap(NamedTuple):
    """What changes in a worker's memory before a task."""

    components: frozenset[Component]
    """Resident during the task."""
    loads: frozenset[Component]
    unloads: int
    model_name: str
    """The model whose transformer is then resident."""


@dataclass(slots=True)
class WorkerState:
    """One worker, as long as it lives."""

    number: int
    name: str
    device: int
    resident: frozenset[Component]
    model_name: str
    running: RunTask | None = None
    kind: int = 0
    started_s: float = 0.0
    work_s: float = 0.0
    """Expected seconds of the running task's work."""
    load_s: float = 0.0
    """Expected seconds of the loads before it."""
    units: float = 1.0
    """Tokens of the running task if it encodes texts."""
    copied: bool = False
    """Another worker runs a copy of its task."""
    started: int = 0
    decoded: int = 0
    rest_until_s: float = 0.0
    failed_items: set[int] = field(default_factory=set)
    """Items that failed here since the last success."""
    rests: int = 0

    def available_in(self, now: float) -> float:
        """Seconds until it is expected to be free. What is overdue is expected to take as long again as it is late."""
        if self.running is None:
            return 0.0
        expected = self.load_s + self.work_s
        left = self.started_s + expected - now
        return left if left > 0 else max(-left, 0.02 * expected)


class Fleet:
    """All workers that are there, by name and by number."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.workers: dict[int, WorkerState] = {}
        self._by_name: dict[str, WorkerState] = {}
        self._fits: list[dict[Stage, list[bool]]] = []
        self._swaps: dict[tuple[int, frozenset[Component], str, Stage, int], Swap] = {}
        self._joined = 0
        self.busy = 0

    # --- membership

    def join(self, event: WorkerJoined) -> WorkerState:
        """A new worker. Raises ValueError for a name that is taken."""
        if event.worker in self._by_name:
            raise ValueError(f"worker {event.worker!r} has joined already; it must be lost first")
        device = self.costs.register(event.device)
        while len(self._fits) <= device:
            self._fits.append(self._fit_table(self.costs.profiles[len(self._fits)]))
        worker = WorkerState(self._joined, event.worker, device, event.resident, event.model_name)
        self._joined += 1
        self.workers[worker.number] = worker
        self._by_name[worker.name] = worker
        return worker

    def leave(self, name: str) -> WorkerState | None:
        """The worker that is gone, or None when it was not there."""
        worker = self._by_name.pop(name, None)
        if worker is not None:
            del self.workers[worker.number]
        return worker

    def named(self, name: str) -> WorkerState | None:
        """The worker of this name, or None."""
        return self._by_name.get(name)

    # --- what fits

    def _fit_table(self, profile: DeviceProfile) -> dict[Stage, list[bool]]:
        return {stage: [profile.fits(stage, kind) for kind in self.costs.kinds] for stage in STAGES}

    def fits(self, device: int, stage: Stage, kind: int) -> bool:
        """Whether a class of devices can run a stage of a kind."""
        return self._fits[device][stage][kind]

    def anyone_fits(self, stage: Stage, kind: int) -> bool:
        """Whether a worker that is there can run a stage of a kind."""
        return any(self._fits[device][stage][kind] for device in self.devices())

    def devices(self) -> list[int]:
        """Numbers of the classes of the workers that are there."""
        return sorted({worker.device for worker in self.workers.values()})

    def why_nowhere(self, stage: Stage, kind: int) -> str:
        """Why no worker can run a stage of a kind."""
        clip = self.costs.kinds[kind]
        reasons = [self.costs.profiles[device].why_not(stage, clip) for device in self.devices()]
        return f"no device can run {stage} of {clip}: {'; '.join(reasons) or 'there are no devices'}"

    # --- what it costs

    def swap(self, worker: WorkerState, stage: Stage, kind: int, *, alone: bool = False) -> Swap:
        """The components for a task: what it needs, and as much of what is there as fits beside it."""
        if alone:
            return self._swap(worker.device, worker.resident, worker.model_name, stage, kind, alone=True)
        key = (worker.device, worker.resident, worker.model_name, stage, kind)
        if key not in self._swaps:
            self._swaps[key] = self._swap(*key)
        return self._swaps[key]

    def _swap(
        self, device: int, resident: frozenset[Component], held: str, stage: Stage, kind: int, *, alone: bool = False
    ) -> Swap:
        profile, clip = self.costs.profiles[device], self.costs.kinds[kind]
        needed = STAGE_COMPONENTS[stage]
        wrong_model = stage is Stage.DENOISE and held != clip.model_name
        keepable = resident - {Component.TRANSFORMER} if wrong_model else resident
        kept = needed
        for component in sorted(keepable - needed, key=lambda c: (-profile.load_seconds(c), COMPONENTS.index(c))):
            if not alone and profile.needed_gb(stage, clip, kept | {component}) <= profile.memory_gb:
                kept |= {component}
        model_name = clip.model_name if stage is Stage.DENOISE else held
        if Component.TRANSFORMER not in kept:
            model_name = ""
        return Swap(kept, needed - keepable, len(resident - (kept & keepable)), model_name)

    def swap_seconds(self, device: int, swap: Swap) -> float:
        """Expected seconds of the unloads and loads of a swap."""
        return self.costs.load_seconds(device, swap.loads) + swap.unloads * self.costs.profiles[device].unload_s

    def work_seconds(self, worker: WorkerState, stage: Stage, kind: int, units: float = 1.0) -> float:
        """Expected seconds of a task on a worker; `units` are tokens for texts."""
        return self.costs.task_seconds(worker.device, worker.number, stage, kind, units)

    def view(self, worker: WorkerState, now: float) -> Worker:
        """The worker as policies see it."""
        load_s = (
            0.0 if Component.TRANSFORMER in worker.resident else self.costs.load_seconds(worker.device, _TRANSFORMER)
        )
        return Worker(
            number=worker.number,
            device=worker.device,
            factor=self.costs.worker_factor(worker.number),
            available_s=worker.available_in(now),
            load_s=load_s,
            started=worker.started,
            owed=worker.started - worker.decoded,
        )

    def class_seconds(self, device: int, stage: Stage, kind: int, units: float = 1.0) -> float:
        """Expected seconds on a typical device of a class, infinite where it does not fit."""
        if not self._fits[device][stage][kind]:
            return math.inf
        return self.costs.seconds(device, stage, kind) * units
