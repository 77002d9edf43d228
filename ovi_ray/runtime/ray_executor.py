"""The executor on Ray: one actor per slot. This is the only module that waits for Ray during a job.

A worker that dies is reported lost and replaced under a new name, until its slot has failed too often without finishing
anything. In a cluster that was joined, nodes may come and go (`changing_cluster`): what runs on a node that is about to leave
is saved, nodes that join get workers, and a node that does not fit the job gets none. Workers that are more than the job's
share make way for other jobs. Task outputs (embeddings, latents) stay in Ray's object store; the executor holds the
references, so they outlive the worker that made them. Logs of worker processes go to Ray's own session folder
(`/tmp/ray/session_latest/logs`).
"""

import itertools
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError
from ray.experimental.locations import get_local_object_locations

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.protocol.messages import Activity, Assist, TaskReport, TaskRequest, Work, WorkerInfo
from ovi_ray.runtime.changing_cluster import ChangingCluster, joined_cluster
from ovi_ray.runtime.cluster_watch import UNREACHABLE, node_of
from ovi_ray.runtime.executor import (
    Executor,
    ExecutorEvent,
    HeadSilent,
    Submission,
    TaskEnded,
    WorkerReplaced,
    WorkerStarted,
)
from ovi_ray.runtime.head_watch import HeadConfig, HeadWatch, head_watch
from ovi_ray.runtime.heartbeats import Heartbeats, StallConfig
from ovi_ray.runtime.placement import Placement, placements
from ovi_ray.runtime.ray_errors import (
    can_be_fetched,
    is_crash,
    is_node_loss,
    is_worker_loss,
    reason,
    unfit_reason,
    was_ended_for_memory,
)
from ovi_ray.runtime.ray_session import ray_session
from ovi_ray.runtime.ray_slots import RaySlots, kill
from ovi_ray.runtime.slot_history import causes_of
from ovi_ray.runtime.slots import Slot, least_useful, spare
from ovi_ray.runtime.unplaceable import PlaceFinder
from ovi_ray.scheduling.events import DataLost, DeviceFree, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import DataKey, FailureKind, Task

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class ExecutorConfig:
    """When a worker counts as dead and a slot as broken. Raises ValueError for a value out of range."""

    heartbeat_interval_s: float = 0.5
    """Seconds between two progress requests to a busy worker."""
    unresponsive_after_s: float = 120.0
    """Seconds without an answer after which a busy worker is killed and replaced; loading weights may delay an answer."""
    stalled_after_s: float = 3600.0
    """Seconds without progress of a task after which its worker is killed and replaced although it answers. Between two steps a
    sixth of it suffices, if that is 20 times the longest step of the task."""
    start_timeout_s: float = 300.0
    """Seconds without an answer of a process that starts, after which it is killed and replaced: once or twice as many."""
    max_consecutive_failures: int = 5
    """Failed starts, and different tasks that killed their worker, after which a slot that finished nothing is given up."""
    fetch_timeout_s: float = 10.0
    """Seconds to find out whether an object is still in the object store, or to copy those of a node that leaves."""
    cluster_interval_s: float = 0.5
    """Seconds between two looks at the nodes of a cluster that was joined."""
    idle_release_s: float = 10.0
    """Seconds without a task after which a worker that is not needed is ended, where nodes are added for the job."""
    unplaceable_after_s: float = 120.0
    """Seconds after which a slot is given up that no node could ever have a place for."""
    turn_after_s: float = 60.0
    """Seconds in which nothing runs, after which a slot that gave way to another job takes the place of one that idles."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Reactions to a head of the cluster that does not answer."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name != "head" and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected more than 0")


@contextmanager
def ray_executor(
    job: JobSpec,
    config: ExecutorConfig | None = None,
    *,
    place: Callable[..., Sequence[Placement]] = placements,
) -> Iterator[Executor]:
    """Ray and the workers of a job, for the time of the block. `place` chooses a placement for each worker.

    Raises ClusterError, and InputError for a bad cluster profile.
    """
    config = config or ExecutorConfig()
    with ray_session(job), head_watch(job.address, config.head) as head:
        cluster = joined_cluster(job, place, interval_s=config.cluster_interval_s, answers=head.answers)
        executor = RayExecutor(place(job), config=config, cluster=cluster, head=head)
        try:
            yield executor
        finally:
            executor.shutdown()


@dataclass(kw_only=True, slots=True, frozen=True)
class _Running:
    worker: str
    task: Task
    number: int
    inputs: tuple[DataKey, ...]
    outputs: dict[DataKey, ray.ObjectRef]


class RayExecutor:
    """Runs tasks on Ray actors. Requires `ray.init`."""

    def __init__(
        self,
        placements: Sequence[Placement],
        *,
        config: ExecutorConfig | None = None,
        cluster: ChangingCluster | None = None,
        finder: PlaceFinder | None = None,
        head: HeadWatch | None = None,
    ) -> None:
        """Without `cluster` the nodes stay as they are, and without `head` the head is taken to be there."""
        self._config = config or ExecutorConfig()
        self._cluster = cluster
        self._head = head
        self._is_head_lost = False
        self._needed = math.inf
        self._slots = RaySlots(
            max_failures=self._config.max_consecutive_failures,
            unplaceable_after_s=self._config.unplaceable_after_s,
            start_timeout_s=self._config.start_timeout_s,
            cluster=cluster,
            finder=finder,
        )
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._writing: dict[ray.ObjectRef, _Running] = {}
        self._data: dict[DataKey, ray.ObjectRef] = {}
        self._numbers = itertools.count(1)
        self._heartbeats = Heartbeats(
            interval_s=self._config.heartbeat_interval_s,
            timeout_s=self._config.unresponsive_after_s,
            stalls=StallConfig(first_s=self._config.stalled_after_s, next_s=self._config.stalled_after_s / 6),
        )
        self._last_death = ""
        self._news: list[ExecutorEvent] = []  # for the next poll
        self._news += [self._slots.open(placement) for placement in placements]

    @property
    def is_empty(self) -> bool:
        """Whether no worker is alive, being started, or waiting for room."""
        return not self._slots.occupied and not self._slots.paused

    @property
    def last_death(self) -> str:
        """Why the last lost worker died, as Ray reports it."""
        return self._last_death

    def submit(self, submission: Submission) -> None:
        """Start a task on a worker. Returns at once."""
        request = TaskRequest(
            number=next(self._numbers),
            work=self._introduced(submission),
            model_name=submission.model_name,
            components=submission.components,
        )
        inputs = [self._data[key] for key in submission.inputs]
        actor = self._slots.occupied[submission.worker].actor
        returned = actor.run.options(num_returns=1 + len(submission.outputs)).remote(request, *inputs)
        report, *outputs = returned if submission.outputs else [returned]
        self._running[report] = _Running(
            worker=submission.worker,
            task=submission.task,
            number=request.number,
            inputs=submission.inputs,
            outputs=dict(zip(submission.outputs, outputs, strict=True)),
        )

    def _introduced(self, submission: Submission) -> Work:
        """The work of a submission; for one that assists, its leader is told where the two meet."""
        work = submission.work
        if not isinstance(work, Assist):
            return work
        work = replace(work, meeting=f"{self._pid(submission.leader)}-{secrets.token_hex(16)}")
        for running in self._running.values():
            if running.worker == submission.leader and running.task == replace(submission.task, assists=False):
                actor = self._slots.occupied[submission.leader].actor
                actor.expect_helper.remote(running.number, work.meeting, submission.worker)
        return work

    def _pid(self, worker: str) -> int:
        """The process of a worker that has started; 0 when it is gone."""
        slot = self._slots.occupied.get(worker)
        return 0 if slot is None or slot.info is None else slot.info.pid

    def stop(self, worker: str, task: Task, *, save: bool = False) -> None:
        """Ask a worker to stop a task; with `save` an unfinished denoise is checkpointed."""
        for running in self._running.values():
            if running.worker == worker and running.task == task:
                self._slots.occupied[worker].actor.stop.remote(running.number, save)

    def need(self, workers: int) -> None:
        """See Executor."""
        self._needed = workers

    def holds(self, key: DataKey) -> bool:
        """Whether the output of an earlier task is in the object store."""
        return key in self._data

    def drop(self, key: DataKey) -> None:
        """Release the output of an earlier task, and that of a copy of it which still runs and ends later."""
        self._data.pop(key, None)
        for running in self._unfinished():
            running.outputs.pop(key, None)

    def poll(self, timeout_s: float) -> list[ExecutorEvent]:
        """Wait up to `timeout_s` for anything to happen and return the events so far."""
        if self._news:
            news, self._news = self._news, []
            return news
        events = self._wait(timeout_s)
        if self._head is not None and self._head.is_silent:  # what follows would wait for it
            return [*events, *self._note_silence(self._head)]
        events += [*self._replace_unresponsive(), *self._follow_cluster()]
        return [*events, *self._slots.replace_frozen(), *self._slots.close_unplaceable()]

    def _note_silence(self, head: HeadWatch) -> list[ExecutorEvent]:
        """Tell once that the head has been silent for too long, or has gone down with all workers."""
        if self._is_head_lost or not (head.is_lost or self.is_empty):
            return []
        self._is_head_lost = True
        return [HeadSilent(what=str(head), save_s=head.config.save_s)]

    def _wait(self, timeout_s: float) -> list[ExecutorEvent]:
        """The starts and tasks that ended."""
        waiting = [*self._slots.starting, *self._running, *self._writing]
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
        return events

    def activities(self) -> dict[str, Activity]:
        """Progress of busy workers, as last reported."""
        busy = self._busy()
        self._heartbeats.ask(busy)
        return self._heartbeats.activity_of(busy.keys())

    def shutdown(self) -> None:
        """Stop every worker now and release all data."""
        if self._is_head_lost:
            self._slots.abandon_all()
            self._cluster = None  # it cannot be told that the job leaves
        self._slots.end_all()
        self._running.clear()
        self._writing.clear()
        self._data.clear()
        if self._cluster is not None:
            self._cluster.leave()

    def _unfinished(self) -> Iterator[_Running]:
        """The tasks that devices run, then those whose files are being written."""
        return itertools.chain(self._running.values(), self._writing.values())

    def _busy(self) -> dict[str, Any]:
        return {running.worker: self._slots.occupied[running.worker].actor for running in self._unfinished()}

    def _collect(self, ref: ray.ObjectRef) -> list[ExecutorEvent]:
        if ref in self._slots.starting:
            return self._collect_start(ref)
        running = self._running.pop(ref, None) or self._writing.pop(ref, None)
        if running is None:  # dropped with its worker, in this very poll
            return []
        return self._collect_task(ref, running)

    # -- workers ---------------------------------------------------------------------------------------------------

    def _collect_start(self, ref: ray.ObjectRef) -> list[ExecutorEvent]:
        worker = self._slots.starting.pop(ref)
        slot = self._slots.occupied[worker]
        try:
            slot.info = ray.get(ref)
        except RayError as error:
            unfit = unfit_reason(error)
            self._last_death = unfit or reason(error)
            if self._cluster and unfit and (node := node_of(slot.actor)):
                return self._slots.refuse(worker, node, unfit)
            slot.history = slot.history.placed()
            causes = set() if is_node_loss(error) else {slot.history.workers}
            return [self._successor(worker, f"cannot be started ({reason(error)})", causes)]
        slot.idle_since, slot.history = time.monotonic(), slot.history.placed()
        if self._cluster and self._cluster.watch.is_leaving(slot.info.node_id):
            ray.kill(slot.actor, no_restart=True)
            return [self._slots.replace(worker, _leaves(slot.info), set())]
        return [WorkerStarted(worker=worker, slot=slot.name, info=slot.info)]

    def _lose(self, worker: str, reason: str, causes: Set[Hashable] | None) -> list[ExecutorEvent]:
        """`causes` is the task that the worker died at, or None if it went down with its node."""
        # If it is only unreachable, it would run beside its replacement.
        ray.kill(self._slots.occupied[worker].actor, no_restart=True)
        self._running = {ref: running for ref, running in self._running.items() if running.worker != worker}
        self._writing = {ref: running for ref, running in self._writing.items() if running.worker != worker}
        self._heartbeats.forget(worker)
        if causes is None:
            return [WorkerLost(worker=worker, crashed=False), self._successor(worker, reason, set())]
        info = self._slots.occupied[worker].info
        log = "" if info is None else info.log_place
        if log:
            self._last_death += f"; its log: {log}"
        return [WorkerLost(worker=worker, log=log), replace(self._successor(worker, reason, causes), log=log)]

    def _successor(self, worker: str, reason: str, causes: Set[Hashable]) -> WorkerReplaced:
        """Start the successor of a worker that has ended. A head that is silent can start none: the slot is given up then."""
        if self._head is not None and not self._head.answers():
            return self._slots.close(worker, reason)
        return self._slots.replace(worker, reason, causes)

    def _replace_unresponsive(self) -> list[ExecutorEvent]:
        silent = dict.fromkeys(
            self._heartbeats.unresponsive(), f"did not answer for {self._config.unresponsive_after_s:.0f} s"
        )
        stalled = dict.fromkeys(self._heartbeats.stalled(), "hung: it answers, and its task did not go on")
        events: list[ExecutorEvent] = []
        for worker, death in (stalled | silent).items():
            if worker not in self._slots.occupied:
                continue
            kill(self._slots.occupied[worker])
            self._last_death = f"{worker} {death}"
            causes = causes_of(running.task for running in self._unfinished() if running.worker == worker)
            events += self._lose(worker, death, causes)
        return events

    # -- nodes that come and go --------------------------------------------------------------------------------------

    def _follow_cluster(self) -> list[ExecutorEvent]:
        changes = self._cluster.watch.look() if self._cluster else None
        if changes is None:
            return []
        events = [event for node in changes.leaving for event in self._evacuate(node)]
        return [*events, *(self._slots.grow() if changes.joined else ()), *self._scale(), *self._make_way()]

    def _evacuate(self, node: str) -> list[ExecutorEvent]:
        """Have saved what runs on a node that is about to leave, and end its workers, each when its task has ended."""
        leaving = [
            slot for slot in self._slots.occupied.values() if slot.info is not None and slot.info.node_id == node
        ]
        for slot in leaving:
            slot.leaves = True
        for running in self._running.values():
            if self._slots.occupied[running.worker].leaves:
                self._slots.occupied[running.worker].actor.stop.remote(running.number, True)
        return [event for slot in leaving for event in self._leave_if_due(slot.worker)]

    def _leave_if_due(self, worker: str) -> list[ExecutorEvent]:
        """End an idle worker whose node is about to leave, or whose device goes to another job."""
        slot = self._slots.occupied.get(worker)
        if slot is None or worker in self._busy():
            return []
        if slot.pauses:
            self._heartbeats.forget(slot.worker)
            lost = [] if slot.info is None else [WorkerLost(worker=slot.worker, crashed=False)]
            return [*lost, self._slots.pause(slot)]
        if slot.info is None or not slot.leaves:
            return []
        # A node without workers goes at once.
        self._copy_data_of(slot.info.node_id)
        return self._lose(worker, _leaves(slot.info), None)

    def _copy_data_of(self, node: str) -> None:
        """Copy to the driver's node what only this one has."""
        where = get_local_object_locations(list(self._data.values()))
        refs = [ref for ref, place in where.items() if set(place["node_ids"]) <= {node}]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=self._config.fetch_timeout_s, fetch_local=True)

    def _scale(self) -> list[ExecutorEvent]:
        """On a cluster that adds nodes for the job, request room for the workers that it needs and release the rest."""
        if self._cluster is None or self._cluster.autoscaling is None:
            return []
        events = [event for slot in self._spare() for event in self._let_go(slot)]
        # Workers hold their nodes. A request for them as well could be met by a node that idles, which would never go.
        wanted = [slot.placement for slot in self._slots.occupied.values()] if self._slots.starting else []
        with suppress(*UNREACHABLE):  # it is asked again at the next look
            self._cluster.autoscaling.request(wanted)
        return events

    def _spare(self) -> list[Slot]:
        return spare(
            list(self._slots.occupied.values()),
            needed=self._needed,
            busy=self._busy().keys(),
            idle_before=time.monotonic() - self._config.idle_release_s,
        )

    def _let_go(self, slot: Slot) -> list[ExecutorEvent]:
        self._slots.end(slot)
        lost = [] if slot.info is None else [WorkerLost(worker=slot.worker, crashed=False)]
        return [*lost, self._slots.close(slot.worker, "is not needed any more")]

    # -- other jobs ------------------------------------------------------------------------------------------------

    def _make_way(self) -> list[ExecutorEvent]:
        """Give up workers that are more than the job's share, and start those again that it has room for."""
        if self._cluster is None or self._cluster.share is None:
            return []
        slots = Counter(placement.occupies for placement in self._slots.placements())
        useful = slots - Counter(slot.placement.occupies for slot in self._spare())
        allowed = self._cluster.share.allowed({kind: useful[kind] for kind in slots})
        if allowed is None:
            return []
        events: list[ExecutorEvent] = []
        for kind, count in allowed.items():
            held = [
                slot for slot in self._slots.occupied.values() if slot.placement.occupies == kind and not slot.pauses
            ]
            room = int(min(count, slots[kind])) - len(held)
            for slot in least_useful(held, busy=self._busy().keys())[: max(0, -room)]:
                events += self._begin_to_pause(slot)
            self._slots.resume(kind, room)
        return events + self._take_turns()

    def _begin_to_pause(self, slot: Slot) -> list[ExecutorEvent]:
        """End a worker once what it runs is saved or finished."""
        slot.pauses = True
        for running in self._running.values():
            if running.worker == slot.worker:
                slot.actor.stop.remote(running.number, True)
        return self._leave_if_due(slot.worker)

    def _take_turns(self) -> list[ExecutorEvent]:
        """While nothing runs, let an idle worker make way for a paused device, which may be the only one able to go on."""
        idle_before = time.monotonic() - self._config.turn_after_s
        for paused in list(self._slots.paused):
            same = [
                slot for slot in self._slots.occupied.values() if slot.placement.occupies == paused.placement.occupies
            ]
            if not self._busy() and same and all(slot.idle_since <= idle_before for slot in same):
                events = self._begin_to_pause(min(same, key=lambda slot: slot.idle_since))
                self._slots.resume(paused.placement.occupies, 1)
                return events
        return []

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _collect_task(self, ref: ray.ObjectRef, running: _Running) -> list[ExecutorEvent]:
        try:
            report: TaskReport = ray.get(ref)
        except RayError as error:
            if is_worker_loss(error):
                return self._lost_at(running, error)
            return [*self._not_run(running, error), *self._leave_if_due(running.worker)]
        if report.writes:
            return [self._device_free(running, report)]
        ended = self._ended(running, report)
        return [ended, *self._replace_broken(running, report), *self._leave_if_due(running.worker)]

    def _lost_at(self, running: _Running, error: RayError) -> list[ExecutorEvent]:
        """Replace the worker of a task whose error says that it is gone."""
        self._last_death = reason(error)
        logger.debug("%s: %s", running.worker, error)
        if not is_crash(error):
            return self._lose(running.worker, "was lost with its node, or is unreachable", None)
        stage = running.task.stage
        memory = f"was ended by Ray during {stage}, because its node ran low on memory"
        death = memory if was_ended_for_memory(error) else f"died during {stage}"
        return self._lose(running.worker, death, causes_of([running.task]))

    def _device_free(self, running: _Running, report: TaskReport) -> DeviceFree:
        """The worker can take another task, and says later how the write of this one's file ended."""
        actor = self._slots.occupied[running.worker].actor
        self._writing[actor.written.remote(running.number)] = running
        return DeviceFree(
            worker=running.worker, task=running.task, seconds=report.seconds, load_seconds=report.load_seconds
        )

    def _replace_broken(self, running: _Running, report: TaskReport) -> list[ExecutorEvent]:
        """End and replace a worker whose device failed it: its process would fail every later task too."""
        failure = report.failure
        if failure is None or not failure.ends_worker:
            return []
        self._last_death = failure.message
        reason = f"was ended after {running.task.stage}, because its device failed"
        return self._lose(running.worker, reason, causes_of([running.task]))

    def _ended(self, running: _Running, report: TaskReport) -> TaskEnded:
        worker, task, failure = running.worker, running.task, report.failure
        self._slots.occupied[worker].idle_since = time.monotonic()
        if failure is not None:
            failed = TaskFailed(worker=worker, task=task, kind=failure.kind, message=failure.message)
            return TaskEnded(event=failed, report=report)
        slot = self._slots.occupied[worker]
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


def _leaves(info: WorkerInfo) -> str:
    return f"is ended, because its node {info.node} leaves the cluster"
