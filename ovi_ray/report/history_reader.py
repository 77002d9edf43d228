"""Reads histories of clips, workers and runs out of a recorded run, in one pass over its entries."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ovi.stages import CLIP_STAGES, Stage
from ovi_ray.output.event_log import EndEntry, Entry, IdleEntry, MessageEntry, RecordedRun, WorkerEntry
from ovi_ray.protocol.observer import Cycle
from ovi_ray.protocol.progress import WorkDone
from ovi_ray.report.run_history import (
    BreakerEntry,
    ClipHistory,
    IdleSpan,
    RunSummary,
    TaskOutcome,
    TaskSpan,
    WorkerHistory,
    WorkerSummary,
)
from ovi_ray.scheduling.actions import Action, Finish, RunTask
from ovi_ray.scheduling.events import DeviceFree, Event, TaskDone, TaskFailed, WorkerJoined, WorkerLost
from ovi_ray.scheduling.task import BreakerChange, ClipStatus, FailureKind, Reason, Task


@dataclass(slots=True)
class _Worker:
    entry: WorkerEntry
    joined_s: float | None = None
    lost_s: float | None = None
    crashed: bool = False
    log: str = ""


@dataclass(slots=True)
class _Tracker:
    """Pairs each task's start with its end while the entries of a run go by."""

    clip_ids: Sequence[str]
    workers: dict[str, _Worker] = field(default_factory=dict)
    breaker: list[BreakerEntry] = field(default_factory=list)
    ended: dict[int, tuple[float, Finish]] = field(default_factory=dict)
    now: float = 0.0
    _open: dict[str, TaskSpan] = field(default_factory=dict)
    _written: dict[tuple[str, Task], TaskSpan] = field(default_factory=dict)
    """Tasks whose files are written while their workers run others: their spans end where their devices were free."""

    def spans(self, entries: Iterable[Entry]) -> Iterator[TaskSpan]:
        """Every task, when it ends."""
        for entry in entries:
            match entry:
                case Cycle():
                    yield from self._cycle(entry)
                case WorkerEntry(worker=worker):
                    self.workers[worker] = _Worker(entry)
                case IdleEntry(at_s=at_s) | MessageEntry(at_s=at_s) | EndEntry(at_s=at_s):
                    self.now = max(self.now, at_s)
        yield from (*self._written.values(), *self._open.values())

    def _cycle(self, cycle: Cycle) -> Iterator[TaskSpan]:
        self.now = cycle.now
        for event in cycle.events:
            yield from self._event(event)
        for action in cycle.actions:
            yield from self._action(action, stopping=cycle.stopping)

    def _event(self, event: Event) -> Iterator[TaskSpan]:
        match event:
            case WorkerJoined(worker=worker):
                self._worker(worker).joined_s = self.now
            case DeviceFree(worker=worker, task=task):
                if worker in self._open:
                    self._written[worker, task] = replace(self._open.pop(worker), ended_s=self.now)
            case TaskDone(worker=worker, task=task) | TaskFailed(worker=worker, task=task):
                if (written := self._written.pop((worker, task), None)) is not None:
                    yield self._ended(written, event, written.ended_s)
                elif worker in self._open:
                    yield self._ended(self._open.pop(worker), event, self.now)
            case WorkerLost(worker=worker, crashed=crashed, log=log):
                lost = self._worker(worker)
                lost.lost_s, lost.crashed, lost.log = self.now, crashed, log
                for key in [key for key in self._written if key[0] == worker]:
                    yield replace(self._written.pop(key), outcome=TaskOutcome.WORKER_LOST)
                if worker in self._open:
                    yield replace(self._open.pop(worker), ended_s=self.now, outcome=TaskOutcome.WORKER_LOST)

    def _ended(self, span: TaskSpan, event: TaskDone | TaskFailed, ended_s: float | None) -> TaskSpan:
        if isinstance(event, TaskDone):
            done = replace(span, ended_s=ended_s, outcome=TaskOutcome.DONE)
            return replace(done, seconds=event.seconds, load_seconds=event.load_seconds)
        outcome = TaskOutcome.CANCELLED if event.kind is FailureKind.CANCELLED else TaskOutcome.FAILED
        return replace(span, ended_s=ended_s, outcome=outcome, failure=event.kind, message=event.message)

    def _action(self, action: Action, *, stopping: bool) -> Iterator[TaskSpan]:
        match action:
            case RunTask() if stopping:
                yield replace(self._started(action), outcome=TaskOutcome.NOT_STARTED)
            case RunTask(worker=worker):
                self._open[worker] = self._started(action)
            case Finish(clip=clip):
                self.ended[clip] = (self.now, action)
            case BreakerChange():
                self.breaker.append(BreakerEntry(at_s=self.now, change=action))

    def _started(self, action: RunTask) -> TaskSpan:
        entry, task = self._worker(action.worker).entry, action.task
        return TaskSpan(
            worker=action.worker,
            node=entry.node,
            device=entry.device,
            stage=task.stage,
            items=task.items,
            clip_id=self.clip_ids[task.items[0]] if task.items and task.stage in CLIP_STAGES else "",
            attempt=task.attempt,
            assists=task.assists,
            reason=action.reason,
            started_s=self.now,
        )

    def _worker(self, name: str) -> _Worker:
        unknown = WorkerEntry(worker=name, slot=name, node="", pid=0, device="", vendor="")
        return self.workers.setdefault(name, _Worker(unknown))


