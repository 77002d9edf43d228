"""The only place that waits on Ray: orders go out to the workers, events come back.

Every worker is one actor. A worker that dies is reported lost and replaced under a new name, until its place has failed too
often without finishing anything. What tasks give (embeddings, latents) stays in the object store; the executor holds the
references.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from ovi.config import Component
from ovi_ray.events import DataKey, DataLost, Event, FailureKind, Task, TaskDone, TaskFailed, WorkerLost
from ovi_ray.orders import Activity, Order, Report, Work, WorkerInfo
from ovi_ray.worker import CONTROL, Worker, WorkerConfig

MAX_BARREN_LIVES = 5  # workers that may die in one place, one after the other, without finishing a task


@dataclass(kw_only=True, slots=True, frozen=True)
class Placement:
    """Where a worker goes: what Ray must reserve for it."""

    config: WorkerConfig
    num_cpus: float
    num_gpus: float


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerStarted:
    """An actor answers: its device is known."""

    worker: str
    info: WorkerInfo


@dataclass(kw_only=True, slots=True, frozen=True)
class Outcome:
    """An event for the scheduler and, for a task that ended, its report."""

    event: Event
    report: Report | None = None


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A place for a worker and the actor that fills it now."""

    placement: Placement
    name: str
    actor: Any
    lives: int = 1
    """Actors that have filled it."""
    barren: int = 0
    """Of the last ones, how many died without finishing a task."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Running:
    worker: str
    task: Task
    order: Order
    inputs: tuple[DataKey, ...]
    outputs: dict[DataKey, ray.ObjectRef]


class Executor:
    """Runs tasks on Ray actors. `ray.init` has been called."""

    def __init__(self, placements: Sequence[Placement]) -> None:
        self._slots: dict[str, _Slot] = {}
        self._starting: dict[ray.ObjectRef, str] = {}
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._data: dict[DataKey, ray.ObjectRef] = {}
        self._asked: dict[ray.ObjectRef, str] = {}
        self._activities: dict[str, Activity] = {}
        self._numbers = itertools.count(1)
        self.last_death = ""
        """Why the last worker died, as Ray tells it."""
        for index, placement in enumerate(placements):
            self._launch(_Slot(placement=placement, name=f"w{index}", actor=None))

    @property
    def is_empty(self) -> bool:
        """No worker is alive or coming."""
        return not self._slots

    def run(
        self,
        worker: str,
        task: Task,
        work: Work,
        *,
        model_name: str,
        components: frozenset[Component],
        inputs: Sequence[DataKey],
        outputs: Sequence[DataKey],
    ) -> None:
        """Give a worker a task. `inputs` are what it needs, in order; `outputs` are the names of what it gives."""
        order = Order(number=next(self._numbers), work=work, model_name=model_name, components=components)
        actor = self._slots[worker].actor
        arguments = [self._data[key] for key in inputs]
        returned = actor.run.options(num_returns=1 + len(outputs)).remote(order, *arguments)
        report, *given = returned if outputs else [returned]
        self._running[report] = _Running(
            worker=worker,
            task=task,
            order=order,
            inputs=tuple(inputs),
            outputs=dict(zip(outputs, given, strict=True)),
        )

    def stop(self, worker: str, task: Task) -> None:
        """Ask a worker to stop a task if it can."""
        for running in self._running.values():
            if running.worker == worker and running.task == task:
                self._slots[worker].actor.stop.remote(running.order.number)

    def drop(self, key: DataKey) -> None:
        """Release what a task gave."""
        self._data.pop(key, None)

    def poll(self, timeout_s: float) -> list[WorkerStarted | Outcome]:
        """What has happened, waiting at most `timeout_s` for anything to happen."""
        waiting = [*self._starting, *self._running]
        if not waiting:
            return []
        first, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        if not first:
            return []
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        happened: list[WorkerStarted | Outcome] = []
        for ref in ready:
            if ref in self._starting:
                happened += self._collect_start(ref)
            elif ref in self._running:  # not swept away by its worker's loss just now
                happened += self._collect_task(ref)
        return happened

    def activities(self) -> dict[str, Activity]:
        """How far each busy worker was when it last answered; asks again, and waits for nobody."""
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for ref in answered:
            worker = self._asked.pop(ref)
            if (activity := _answer(ref)) is not None:
                self._activities[worker] = activity
        busy = {running.worker for running in self._running.values()}
        for worker in busy - set(self._asked.values()):
            self._asked[self._slots[worker].actor.activity.remote()] = worker
        return {worker: self._activities[worker] for worker in busy if worker in self._activities}

    def shutdown(self) -> None:
        """Stop every worker now."""
        for slot in self._slots.values():
            ray.kill(slot.actor, no_restart=True)
        self._slots.clear()
        self._starting.clear()
        self._running.clear()
        self._data.clear()

    # -- workers ---------------------------------------------------------------------------------------------------

    def _launch(self, slot: _Slot) -> None:
        actor_class = ray.remote(concurrency_groups={CONTROL: 1})(Worker).options(
            num_cpus=slot.placement.num_cpus,
            num_gpus=slot.placement.num_gpus,
            max_restarts=0,  # it would come back without a word: a new one joins under a new name instead
        )
        slot.actor = actor_class.remote(slot.placement.config)
        self._slots[slot.name] = slot
        self._starting[slot.actor.describe.remote()] = slot.name

    def _collect_start(self, ref: ray.ObjectRef) -> list[WorkerStarted | Outcome]:
        worker = self._starting.pop(ref)
        try:
            return [WorkerStarted(worker=worker, info=ray.get(ref))]
        except RayError as error:
            self._replace(worker, error)
            return []

    def _lose(self, worker: str, error: RayError) -> list[WorkerStarted | Outcome]:
        self._running = {ref: running for ref, running in self._running.items() if running.worker != worker}
        self._replace(worker, error)
        return [Outcome(event=WorkerLost(worker=worker))]

    def _replace(self, worker: str, error: RayError) -> None:
        self.last_death = str(error)
        slot = self._slots.pop(worker)
        if slot.barren + 1 < MAX_BARREN_LIVES:
            name = f"{worker.partition('.')[0]}.{slot.lives}"
            self._launch(
                _Slot(placement=slot.placement, name=name, actor=None, lives=slot.lives + 1, barren=slot.barren + 1)
            )

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _collect_task(self, ref: ray.ObjectRef) -> list[WorkerStarted | Outcome]:
        running = self._running.pop(ref)
        try:
            report: Report = ray.get(ref)
        except RayActorError as error:
            return self._lose(running.worker, error)
        except RayError as error:
            return self._inputs_lost(running, error)
        return [self._ended(running, report)]

    def _ended(self, running: _Running, report: Report) -> Outcome:
        if report.failure is not None:
            failed = TaskFailed(
                worker=running.worker,
                task=running.task,
                kind=report.failure.kind,
                message=report.failure.message,
            )
            return Outcome(event=failed, report=report)
        self._slots[running.worker].barren = 0
        self._data.update(running.outputs)
        done = TaskDone(
            worker=running.worker, task=running.task, seconds=report.seconds, load_seconds=report.load_seconds
        )
        return Outcome(event=done, report=report)

    def _inputs_lost(self, running: _Running, error: RayError) -> list[WorkerStarted | Outcome]:
        """An embedding or latent went down with its node: it is made again, and the task is nobody's fault."""
        lost = [key for key in running.inputs if not self._is_there(key)]
        for key in lost:
            self.drop(key)
        kind = FailureKind.CANCELLED if lost else FailureKind.ERROR
        failed = TaskFailed(worker=running.worker, task=running.task, kind=kind, message=str(error))
        return [*(Outcome(event=DataLost(key=key)) for key in lost), Outcome(event=failed)]

    def _is_there(self, key: DataKey) -> bool:
        ready, _ = ray.wait([self._data[key]], timeout=0, fetch_local=False)
        return bool(ready)


def _answer(ref: ray.ObjectRef) -> Activity | None:
    try:
        return ray.get(ref)
    except RayError:  # its death is seen where its task is
        return None
