"""The workers: what each holds and does, what fits where, and what a task would cost there. Pure."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ovi.config import Component
from ovi.stages import STAGES, Stage, stages_of
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.circuit_breaker import Health
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.device_profile import COMPONENTS, DeviceProfile
from ovi_ray.scheduling.events import WorkerJoined
from ovi_ray.scheduling.policies.base import Worker

_TRANSFORMER = frozenset({Component.TRANSFORMER})
_SUCCESSOR = re.compile(r"\.\d+$")


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
    slot: int
    """Its place in the arrays; used again after it is gone."""
    name: str
    device: int
    resident: frozenset[Component]
    model_name: str
    running: RunTask | None = None
    kind: int = 0
    units: float = 1.0
    """Tokens of the running task if it encodes texts."""
    started_s: float = 0.0
    work_s: float = 0.0
    """Expected seconds of the running task's work."""
    load_s: float = 0.0
    """Expected seconds of the loads before it."""
    denoises: int = 0
    """Begun since it joined."""
    decodes: int = 0
    """Done since it joined."""
    rest_until_s: float = 0.0
    """Until when it is taken out."""
    preload_failed: bool = False
    health: Health = field(default_factory=Health)
    """Of its place."""

    @property
    def place(self) -> str:
        """Where it runs: workers that follow each other there have its name with .1, .2, ... after it."""
        return _SUCCESSOR.sub("", self.name)

    @property
    def owed(self) -> int:
        """How many more clips it began to denoise than it decoded."""
        return self.denoises - self.decodes

    @property
    def expected_end_s(self) -> float:
        """When its task should end."""
        return self.started_s + self.load_s + self.work_s