def clip_history(run: RecordedRun, number: int) -> ClipHistory:
    """The life of a clip, by its number in the run's workload. Raises InputError for a broken record."""
    workload, tracker = run.workload, _Tracker(run.clip_ids)
    items: dict[Stage, set[int]] = {stage: {number} for stage in CLIP_STAGES}
    items |= {stage: set(inputs.of_clips[number].tolist()) for stage, inputs in workload.stage_inputs().items()}
    rest = _Rest()
    spans = [span for span in tracker.spans(rest.watch(run.entries())) if items[span.stage].intersection(span.items)]
    ended_s, end = tracker.ended.get(number, (None, None))
    return ClipHistory(
        clip_id=run.clip_ids[number],
        run=run.number,
        tasks=_by_start(spans),
        status=None if end is None else end.status,
        error="" if end is None else end.error,
        ended_s=ended_s,
        notes=tuple(message for message in rest.messages if run.clip_ids[number] in message),
    )


def worker_history(run: RecordedRun, name: str) -> WorkerHistory:
    """The life of a worker. Raises InputError for a broken record, and KeyError for an unknown name."""
    tracker, idle = _Tracker(run.clip_ids), _IdleReasons(name)
    spans = _by_start(span for span in tracker.spans(idle.watch(run.entries())) if span.worker == name)
    worker = tracker.workers[name]
    end_s = tracker.now if worker.lost_s is None else worker.lost_s
    return WorkerHistory(
        worker=name,
        run=run.number,
        slot=worker.entry.slot,
        node=worker.entry.node,
        device=worker.entry.device,
        joined_s=worker.joined_s,
        lost_s=worker.lost_s,
        crashed=worker.crashed,
        log=worker.log,
        tasks=spans,
        idle=tuple(_idle_spans(worker.joined_s or 0.0, end_s, spans, idle)),
        breaker=tuple(entry for entry in tracker.breaker if entry.change.worker == name),
    )


