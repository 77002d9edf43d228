"""The executor on Ray: one actor per slot. This is the only module that waits for Ray during a job.

A worker that dies is reported lost and replaced under a new name, until its slot has failed too often without finishing
anything. Task outputs (embeddings, latents) stay in Ray's object store; the executor holds the references, so they outlive
the worker that made them. Logs of worker processes go to Ray's own session folder (`/tmp/ray/session_latest/logs`).
"""

import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.protocol.messages import Activity, TaskReport, TaskRequest, WorkerInfo
from ovi_ray.runtime.executor import (
    Executor,
    ExecutorEvent,
    Submission,
    TaskEnded,
    WorkerReplaced,
    WorkerStarted,
    WorkerStarting,
)
from ovi_ray.runtime.heartbeats import Heartbeats
from ovi_ray.runtime.placement import Placement, placements
from ovi_ray.runtime.ray_errors import can_be_fetched, is_crash, is_node_loss, last_line
from ovi_ray.runtime.ray_session import ray_session
from ovi_ray.runtime.slot_history import SlotHistory, causes_of
from ovi_ray.scheduling.events import DataLost, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, FailureKind, Task
from ovi_ray.workers.actor import CONTROL, Worker

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class ExecutorConfig:
    """When a worker counts as dead and a slot as broken. Raises ValueError for a value out of range."""

    heartbeat_interval_s: float = 0.5
    """Seconds between two progress requests to a busy worker."""
    unresponsive_after_s: float = 120.0
    """Seconds without an answer after which a busy worker is killed and replaced; loading weights may delay an answer."""
    max_consecutive_failures: int = 5
    """Failed starts, and different tasks that killed their worker, after which a slot that finished nothing is given up."""
    fetch_timeout_s: float = 10.0
    """Seconds to find out whether an object is still in the object store."""

    def __post_init__(self) -> None:
        for name in ("heartbeat_interval_s", "unresponsive_after_s", "max_consecutive_failures", "fetch_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected more than 0")