class Fleet:
    """All workers that are there, by name and by number; beside them arrays for sums over all."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.workers: dict[int, WorkerState] = {}
        self.resting: dict[int, WorkerState] = {}
        """Workers that are taken out: they count for nothing."""
        self.busy = 0
        self.preloading: dict[int, int] = {}
        """Kind -> workers that load its transformer ahead of its first clip."""
        self._by_name: dict[str, WorkerState] = {}
        self._at: dict[str, WorkerState] = {}
        self._health: dict[str, Health] = {}
        self._fits: list[dict[Stage, list[bool]]] = []
        self._swaps: dict[tuple[int, frozenset[Component], str, Stage, int], Swap] = {}
        self._joined = 0
        self._free_slots: list[int] = []
        self._device = np.zeros(0, np.int64)
        self._alive = np.zeros(0, bool)
        self._end = np.zeros(0)  # expected end of the task, -inf when idle
        self._length = np.zeros(0)  # expected seconds of the task
        self._factor = np.ones(0)
        self._lacks = np.zeros((0, len(COMPONENTS)))  # 1 for a component that is not resident

    # --- membership

    def join(self, event: WorkerJoined) -> WorkerState:
        """A new worker. Raises ValueError for a name that is taken."""
        if event.worker in self._by_name:
            raise ValueError(f"worker {event.worker!r} has joined already; it must be lost first")
        device = self.costs.register(event.device)
        while len(self._fits) <= device:
            self._fits.append(self._fit_table(self.costs.profiles[len(self._fits)]))
        if not self._free_slots:
            self._grow()
        slot = self._free_slots.pop()
        worker = WorkerState(self._joined, slot, event.worker, device, event.resident, event.model_name)
        self._joined += 1
        self.workers[worker.number] = worker
        self._by_name[worker.name] = self._at[worker.place] = worker
        worker.health = self._health.setdefault(worker.place, worker.health)
        self._device[slot], self._alive[slot], self._factor[slot] = device, True, 1.0
        self._end[slot] = -np.inf
        self._lacks[slot] = [component not in worker.resident for component in COMPONENTS]
        return worker

    def _grow(self) -> None:
        old = len(self._alive)
        new = max(16, old)
        self._free_slots.extend(range(old + new - 1, old - 1, -1))
        self._device = np.append(self._device, np.zeros(new, np.int64))
        self._alive = np.append(self._alive, np.zeros(new, bool))
        self._end = np.append(self._end, np.full(new, -np.inf))
        self._length = np.append(self._length, np.zeros(new))
        self._factor = np.append(self._factor, np.ones(new))
        self._lacks = np.concatenate([self._lacks, np.ones((new, len(COMPONENTS)))])

    def leave(self, name: str) -> None:
        """The worker is gone."""
        worker = self._by_name.pop(name)
        self.workers.pop(worker.number, None)
        self.resting.pop(worker.number, None)
        self._at.pop(worker.place, None)
        self._alive[worker.slot] = False
        self._free_slots.append(worker.slot)

    def take_out(self, worker: WorkerState) -> None:
        """The worker, which is idle, counts for nothing until it is let in."""
        worker.rest_until_s = worker.health.rest_until_s
        self.resting[worker.number] = self.workers.pop(worker.number)
        self._alive[worker.slot] = False

    def let_in(self, worker: WorkerState) -> None:
        """The worker counts again."""
        self.workers[worker.number] = self.resting.pop(worker.number)
        self._alive[worker.slot] = True

    def at(self, place: str) -> WorkerState | None:
        """The worker that runs at a place now."""
        return self._at.get(place)

    def health(self, place: str) -> Health:
        """What is held against a place where a worker has run."""
        return self._health[place]

    def named(self, name: str) -> WorkerState | None:
        """The worker of this name, or None."""
        return self._by_name.get(name)

    # --- tasks begin and end

    def begin(self, worker: WorkerState, run: RunTask, kind: int, units: float, swap: Swap, now: float) -> None:
        """The worker has been given a task."""
        task = run.task
        worker.running, worker.kind, worker.units, worker.started_s = run, kind, units, now
        worker.work_s = self.work_seconds(worker, task.stage, kind, units) if task.items else 0.0
        worker.load_s = self.swap_seconds(worker.device, swap)
        if swap.components != worker.resident:
            self._lacks[worker.slot] = [component not in swap.components for component in COMPONENTS]
        worker.resident, worker.model_name = swap.components, swap.model_name
        if not task.items:
            self.preloading[kind] = self.preloading.get(kind, 0) + 1
        elif task.stage is Stage.DENOISE:
            worker.denoises += 1
        self.busy += 1
        self._end[worker.slot], self._length[worker.slot] = worker.expected_end_s, worker.load_s + worker.work_s

    def end(self, worker: WorkerState) -> None:
        """The worker's task has ended, well or not."""
        if worker.running is not None and not worker.running.task.items:
            self.preloading[worker.kind] -= 1
        worker.running = None
        self.busy -= 1
        self._end[worker.slot] = -np.inf

    def learn(self, worker: WorkerState, stage: Stage, seconds: float) -> None:
        """The worker's task took `seconds`."""
        self.costs.observe(worker.device, worker.number, stage, worker.kind, worker.units, seconds)
        self._factor[worker.slot] = self.costs.worker_factor(worker.number)

    # --- what fits

    def _fit_table(self, profile: DeviceProfile) -> dict[Stage, list[bool]]:
        return {stage: [profile.fits(stage, kind) for kind in self.costs.kinds] for stage in STAGES}

    def fits(self, device: int, stage: Stage, kind: int) -> bool:
        """Whether a class of devices can run a stage of a kind."""
        return self._fits[device][stage][kind]

    def can_denoise(self, device: int) -> bool:
        """Whether a class of devices can denoise any kind."""
        return any(self._fits[device][Stage.DENOISE])

    def missing_stages(self, kind: int) -> list[Stage]:
        """The stages of a kind that no present worker can run."""
        stages = stages_of(has_image=self.costs.kinds[kind].has_image)
        return [s for s in stages if not any(self._fits[device][s][kind] for device in self.devices())]

    def devices(self) -> list[int]:
        """Numbers of the classes of the workers that are there."""
        return [int(device) for device in np.unique(self._device[self._alive])]

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
        needed = STAGES[stage].components
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

    def view(self, worker: WorkerState) -> Worker:
        """The worker as policies see it."""
        return Worker(
            number=worker.number,
            factor=self.costs.worker_factor(worker.number),
            denoises=worker.denoises,
            owed=worker.owed,
        )

    # --- sums over all workers

    def numbers(self) -> npt.NDArray[np.int64]:
        """[workers] number of each, in the order of every array below."""
        by_slot = {worker.slot: worker.number for worker in self.workers.values()}
        return np.array([by_slot[int(slot)] for slot in np.flatnonzero(self._alive)], dtype=np.int64)

    def classes(self) -> npt.NDArray[np.int64]:
        """[workers] number of the class of each."""
        return self._device[self._alive]

    def factors(self) -> FloatArray:
        """[workers] times slower than its class."""
        return self._factor[self._alive]

    def available(self, now: float) -> FloatArray:
        """[workers] seconds until each should be free. What is late is expected to take as long again as it is late."""
        left = self._end[self._alive] - now
        late = np.maximum(-left, 0.02 * self._length[self._alive])
        return np.where(np.isneginf(left), 0.0, np.where(left > 0, left, late))

    def transformer_loads(self) -> FloatArray:
        """[workers] seconds to load a transformer, 0 for those that hold one."""
        return self._loads(_TRANSFORMER)

    def _loads(self, components: frozenset[Component]) -> FloatArray:
        device = self._device[self._alive]
        total = np.zeros(len(device))
        for position, component in enumerate(COMPONENTS):
            if component in components:
                by_class = [self.costs.load_seconds(d, frozenset({component})) for d in range(len(self._fits))]
                total += np.array(by_class)[device] * self._lacks[self._alive, position]
        return total

    def ends(self, stage: Stage, kind: int, now: float) -> FloatArray:
        """[workers] seconds in which each, after its task, would end one of a stage and kind; infinite if it cannot."""
        by_class = [
            self.costs.seconds(d, stage, kind) if self._fits[d][stage][kind] else np.inf for d in range(len(self._fits))
        ]
        work = np.array(by_class)[self._device[self._alive]] * self.factors()
        return self.available(now) + self._loads(STAGES[stage].components) + work
