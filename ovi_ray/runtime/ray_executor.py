"""The only place that waits on Ray: orders go out to the workers, events come back.

Every worker is one actor. A worker that dies is reported lost and replaced under a new name, until its place has failed too
often without finishing anything. What tasks give (embeddings, latents) stays in the object store; the executor holds the
references.
"""

import itertools
import os
import signal
import socket
import time
from collections.abc import Hashable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError, RayError

from ovi.config import Component
from ovi_ray.protocol.messages import Activity, Order, Report, Work, WorkerInfo
from ovi_ray.runtime.executor import Happened, Outcome, WorkerReplaced, WorkerStarted
from ovi_ray.runtime.placement import Placement
from ovi_ray.scheduling.events import DataLost, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, FailureKind, Task
from ovi_ray.workers.actor import CONTROL, Worker

ASK_S = 0.5  # between two questions to a busy worker of how far it is
SILENCE_S = 120.0  # without an answer to one, after which a worker is frozen; a load may hold the answer up for a while
MAX_BARREN = 5  # starts and different tasks that workers may die at in one place, one after the other, finishing none
FETCH_S = 10.0  # for a look at whether something is still in the object store
NODE_DEATHS = ("its node has died", "actor's node was terminated")  # Ray has only words for it


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A place for a worker and the actor that fills it now."""

    placement: Placement
    name: str
    actor: Any
    info: WorkerInfo | None = None
    """Known once the actor answers."""
    lives: int = 1
    """Actors that have filled it."""
    barren: frozenset[Hashable] = frozenset()
    """What the last ones died at, none of them having finished a task: each task once, and each start."""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Question:
    """How far a worker is, asked of it and not answered yet."""

    worker: str
    asked_at: float


@dataclass(kw_only=True, slots=True, frozen=True)
class _Running:
    worker: str
    task: Task
    order: Order
    inputs: tuple[DataKey, ...]
    outputs: dict[DataKey, ray.ObjectRef]


class Executor:
    """Runs tasks on Ray actors. `ray.init` has been called."""

    def __init__(self, placements: Sequence[Placement], *, silence_s: float = SILENCE_S) -> None:
        """A busy worker that does not answer for `silence_s` is killed and replaced."""
        self._silence_s = silence_s
        self._slots: dict[str, _Slot] = {}
        self._starting: dict[ray.ObjectRef, str] = {}
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._data: dict[DataKey, ray.ObjectRef] = {}
        self._asked: dict[ray.ObjectRef, _Question] = {}
        self._asked_at = float("-inf")
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

    def stop(self, worker: str, task: Task, *, save: bool = False) -> None:
        """Ask a worker to stop a task if it can; `save` makes it keep how far a denoise is."""
        for running in self._running.values():
            if running.worker == worker and running.task == task:
                self._slots[worker].actor.stop.remote(running.order.number, save)

    def holds(self, key: DataKey) -> bool:
        """Whether the object store has what a task gave."""
        return key in self._data

    def drop(self, key: DataKey) -> None:
        """Release what a task gave."""
        self._data.pop(key, None)

    def poll(self, timeout_s: float) -> list[Happened]:
        """What has happened, waiting at most `timeout_s` for anything to happen."""
        waiting = [*self._starting, *self._running]
        if not waiting:
            time.sleep(timeout_s)  # workers rest: there is nothing to wait for but time
            return []
        first, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        self._ask_busy()
        if not first:
            return self._silent()
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        happened: list[Happened] = []
        for ref in ready:
            if ref in self._starting:
                happened += self._collect_start(ref)
            elif ref in self._running:  # not swept away by its worker's loss just now
                happened += self._collect_task(ref)
        return happened + self._silent()

    def activities(self) -> dict[str, Activity]:
        """How far each busy worker was when it last answered."""
        self._ask_busy()
        busy = {running.worker for running in self._running.values()}
        return {worker: self._activities[worker] for worker in busy if worker in self._activities}

    def shutdown(self) -> None:
        """Stop every worker now."""
        for slot in self._slots.values():
            _kill(slot)
        self._slots.clear()
        self._starting.clear()
        self._running.clear()
        self._data.clear()

    # -- workers ---------------------------------------------------------------------------------------------------

    def _launch(self, slot: _Slot) -> None:
        actor_class = ray.remote(concurrency_groups={CONTROL: 1})(Worker).options(
            num_cpus=slot.placement.num_cpus,
            num_gpus=slot.placement.num_gpus,
            label_selector=slot.placement.labels or None,
            runtime_env={"env_vars": slot.placement.environment} if slot.placement.environment else None,
            max_restarts=0,  # it would come back without a word: a new one joins under a new name instead
        )
        slot.actor = actor_class.remote(slot.placement.config)
        self._slots[slot.name] = slot
        self._starting[slot.actor.describe.remote()] = slot.name

    def _collect_start(self, ref: ray.ObjectRef) -> list[Happened]:
        worker = self._starting.pop(ref)
        try:
            info: WorkerInfo = ray.get(ref)
            self._slots[worker].info = info
            return [WorkerStarted(worker=worker, info=info)]
        except RayError as error:
            self.last_death = str(error)
            reason = str(error).strip().splitlines()[-1].strip()
            died_at = set() if _is_loss_of_node(error) else {self._slots[worker].lives}
            return [self._replace(worker, f"cannot be started ({reason})", died_at)]

    def _lose(self, worker: str, why: str, died_at: Set[Hashable]) -> list[Happened]:
        """`died_at` is what it was at, and nothing where it went down with its machine."""
        ray.kill(self._slots[worker].actor, no_restart=True)  # out of reach, it would go on beside its replacement
        self._running = {ref: running for ref, running in self._running.items() if running.worker != worker}
        self._asked = {ref: question for ref, question in self._asked.items() if question.worker != worker}
        lost = Outcome(event=WorkerLost(worker=worker, crashed=bool(died_at)))
        return [lost, self._replace(worker, why, died_at)]

    def _replace(self, worker: str, why: str, died_at: Set[Hashable]) -> WorkerReplaced:
        slot = self._slots.pop(worker)
        barren = slot.barren | died_at
        if len(barren) >= MAX_BARREN:
            return WorkerReplaced(worker=worker, why=why, successor="")
        name = f"{worker.partition('.')[0]}.{slot.lives}"
        self._launch(_Slot(placement=slot.placement, name=name, actor=None, lives=slot.lives + 1, barren=barren))
        return WorkerReplaced(worker=worker, why=why, successor=name)

    # -- questions -------------------------------------------------------------------------------------------------

    def _ask_busy(self) -> None:
        """Take the answers that are there and ask each busy worker again; waits for nobody."""
        now = time.monotonic()
        if now < self._asked_at + ASK_S:
            return
        self._asked_at = now
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for ref in answered:
            question = self._asked.pop(ref)
            if (activity := _answer(ref)) is not None:
                self._activities[question.worker] = activity
        busy = {running.worker for running in self._running.values()}
        for worker in busy - {question.worker for question in self._asked.values()}:
            self._asked[self._slots[worker].actor.activity.remote()] = _Question(worker=worker, asked_at=now)

    def _silent(self) -> list[Happened]:
        """The loss of each worker that has not answered for too long: it is frozen, or its machine is."""
        now = time.monotonic()
        late = {question.worker for question in self._asked.values() if now >= question.asked_at + self._silence_s}
        happened: list[Happened] = []
        for worker in late & self._slots.keys():
            _kill(self._slots[worker])
            self.last_death = f"{worker} did not answer for {self._silence_s:.0f} s"
            died_at = {_work_of(running.task) for running in self._running.values() if running.worker == worker}
            happened += self._lose(worker, f"did not answer for {self._silence_s:.0f} s", died_at)
        return happened

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _collect_task(self, ref: ray.ObjectRef) -> list[Happened]:
        running = self._running.pop(ref)
        try:
            report: Report = ray.get(ref)
        except RayActorError as error:
            self.last_death = str(error)
            if is_crash(error):
                return self._lose(running.worker, f"died during {running.task.stage}", {_work_of(running.task)})
            return self._lose(running.worker, "is gone with its machine, or out of reach", set())
        except RayError as error:
            return self._not_run(running, error)
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
        self._slots[running.worker].barren = frozenset()
        self._data.update(running.outputs)
        done = TaskDone(
            worker=running.worker, task=running.task, seconds=report.seconds, load_seconds=report.load_seconds
        )
        return Outcome(event=done, report=report)

    def _not_run(self, running: _Running, error: RayError) -> list[Happened]:
        """A task that Ray could not run. Embeddings or latents that went down with their node are made again."""
        lost = [key for key in running.inputs if key in self._data and not _can_be_had(self._data[key])]
        for key in lost:
            self.drop(key)
        # Another task may have found the loss first: nothing is missing any more, and still nobody is at fault.
        kind = FailureKind.CANCELLED if lost or isinstance(error, ObjectLostError) else FailureKind.ERROR
        failed = TaskFailed(worker=running.worker, task=running.task, kind=kind, message=str(error))
        return [*(Outcome(event=DataLost(key=key)) for key in lost), Outcome(event=failed)]


def _work_of(task: Task) -> Hashable:
    """The same for every attempt: a clip that kills each of its workers says nothing of their place."""
    return task.stage, task.items


def is_crash(error: RayError) -> bool:
    """Whether a worker's process died, and not its machine. A machine that dies is out of reach before Ray knows it dead."""
    return isinstance(error, ActorDiedError) and not _is_loss_of_node(error)


def _is_loss_of_node(error: RayError) -> bool:
    return isinstance(error, ActorDiedError) and (error.preempted or any(words in str(error) for words in NODE_DEATHS))


def _can_be_had(ref: ray.ObjectRef) -> bool:
    """Whether what a task gave is there still. Only fetching it tells: for `ray.wait` what is lost is ready."""
    try:
        ray.get(ref, timeout=FETCH_S)
    except RayError:
        return False
    return True


def _kill(slot: _Slot) -> None:
    """End an actor. One that is frozen does not hear Ray: where it is on this machine, its process is killed too."""
    ray.kill(slot.actor, no_restart=True)
    if slot.info is not None and slot.info.node == socket.gethostname():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(slot.info.pid, signal.SIGKILL)


def _answer(ref: ray.ObjectRef) -> Activity | None:
    try:
        return ray.get(ref)
    except RayError:  # its death is seen where its task is
        return None
