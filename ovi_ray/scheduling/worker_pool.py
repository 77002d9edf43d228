"""The workers: what each holds and runs, where it stands, and what a task would cost on it."""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from ovi.config import Component
from ovi.stages import INPUT_STAGES, STAGES, Stage, stages_of
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.capabilities import Capabilities, Swap
from ovi_ray.scheduling.circuit_breaker import DeviceHealth
from ovi_ray.scheduling.config import CircuitBreakerConfig
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.device_profile import COMPONENTS, DeviceProfile
from ovi_ray.scheduling.events import WorkerJoined
from ovi_ray.scheduling.memory_limits import MemoryLimits
from ovi_ray.scheduling.policies.base import Holding, IdleWorker
from ovi_ray.scheduling.states import WORKER_TRANSITIONS, WorkerStatus, check_transition
from ovi_ray.scheduling.task import Task
from ovi_ray.scheduling.worker_arrays import WorkerArrays

_SURPRISE = 0.05  # change of an expected time, as a share of it
_TRANSFORMER = frozenset({Component.TRANSFORMER})


@dataclass(slots=True)
class WorkerState:
    """One worker, from joining until it is lost."""

    number: int
    """From 0 in the order of joining; never reused."""
    position: int
    """In the pool's arrays; reused after the worker is lost."""
    name: str
    slot: str
    """The device that it occupies, and its replacements after it."""
    device_class: int
    """Of the device without the stages that it is taken off."""
    profile: DeviceProfile
    """Of the device, with all of its stages."""
    health: DeviceHealth
    """Of the slot."""
    resident: frozenset[Component]
    model_name: str
    node: str = ""
    """The machine, where it can share a denoise with others there."""
    status: WorkerStatus = WorkerStatus.IDLE
    running: RunTask | None = None
    """Not None exactly while BUSY."""
    kind: int = 0
    """Of the running or last task."""
    units: float = 1.0
    """Tokens of the running or last task if it was batched."""
    started_s: float = 0.0
    work_s: float = 0.0
    """Expected seconds of the running task's work."""
    load_s: float = 0.0
    """Expected seconds of the loads before it."""
    is_copy: bool = False
    """Another worker began its task before, or it assists another's."""
    assisted_from_s: float = math.inf
    """When another worker begins to compute the negative passes of its task; infinite while none does."""
    saved_s: float = 0.0
    """Seconds that workers which assisted its task until now have saved."""
    is_ending: bool = False
    """The worker that assisted its task was let go at its end: the result is on its way."""
    superseded_s: float = math.inf
    """When another worker that runs the same task should end it."""
    writing: list[Task] = field(default_factory=list)
    """Tasks that its device is done with, whose files are still being written."""
    preload_failed: bool = False
    """Its last task was a preload that failed: it is not tried again until another task has ended."""

    @property
    def expected_end_s(self) -> float:
        """When its task should end."""
        return self.started_s + self.load_s + self.work_s

    def runs(self, stage: Stage) -> bool:
        """Whether its task is of a stage."""
        return self.running is not None and self.running.task.stage is stage

    @property
    def is_assisted(self) -> bool:
        """Whether another worker computes half of its task, or is about to."""
        return self.assisted_from_s < math.inf

    @property
    def assists(self) -> bool:
        """Whether its task is part of another worker's."""
        return self.running is not None and self.running.task.assists

    def move(self, status: WorkerStatus) -> None:
        """Change the status. Raises IllegalTransition."""
        allowed = WORKER_TRANSITIONS[self.status]
        if status not in allowed:
            check_transition(allowed, f"worker {self.name}", self.status, status)
        self.status = status