@contextmanager
def ray_executor(
    job: JobSpec,
    config: ExecutorConfig | None = None,
    *,
    place: Callable[[JobSpec], Sequence[Placement]] = placements,
) -> Iterator[Executor]:
    """Ray and the workers of a job, for the time of the block. `place` chooses a placement for each worker.

    Raises ClusterError, and InputError for a bad cluster profile.
    """
    with ray_session(job):
        executor = RayExecutor(place(job), config=config)
        try:
            yield executor
        finally:
            executor.shutdown()


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A slot and the worker that occupies it."""

    name: str
    placement: Placement
    worker: str
    actor: Any
    info: WorkerInfo | None = None
    """None until the worker answers."""
    history: SlotHistory


@dataclass(kw_only=True, slots=True, frozen=True)
class _Running:
    worker: str
    task: Task
    number: int
    inputs: tuple[DataKey, ...]
    outputs: dict[DataKey, ray.ObjectRef]


class RayExecutor:
    """Runs tasks on Ray actors. Requires `ray.init`."""

    def __init__(self, placements: Sequence[Placement], *, config: ExecutorConfig | None = None) -> None:
        self._config = config or ExecutorConfig()
        self._slots: dict[str, _Slot] = {}  # by the name of their worker
        self._starting: dict[ray.ObjectRef, str] = {}
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._data: dict[DataKey, ray.ObjectRef] = {}
        self._numbers = itertools.count(1)
        self._heartbeats = Heartbeats(
            interval_s=self._config.heartbeat_interval_s, timeout_s=self._config.unresponsive_after_s
        )
        self._last_death = ""
        self._news: list[ExecutorEvent] = []  # for the next poll
        for index, placement in enumerate(placements):
            self._launch(f"w{index}", f"w{index}", placement, SlotHistory())
            self._news.append(WorkerStarting(worker=f"w{index}", slot=f"w{index}"))

    @property
    def is_empty(self) -> bool:
        """Whether no worker is alive or being started."""
        return not self._slots

    @property
    def last_death(self) -> str:
        """Why the last lost worker died, as Ray reports it."""
        return self._last_death

    def submit(self, submission: Submission) -> None:
        """Start a task on a worker. Returns at once."""
        request = TaskRequest(
            number=next(self._numbers),
            work=submission.work,
            model_name=submission.model_name,
            components=submission.components,
        )
        inputs = [self._data[key] for key in submission.inputs]
        actor = self._slots[submission.worker].actor
        returned = actor.run.options(num_returns=1 + len(submission.outputs)).remote(request, *inputs)
        report, *outputs = returned if submission.outputs else [returned]
        self._running[report] = _Running(
            worker=submission.worker,
            task=submission.task,
            number=request.number,
            inputs=submission.inputs,
            outputs=dict(zip(submission.outputs, outputs, strict=True)),
        )

    def stop(self, worker: str, task: Task, *, save: bool = False) -> None:
        """Ask a worker to stop a task; with `save` an unfinished denoise is checkpointed."""
        for running in self._running.values():
            if running.worker == worker and running.task == task:
                self._slots[worker].actor.stop.remote(running.number, save)

    def holds(self, key: DataKey) -> bool:
        """Whether the output of an earlier task is in the object store."""
        return key in self._data

    def drop(self, key: DataKey) -> None:
        """Release the output of an earlier task, and that of a copy of it which still runs and ends later."""
        self._data.pop(key, None)
        for running in self._running.values():
            running.outputs.pop(key, None)

    def poll(self, timeout_s: float) -> list[ExecutorEvent]:
        """Wait up to `timeout_s` for anything to happen and return the events so far."""
        if self._news:
            news, self._news = self._news, []
            return news
        waiting = [*self._starting, *self._running]
        if not waiting:
            time.sleep(timeout_s)  # every worker is idle
            return []
        first, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        self._heartbeats.ask(self._busy())
        events: list[ExecutorEvent] = []
        if first:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
            for ref in ready:
                events += self._collect(ref)
        return events + self._replace_unresponsive()

    def activities(self) -> dict[str, Activity]:
        """Progress of busy workers, as last reported."""
        busy = self._busy()
        self._heartbeats.ask(busy)
        return self._heartbeats.activity_of(busy.keys())

    def shutdown(self) -> None:
        """Stop every worker now and release all data."""
        for slot in self._slots.values():
            _kill(slot)
        self._slots.clear()
        self._starting.clear()
        self._running.clear()
        self._data.clear()

    def _busy(self) -> dict[str, Any]:
        return {running.worker: self._slots[running.worker].actor for running in self._running.values()}

    def _collect(self, ref: ray.ObjectRef) -> list[ExecutorEvent]:
        if ref in self._starting:
            return self._collect_start(ref)
        return self._collect_task(ref) if ref in self._running else []  # dropped with its worker, in this very poll

    # -- workers ---------------------------------------------------------------------------------------------------

    def _launch(self, slot_name: str, worker: str, placement: Placement, history: SlotHistory) -> None:
        actor_class = ray.remote(concurrency_groups={CONTROL: 1})(Worker).options(
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
            label_selector=placement.labels or None,
            runtime_env={"env_vars": placement.environment} if placement.environment else None,
            max_restarts=0,  # Ray would restart it silently, and the scheduler would not know of the loss
        )
        actor = actor_class.remote(placement.config)
        self._slots[worker] = _Slot(name=slot_name, placement=placement, worker=worker, actor=actor, history=history)
        self._starting[actor.describe.remote()] = worker

    def _collect_start(self, ref: ray.ObjectRef) -> list[ExecutorEvent]:
        worker = self._starting.pop(ref)
        slot = self._slots[worker]
        try:
            slot.info = ray.get(ref)
        except RayError as error:
            self._last_death = str(error)
            causes = set() if is_node_loss(error) else {slot.history.workers}
            return [self._replace(worker, f"cannot be started ({last_line(error)})", causes)]
        return [WorkerStarted(worker=worker, slot=slot.name, info=slot.info)]

    def _lose(self, worker: str, reason: str, causes: Set[Hashable] | None) -> list[ExecutorEvent]:
        """`causes` is the task that the worker died at, or None if it went down with its node."""
        ray.kill(self._slots[worker].actor, no_restart=True)  # if only unreachable, it would run beside its replacement
        self._running = {ref: running for ref, running in self._running.items() if running.worker != worker}
        self._heartbeats.forget(worker)
        return [WorkerLost(worker=worker, crashed=causes is not None), self._replace(worker, reason, causes or set())]

    def _replace(self, worker: str, reason: str, causes: Set[Hashable]) -> WorkerReplaced:
        slot = self._slots.pop(worker)
        history = slot.history.failed_at(causes)
        successor = ""
        if not history.is_broken(self._config.max_consecutive_failures):
            successor = f"{slot.name}.{slot.history.workers}"
            self._launch(slot.name, successor, slot.placement, history)
        return WorkerReplaced(worker=worker, slot=slot.name, reason=reason, successor=successor)

    def _replace_unresponsive(self) -> list[ExecutorEvent]:
        events: list[ExecutorEvent] = []
        for worker in self._heartbeats.unresponsive() & self._slots.keys():
            _kill(self._slots[worker])
            reason = f"did not answer for {self._config.unresponsive_after_s:.0f} s"
            self._last_death = f"{worker} {reason}"
            causes = causes_of(running.task for running in self._running.values() if running.worker == worker)
            events += self._lose(worker, reason, causes)
        return events

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _collect_task(self, ref: ray.ObjectRef) -> list[ExecutorEvent]:
        running = self._running.pop(ref)
        try:
            report: TaskReport = ray.get(ref)
        except RayActorError as error:
            self._last_death = str(error)
            logger.debug("%s: %s", running.worker, error)
            if is_crash(error):
                return self._lose(running.worker, f"died during {running.task.stage}", causes_of([running.task]))
            return self._lose(running.worker, "was lost with its node, or is unreachable", None)
        except RayError as error:
            return self._not_run(running, error)
        return [self._ended(running, report)]

    def _ended(self, running: _Running, report: TaskReport) -> TaskEnded:
        worker, task, failure = running.worker, running.task, report.failure
        if failure is not None:
            failed = TaskFailed(worker=worker, task=task, kind=failure.kind, message=failure.message)
            return TaskEnded(event=failed, report=report)
        slot = self._slots[worker]
        slot.history = slot.history.succeeded()
        self._data.update(running.outputs)
        done = TaskDone(worker=worker, task=task, seconds=report.seconds, load_seconds=report.load_seconds)
        return TaskEnded(event=done, report=report)

    def _not_run(self, running: _Running, error: RayError) -> list[ExecutorEvent]:
        """A task that Ray could not run, usually because an input went down with its node; such inputs are made again."""
        timeout_s = self._config.fetch_timeout_s
        lost = [key for key in running.inputs if key in self._data and not can_be_fetched(self._data[key], timeout_s)]
        for key in lost:
            del self._data[key]
        # If another task found the loss first, nothing is missing any more; still, neither clip nor worker is at fault.
        kind = FailureKind.CANCELLED if lost or isinstance(error, ObjectLostError) else FailureKind.ERROR
        failed = TaskFailed(worker=running.worker, task=running.task, kind=kind, message=str(error))
        return [*(DataLost(key=key) for key in lost), TaskEnded(event=failed)]


def _kill(slot: _Slot) -> None:
    """End an actor. A frozen process does not react to Ray, so a local one is also killed by its pid."""
    ray.kill(slot.actor, no_restart=True)
    if slot.info is not None and slot.info.node == socket.gethostname():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(slot.info.pid, signal.SIGKILL)