def summary(run: RecordedRun, runs: int) -> RunSummary:
    """A run at a glance. Raises InputError for a broken record."""
    tracker, rest = _Tracker(run.clip_ids), _Rest()
    tasks: Counter[str] = Counter()
    work: defaultdict[str, WorkDone] = defaultdict(WorkDone)
    busy_s: dict[str, float] = {}
    reasons: dict[Stage, Counter[Reason]] = {}
    failures: Counter[str] = Counter()
    for span in tracker.spans(rest.watch(run.entries())):
        if span.outcome is TaskOutcome.NOT_STARTED or not span.items:
            continue
        tasks[span.worker] += 1
        took_s = (tracker.now if span.ended_s is None else span.ended_s) - span.started_s
        busy_s[span.worker] = busy_s.get(span.worker, 0.0) + took_s
        if span.outcome is TaskOutcome.DONE:
            work[span.worker] = work[span.worker].plus(Task(stage=span.stage, items=span.items, assists=span.assists))
        reasons.setdefault(span.stage, Counter())[span.reason] += 1
        if span.outcome is TaskOutcome.FAILED:
            failures[span.message.partition("\n")[0]] += 1
    ends = Counter(end.status for _, end in tracker.ended.values())
    return RunSummary(
        run=run.number,
        runs=runs,
        identity=run.identity,
        clips=run.workload.clips,
        done=ends[ClipStatus.DONE],
        failed=ends[ClipStatus.FAILED],
        ended_s=tracker.now,
        was_killed=rest.end is None,
        error="" if rest.end is None else rest.end.error,
        workers=tuple(_worker_summary(worker, tasks, work, busy_s) for worker in tracker.workers.values()),
        reasons={stage: dict(reasons[stage].most_common()) for stage in Stage if stage in reasons},
        failures=dict(failures.most_common()),
        breaker=tuple(tracker.breaker),
        messages=tuple(rest.messages),
    )


def workers_of(run: RecordedRun) -> list[str]:
    """Names of all workers, by start."""
    return [entry.worker for entry in run.entries() if isinstance(entry, WorkerEntry)]


@dataclass(slots=True)
class _Rest:
    """Entries that are no tasks."""

    messages: list[str] = field(default_factory=list)
    end: EndEntry | None = None

    def watch(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if isinstance(entry, MessageEntry):
                self.messages.append(entry.text)
            elif isinstance(entry, EndEntry):
                self.end = entry
            yield entry


@dataclass(slots=True)
class _IdleReasons:
    """Why one worker was idle, over time."""

    worker: str
    changes: list[tuple[float, str | None]] = field(default_factory=list)

    def watch(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if isinstance(entry, IdleEntry) and self.worker in entry.reasons:
                self.changes.append((entry.at_s, entry.reasons[self.worker]))
            yield entry

    def between(self, start_s: float, end_s: float) -> tuple[str, ...]:
        return tuple(dict.fromkeys(reason for at_s, reason in self.changes if start_s <= at_s <= end_s and reason))


def _idle_spans(
    joined_s: float, end_s: float, spans: tuple[TaskSpan, ...], reasons: _IdleReasons
) -> Iterator[IdleSpan]:
    free_since = joined_s
    for start_s, next_free_s in [*((span.started_s, span.ended_s) for span in spans), (end_s, None)]:
        if start_s > free_since:
            yield IdleSpan(started_s=free_since, ended_s=start_s, reasons=reasons.between(free_since, start_s))
        free_since = end_s if next_free_s is None else next_free_s


def _worker_summary(
    worker: _Worker, tasks: Counter[str], work: Mapping[str, WorkDone], busy_s: Mapping[str, float]
) -> WorkerSummary:
    entry = worker.entry
    return WorkerSummary(
        worker=entry.worker,
        slot=entry.slot,
        node=entry.node,
        device=entry.device,
        joined_s=worker.joined_s,
        lost_s=worker.lost_s,
        tasks=tasks[entry.worker],
        work=work.get(entry.worker, WorkDone()),
        busy_s=busy_s.get(entry.worker, 0.0),
    )


def _by_start(spans: Iterable[TaskSpan]) -> tuple[TaskSpan, ...]:
    return tuple(sorted(spans, key=lambda span: span.started_s))
