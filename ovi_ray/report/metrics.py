"""Metrics of a running job for Prometheus; `cluster/grafana/ovi-ray.json` is a dashboard of them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, RunEnded, RunStarted
from ovi_ray.protocol.progress import JobSnapshot
from ovi_ray.scheduling.actions import Action, Finish, RunTask
from ovi_ray.scheduling.events import Event, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import FailureKind

_GB = 1e9
_STAGE_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
_WORKER_LOST = "worker_lost"
_MAX_PORT = 65535


class MetricsObserver(JobObserver):
    """Keeps metrics of one run in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._clips = Gauge("ovi_ray_clips", "Clips that this run has to render", registry=registry)
        self._ended = Counter("ovi_ray_clips_ended", "Clips that ended, by status", ["status"], registry=registry)
        self._stage_s = Histogram(
            "ovi_ray_stage_seconds",
            "Seconds of tasks that succeeded, without loading",
            ["stage", "device"],
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self._load_s = Counter(
            "ovi_ray_load_seconds", "Seconds of loading and unloading components", ["device"], registry=registry
        )
        self._failures = Counter(
            "ovi_ray_task_failures", "Tasks that failed, by reason", ["stage", "reason"], registry=registry
        )
        self._retries = Counter(
            "ovi_ray_retries",
            "Tasks that were tried again, by the reason of the failure",
            ["stage", "reason"],
            registry=registry,
        )
        self._queue = Gauge(
            "ovi_ray_queue_depth", "Items of a stage that are ready or running", ["stage", "state"], registry=registry
        )
        self._workers = Gauge("ovi_ray_workers", "Workers that are present, by state", ["state"], registry=registry)
        self._lost = Counter("ovi_ray_workers_lost", "Workers that were lost", ["crashed"], registry=registry)
        names = ["worker", "node", "device"]
        self._memory = Gauge(
            "ovi_ray_device_memory_bytes", "Memory that a worker holds on its device", names, registry=registry
        )
        self._memory_limit = Gauge(
            "ovi_ray_device_memory_limit_bytes", "Memory that a worker may hold on its device", names, registry=registry
        )
        self._remaining = Gauge(
            "ovi_ray_remaining_seconds", "Seconds until the end: expected, and its range", ["bound"], registry=registry
        )
        self._paused = Gauge("ovi_ray_paused", "1 while storage is away and the job waits", registry=registry)
        self._running = Gauge("ovi_ray_running", "1 until the run has ended", registry=registry)
        self._running.set(1)
        self._infos: dict[str, WorkerInfo] = {}
        self._open: set[tuple[str, str, tuple[int, ...]]] = (
            set()
        )  # worker, stage and items of tasks that have not ended
        self._reasons: dict[tuple[str, tuple[int, ...]], str] = {}  # of items that failed and were not tried again yet

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self._clips.set(run.workload.clips)

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        self._infos[worker] = info
        self._memory_limit.labels(worker, info.node, info.device).set(info.memory_gb * _GB)

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        for event in cycle.events:
            self._event(event)
        for action in cycle.carried_out:
            self._action(action)

    def progress(self, snapshot: JobSnapshot) -> None:
        """See JobObserver."""
        for stage, counts in snapshot.progress.stages.items():
            self._queue.labels(stage, "ready").set(counts.ready)
            self._queue.labels(stage, "running").set(counts.running)
        busy = snapshot.progress.busy
        self._workers.labels("busy").set(busy)
        self._workers.labels("idle").set(snapshot.progress.workers - busy)
        for worker, task in snapshot.running.items():
            if task.activity is not None and task.activity.memory_gb is not None:
                info = snapshot.workers[worker]
                self._memory.labels(worker, info.node, info.device).set(task.activity.memory_gb * _GB)
        if (left := snapshot.remaining) is not None:
            for bound, seconds in (("expected", left.expected_s), ("low", left.low_s), ("high", left.high_s)):
                self._remaining.labels(bound).set(seconds)

    def paused(self, reason: str) -> None:
        """See JobObserver."""
        self._paused.set(1)

    def resumed(self) -> None:
        """See JobObserver."""
        self._paused.set(0)

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        self._running.set(0)

    def _event(self, event: Event) -> None:
        match event:
            case TaskDone(worker=worker, task=task, seconds=seconds, load_seconds=load_s):
                self._open.discard((worker, str(task.stage), task.items))
                device = self._infos[worker].device
                self._load_s.labels(device).inc(load_s)
                if task.items:
                    self._stage_s.labels(task.stage, device).observe(seconds)
            case TaskFailed(worker=worker, task=task, kind=kind):
                self._fail(worker, task.stage, task.items, str(kind), is_counted=kind is not FailureKind.CANCELLED)
            case WorkerLost(worker=worker, crashed=crashed):
                self._lost.labels(str(crashed).lower()).inc()
                for _, stage, items in [opened for opened in self._open if opened[0] == worker]:
                    self._fail(worker, stage, items, _WORKER_LOST, is_counted=True)
                info = self._infos[worker]
                self._memory.labels(worker, info.node, info.device).set(0)

    def _fail(self, worker: str, stage: str, items: tuple[int, ...], reason: str, *, is_counted: bool) -> None:
        opened = (worker, str(stage), items)
        if opened in self._open and is_counted:
            self._failures.labels(stage, reason).inc()
            self._reasons[str(stage), items] = reason
        self._open.discard(opened)

    def _action(self, action: Action) -> None:
        match action:
            case RunTask(worker=worker, task=task):
                key = str(task.stage), task.items
                self._open.add((worker, *key))
                if (reason := self._reasons.pop(key, None)) is not None:
                    self._retries.labels(task.stage, reason).inc()
            case Finish(status=status):
                self._ended.labels(status).inc()


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of a port, which alone is on loopback, or of HOST:PORT. Raises InputError."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > _MAX_PORT:
        raise _no_address(address)
    return host.strip("[]") or "127.0.0.1", int(port)


def address_of_part(address: str, part: int) -> str:
    """The address of a part of a job, counted from 0: parts may run on one machine. Raises InputError."""
    host, port = host_and_port(address)
    if port + part > _MAX_PORT:
        raise _no_address(f"{address}, with shard {part} at port {port + part}")
    return f"[{host}]:{port + part}" if ":" in host else f"{host}:{port + part}"


def _no_address(found: str) -> InputError:
    expected = "a free port such as 9400, or HOST:PORT of this machine"
    return InputError([Problem(file=COMMAND_LINE, field="--metrics", value=found, expected=expected)])


@contextmanager
def metrics_server(address: str) -> Iterator[MetricsObserver]:
    """Metrics at `http://ADDRESS/metrics` for the time of the block. `address` is a port, or HOST:PORT; alone it is loopback.

    Raises InputError for an address that cannot be used.
    """
    host, port = host_and_port(address)
    observer = MetricsObserver()
    try:
        server, thread = start_http_server(port, addr=host, registry=observer.registry)
    except OSError as error:
        raise _no_address(f"{address} ({error.strerror or error})") from None
    try:
        yield observer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
