"""The history of a run in plain lines of text, for `ovi-ray explain`."""

from collections.abc import Iterator

from ovi.stages import CLIP_STAGES, STAGES
from ovi_ray.inputs.columns import place_in_list
from ovi_ray.printing import counted
from ovi_ray.report.durations import format_duration
from ovi_ray.report.run_history import (
    BreakerEntry,
    ClipHistory,
    IdleSpan,
    ListedClip,
    RunSummary,
    TaskOutcome,
    TaskSpan,
    WorkerHistory,
    WorkerSummary,
)
from ovi_ray.report.work_text import work_text

MIN_IDLE_S = 0.5  # the scheduler is asked for reasons about twice a second
MAX_SHOWN = 10


def clip_lines(clip: ClipHistory) -> Iterator[str]:
    """The life of a clip."""
    yield f"clip {clip.clip_id}, run {clip.run}{'' if clip.listed is None else f': {_listed(clip.listed)}'}"
    ready_s: float | None = None  # when what the next stage needs was there
    for task in clip.tasks:
        if task.stage in CLIP_STAGES and ready_s is not None and task.started_s - ready_s >= MIN_IDLE_S:
            yield f"{_at(ready_s)}  waits {_seconds(task.started_s - ready_s)} for a worker"
        yield f"{_at(task.started_s)}  {_task(task)}"
        if task.ended_s is not None:
            ready_s = max(ready_s or 0.0, task.ended_s)
    if clip.ended_s is None:
        yield "not ended when the record ends"
    else:
        yield f"{_at(clip.ended_s)}  {clip.status}{f': {clip.error}' if clip.error else ''}"
    yield from (f"note: {note}" for note in clip.notes)


def _listed(clip: ListedClip) -> str:
    repeat = f", repeat {clip.repeat}" if clip.repeat else ""
    meta = "".join(f", {name} {value}" for name, value in clip.meta.items())
    return f"{place_in_list(clip.row, clip.line)}{repeat}{meta}"


def worker_lines(worker: WorkerHistory) -> Iterator[str]:
    """The life of a worker."""
    yield f"worker {worker.worker}, run {worker.run}: {worker.device or 'unknown device'} on {worker.node}, slot {worker.slot}"
    lines = [(task.started_s, _task(task, with_worker=False)) for task in worker.tasks]
    lines += [(idle.started_s, _idle(idle)) for idle in worker.idle if idle.ended_s - idle.started_s >= MIN_IDLE_S]
    lines += [(entry.at_s, str(entry.change)) for entry in worker.breaker]
    if worker.joined_s is not None:
        yield f"{_at(worker.joined_s)}  joined"
    for at_s, line in sorted(lines, key=lambda item: item[0]):
        yield f"{_at(at_s)}  {line}"
    if worker.lost_s is not None:
        died = f", its process died{f'; its log: {worker.log}' if worker.log else ''}" if worker.crashed else ""
        yield f"{_at(worker.lost_s)}  lost{died}"


def summary_lines(run: RunSummary) -> Iterator[str]:
    """A run at a glance."""
    who = run.identity
    yield f"run {run.run} of {run.runs}: started {who.started_at} on {who.host}, process {who.pid}, ovi-ray {who.version}"
    yield f"  {who.command}"
    missing = f"{counted(run.clips, 'clip')} {'was' if run.clips == 1 else 'were'} missing"
    yield f"{missing}: {run.done} done, {run.failed} failed, {_end(run)} after {_at(run.ended_s)}"
    yield "workers"
    yield from (f"  {_worker(worker, run.ended_s)}" for worker in run.workers)
    for stage, reasons in run.reasons.items():
        count = sum(reasons.values())
        yield f"{STAGES[stage].label}: {counted(count, 'decision')}"
        yield from (f"  {count}x {reason}" for reason, count in reasons.items())
    if run.failures:
        yield "failures"
        yield from _shortened([f"  {count}x {message}" for message, count in run.failures.items()])
    if run.breaker:
        yield "circuit breakers"
        yield from _shortened([f"  {_breaker(entry)}" for entry in run.breaker])
    if run.messages:
        yield "messages"
        yield from _shortened([f"  {message}" for message in run.messages])


def _task(task: TaskSpan, *, with_worker: bool = True) -> str:
    what = f"{task.stage} {_items(task)}".rstrip() if task.items else "load components"
    what = f"assist in {what}" if task.assists else what
    where = f" on {task.worker} ({task.device} on {task.node})" if with_worker else ""
    attempt = f", attempt {task.attempt}" if task.attempt > 1 else ""
    return f"{what}{where}{attempt}, because {task.reason}: {_outcome(task)}"


def _items(task: TaskSpan) -> str:
    if task.clip_id:
        return f"of clip {task.clip_id}"
    return f"of {len(task.items)} {STAGES[task.stage].label}" if len(task.items) > 1 else ""


def _outcome(task: TaskSpan) -> str:
    took = "" if task.ended_s is None else f" after {_seconds(task.ended_s - task.started_s)}"
    match task.outcome:
        case TaskOutcome.DONE:
            load = f", {_seconds(task.load_seconds)} of it loading" if task.load_seconds else ""
            return f"done{took}{load}"
        case TaskOutcome.FAILED:
            return f"failed{took} ({task.failure}): {task.message}"
        case TaskOutcome.CANCELLED:
            return f"cancelled{took}{f': {task.message}' if task.message else ''}"
        case _:
            return f"{task.outcome}{took}"


def _idle(idle: IdleSpan) -> str:
    reasons = "; ".join(idle.reasons) or "reason not recorded"
    return f"idle for {_seconds(idle.ended_s - idle.started_s)}: {reasons}"


def _worker(worker: WorkerSummary, run_ended_s: float) -> str:
    if worker.joined_s is None:
        return f"{worker.worker}: never joined"
    until_s = run_ended_s if worker.lost_s is None else worker.lost_s
    held_s = max(until_s - worker.joined_s, 1e-9)
    lost = "" if worker.lost_s is None else f", lost after {_at(worker.lost_s)}"
    where = f"{worker.device} on {worker.node}, slot {worker.slot}"
    busy = f"busy {min(1.0, worker.busy_s / held_s):.0%}"
    done = f" ({text})" if (text := work_text(worker.work)) else ""
    return f"{worker.worker}: {where}, {counted(worker.tasks, 'task')}{done}, {busy}{lost}"


def _end(run: RunSummary) -> str:
    if run.was_killed:
        return "no end recorded: killed, or still running,"
    return f"ended by an error ({run.error})" if run.error else "complete"


def _breaker(entry: BreakerEntry) -> str:
    return f"{_at(entry.at_s)}  {entry.change}"


def _shortened(lines: list[str]) -> list[str]:
    hidden = len(lines) - MAX_SHOWN
    return lines if hidden <= 0 else [*lines[:MAX_SHOWN], f"  ... and {hidden} more"]


def _at(seconds: float) -> str:
    """Time of day within a run, with tenths: 0:01:05.3."""
    tenths = round(seconds * 10)
    return f"{format_duration(tenths // 10)}.{tenths % 10}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else format_duration(seconds)