class WorkerPool:
    """All workers that are present, with the health of all slots that ever had one."""

    def __init__(self, costs: CostModel, breaker_config: CircuitBreakerConfig | None = None) -> None:
        self.costs = costs
        self.capabilities = Capabilities(costs)
        self.workers: dict[int, WorkerState] = {}
        """Number -> worker."""
        self.expected: set[str] = set()
        """Slots without a worker that may get one."""
        self.busy = 0
        self.preloading: dict[int, int] = {}
        """Kind -> workers that load its transformer ahead of its first clip."""
        self.arrays = WorkerArrays()
        self.memory_limits = MemoryLimits()
        self._breaker_config = breaker_config or CircuitBreakerConfig()
        self._by_name: dict[str, WorkerState] = {}
        self._by_slot: dict[str, WorkerState] = {}
        self._health: dict[str, DeviceHealth] = {}
        self._joined = 0

    # --- membership

    def join(self, event: WorkerJoined) -> WorkerState:
        """Add an idle worker. Raises ValueError for a name or a slot that is taken."""
        if event.worker in self._by_name:
            raise ValueError(f"worker {event.worker!r} has joined already; expected WorkerLost first")
        if event.slot in self._by_slot:
            occupant = self._by_slot[event.slot].name
            raise ValueError(f"slot {event.slot!r} of worker {event.worker!r} is occupied by {occupant!r}")
        device_class = self.capabilities.register(event.device)
        number, self._joined = self._joined, self._joined + 1
        worker = WorkerState(
            number=number,
            position=self.arrays.add(number, device_class, event.resident),
            name=event.worker,
            slot=event.slot,
            device_class=device_class,
            profile=event.device,
            health=self._health.setdefault(event.slot, DeviceHealth(event.slot, self._breaker_config)),
            resident=event.resident,
            model_name=event.model_name,
            node=event.node,
        )
        self.workers[number] = self._by_name[worker.name] = self._by_slot[worker.slot] = worker
        self.expected.discard(worker.slot)
        return worker

    def remove(self, worker: WorkerState) -> None:
        """The worker, which is not busy, is lost. Another one may come in its slot."""
        worker.move(WorkerStatus.LOST)
        del self.workers[worker.number], self._by_name[worker.name], self._by_slot[worker.slot]
        self.arrays.free(worker.position)
        self.expected.add(worker.slot)

    def apply_health(self, worker: WorkerState) -> None:
        """Take an idle worker off the stages whose breaker is open: it counts as a device that cannot run them."""
        allowed = worker.profile.stages - worker.health.open_stages
        profile = worker.profile
        if allowed != profile.stages:
            profile = dataclasses.replace(profile, stages=allowed)
        worker.device_class = self.capabilities.register(profile)
        self.arrays.set_class(worker.position, worker.device_class)

    def find(self, name: str) -> WorkerState | None:
        """The worker of this name, or None."""
        return self._by_name.get(name)

    def occupant(self, slot: str) -> WorkerState | None:
        """The worker in a slot, or None."""
        return self._by_slot.get(slot)

    def health(self, slot: str) -> DeviceHealth:
        """The circuit breakers of a slot that has had a worker."""
        return self._health[slot]

    # --- tasks

    def begin(self, worker: WorkerState, run: RunTask, kind: int, units: float, swap: Swap, now: float) -> None:
        """An idle worker gets a task."""
        task = run.task
        worker.move(WorkerStatus.ASSISTING if task.assists else WorkerStatus.BUSY)
        worker.running, worker.kind, worker.units, worker.started_s = run, kind, units, now
        worker.is_copy, worker.superseded_s = task.assists, math.inf
        worker.assisted_from_s, worker.saved_s, worker.is_ending = math.inf, 0.0, False
        worker.work_s = self.work_seconds(worker, task.stage, kind, units) if task.items else 0.0
        worker.load_s = self.capabilities.swap_seconds(worker.device_class, swap)
        if swap.components != worker.resident:
            self.arrays.set_resident(worker.position, swap.components)
        worker.resident, worker.model_name = swap.components, swap.model_name
        if not task.items:
            self.preloading[kind] = self.preloading.get(kind, 0) + 1
        self.busy += 1
        self._set_task(worker)

    def end(self, worker: WorkerState) -> None:
        """A busy worker's task has succeeded, failed or been lost."""
        worker.move(WorkerStatus.IDLE)
        if worker.running is not None and not worker.running.task.items:
            self.preloading[worker.kind] -= 1
        worker.running = None
        self.busy -= 1
        self.arrays.set_idle(worker.position)

    @property
    def has_writes(self) -> bool:
        """Whether any worker still writes the file of a task that its device is done with."""
        return any(worker.writing for worker in self.workers.values())

    def is_written(self, stage: Stage, item: int) -> bool:
        """Whether a worker writes the file of an item now."""
        return any(task.stage is stage and item in task.items for w in self.workers.values() for task in w.writing)

    def supersede(self, worker: WorkerState, end_s: float, *, is_copy: bool) -> None:
        """Another worker runs the same task, and should end it at `end_s`."""
        worker.is_copy, worker.superseded_s = is_copy, end_s
        self._set_task(worker)

    def assist(self, leader: WorkerState, helper: WorkerState, share: float) -> None:
        """The helper, which has begun its task, will compute half of each of the leader's steps, which take `share` as long."""
        leader.assisted_from_s = max(helper.started_s + helper.load_s, leader.started_s + leader.load_s)
        leader.work_s -= (1 - share) * max(0.0, leader.expected_end_s - leader.assisted_from_s)
        helper.work_s = max(0.0, leader.expected_end_s - helper.started_s - helper.load_s)
        self._set_task(leader)
        self._set_task(helper)

    def end_assist(self, leader: WorkerState, share: float, now: float) -> None:
        """The leader goes on alone, or has ended."""
        left_s = max(0.0, leader.expected_end_s - max(now, leader.assisted_from_s))
        leader.saved_s += max(0.0, now - leader.assisted_from_s) * (1 / share - 1)
        leader.work_s += left_s * (1 / share - 1)
        leader.assisted_from_s = math.inf
        if leader.running is not None:
            self._set_task(leader)

    def _set_task(self, worker: WorkerState) -> None:
        end_s = min(worker.expected_end_s, worker.superseded_s)
        self.arrays.set_task(worker.position, end_s, worker.load_s + worker.work_s)

    def learn(self, worker: WorkerState, stage: Stage, seconds: float) -> None:
        """The worker's last task took `seconds`. If that is a surprise, running tasks of its class are expected anew.

        Of a task that was assisted, the seconds that it would have taken alone are learned; what is expected of one that is
        being assisted stays.
        """
        seconds += worker.saved_s
        costs = self.costs
        before = costs.seconds(worker.device_class, stage, worker.kind)
        costs.observe(worker.device_class, worker.number, stage, worker.kind, worker.units, seconds)
        self.arrays.set_factor(worker.position, costs.worker_factor(worker.number))
        if abs(costs.seconds(worker.device_class, stage, worker.kind) / before - 1) > _SURPRISE:
            for other in self.workers.values():
                if not other.runs(stage) or other.assists or other.is_assisted:
                    continue
                if other.running is not None and other.running.task.items:
                    alone_s = self.work_seconds(other, stage, other.kind, other.units)
                    other.work_s = max(0.0, alone_s - other.saved_s)
                    self._set_task(other)

    # --- what fits

    def fits(self, worker: WorkerState, stage: Stage, kind: int) -> bool:
        """Whether a worker can run a stage of a kind."""
        return self.capabilities.fits(worker.device_class, stage, kind)

    def memory_gb(self, worker: WorkerState) -> float:
        """Memory of the worker's device."""
        return worker.profile.memory_gb

    def apply_memory_limits(self) -> bool:
        """Leave the kinds that several devices ran out of memory at to larger ones, if there is one that did not fail.

        Returns whether that changed anything.
        """
        old, learned = self.capabilities.limits, self.memory_limits.limits()
        if not old and not learned:
            return False
        self.capabilities.limits = {}  # so that `fits` is what the profiles say
        self.capabilities.limits = {
            (stage, kind): gb
            for (stage, kind), gb in learned.items()
            if any(
                self.memory_gb(w) > gb and self.fits(w, stage, kind) and w.health.of(stage).is_trusted
                for w in self.workers.values()
            )
        }
        return old != self.capabilities.limits

    def present_classes(self) -> list[int]:
        """Device classes of the workers in service."""
        return [int(device_class) for device_class in np.unique(self.arrays.classes())]

    def missing_stages(self, kind: int) -> list[Stage]:
        """Stages of a kind that no worker in service can run."""
        classes = self.present_classes()
        stages = stages_of(has_image=self.costs.kinds[kind].has_image)
        return [s for s in stages if not any(self.capabilities.fits(c, s, kind) for c in classes)]

    def why_nowhere(self, stage: Stage, kind: int) -> str:
        """Why no worker in service can run a stage of a kind, for users."""
        clip = self.costs.kinds[kind]
        reasons = [self.costs.profiles[device_class].why_not(stage, clip) for device_class in self.present_classes()]
        return f"no device can run {stage} of {clip}: {'; '.join(reasons) or 'there are no devices'}"

    # --- what a task costs

    def swap(self, worker: WorkerState, stage: Stage, kind: int, *, alone: bool = False) -> Swap:
        """The swap of a worker's components for a task."""
        return self.capabilities.swap(worker.device_class, worker.resident, worker.model_name, stage, kind, alone=alone)

    def fastest_s(self, stage: Stage, kind: int) -> float:
        """Expected seconds of a task's work on the fastest class in service; 0 where none can run it."""
        able = [c for c in self.present_classes() if self.capabilities.fits(c, stage, kind)]
        return min((self.costs.seconds(c, stage, kind) for c in able), default=0.0)

    def swap_seconds(self, worker: WorkerState, stage: Stage, kind: int) -> float:
        """Expected seconds of that swap."""
        return self.capabilities.swap_seconds(worker.device_class, self.swap(worker, stage, kind))

    def work_seconds(self, worker: WorkerState, stage: Stage, kind: int, units: float = 1.0) -> float:
        """Expected seconds of a task's work on a worker; `units` are tokens when the stage is batched."""
        return self.costs.task_seconds(worker.device_class, worker.number, stage, kind, units)

    def view(self, worker: WorkerState) -> IdleWorker:
        """The worker as policies see it."""
        return IdleWorker(number=worker.number, factor=self.costs.worker_factor(worker.number))

    # --- for all workers in service

    def transformer_loads(self) -> FloatArray:
        """[workers] seconds to load a transformer, 0 where one is resident."""
        return self._load_seconds(_TRANSFORMER)

    def _load_seconds(self, components: frozenset[Component]) -> FloatArray:
        classes = self.arrays.classes()
        total = np.zeros(len(classes))
        for component in (c for c in COMPONENTS if c in components):
            one = frozenset({component})
            by_class = np.array([self.costs.load_seconds(c, one) for c in self.capabilities.classes])
            total += by_class[classes] * self.arrays.lacks(component)
        return total

    def holdings(self) -> list[Holding]:
        """[workers] what is resident on each after its task."""
        return [Holding(w.resident, w.model_name) for w in self._in_order()]

    def running_kinds(self) -> list[tuple[Stage, int] | None]:
        """[workers] stage and kind of the task of each; None when it is idle, or its task has no result of its own."""
        return [
            (w.running.task.stage, w.kind) if w.running and w.running.task.items and not w.is_copy else None
            for w in self._in_order()
        ]

    def _in_order(self) -> list[WorkerState]:
        return [self.workers[number] for number in self.arrays.numbers().tolist()]

    def first_input_s(self, now: float) -> float:
        """Seconds until the first input that is being encoded should be ready; 0 when there is none."""
        runs = [(w.running, w.expected_end_s) for w in self.workers.values()]
        ends = [end for run, end in runs if run and run.task.items and run.task.stage in INPUT_STAGES]
        return max(0.0, min(ends, default=now) - now)

    def swap_of(self, device_class: int, holding: Holding, stage: Stage, kind: int) -> tuple[float, Holding]:
        """Seconds of the swap before a task on a device that holds so much, and what it holds afterwards."""
        swap = self.capabilities.swap(device_class, holding.components, holding.model_name, stage, kind)
        return self.capabilities.swap_seconds(device_class, swap), Holding(swap.components, swap.model_name)

    def end_times(self, stage: Stage, kind: int, now: float, units: float = 1.0) -> FloatArray:
        """[workers] seconds in which each, after its task, would end one of a stage and kind; infinite where it cannot.

        `units` are tokens when the stage is batched.
        """
        return self._starts(stage, now) + self._works(stage, kind, units)

    def tasks_by(self, seconds: float, stage: Stage, kind: int, now: float, units: float, but: int) -> int:
        """The number of tasks of a stage and kind that all workers but one, given by its number, could end within `seconds`."""
        left = seconds - self._starts(stage, now)
        doubts = np.array([self.costs.doubt(c, stage) for c in self.capabilities.classes])[self.arrays.classes()]
        tasks = np.floor(left / np.maximum(self._works(stage, kind, units) * doubts, 1e-9))
        return int(np.maximum(tasks, 0)[self.arrays.numbers() != but].sum())

    def _starts(self, stage: Stage, now: float) -> FloatArray:
        """[workers] seconds until each could begin a task of a stage."""
        return self.arrays.available(now) + self._load_seconds(STAGES[stage].components)

    def _works(self, stage: Stage, kind: int, units: float) -> FloatArray:
        """[workers] seconds of work of a task on each, infinite where it cannot."""
        fits, seconds = self.capabilities.fits, self.costs.seconds
        by_class = np.array(
            [seconds(c, stage, kind) * units if fits(c, stage, kind) else np.inf for c in self.capabilities.classes]
        )
        if STAGES[stage].batched:
            by_class += [profile.task_overhead_s for profile in self.costs.profiles]
        return by_class[self.arrays.classes()] * self.arrays.factors()
