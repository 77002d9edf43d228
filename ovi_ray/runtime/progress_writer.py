"""Keeps `progress.json` in the output folder of a running job."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from ovi.stages import CLIP_STAGES, STAGES
from ovi_ray.output.progress_file import (
    LOADING,
    MAX_PROBLEMS,
    PROGRESS,
    DeviceProgress,
    DeviceState,
    JobProgress,
    ProblemNote,
    RunState,
)
from ovi_ray.protocol.messages import Activity
from ovi_ray.protocol.observer import JobObserver, RunEnded
from ovi_ray.protocol.progress import JobSnapshot, RunningTask
from ovi_ray.runtime.background_writer import BackgroundWriter, WriteInterval
from ovi_ray.scheduling.task import ClipStatus

_NOTHING_KNOWN = Activity(done=0, total=0)


@dataclass(kw_only=True, slots=True, frozen=True)
class JobCounts:
    """The clips of a job when a run starts."""

    clips: int
    done: int
    failed: int


class ProgressWriter(JobObserver):
    """Writes how far a run is: at once, every few seconds, and at the end of a `with` block. Never fails the run."""

    def __init__(
        self,
        write: Callable[[JobProgress], None],
        counts: JobCounts,
        interval: WriteInterval,
        on_problem: Callable[[str], None],
    ) -> None:
        """`write` may take long or raise OSError: `on_problem` is told so once."""
        self._write = write
        self._counts = counts
        self._started_at = _now()
        self._problems: deque[ProblemNote] = deque(maxlen=MAX_PROBLEMS)
        self._pause = ""
        self._end: RunEnded | None = None
        self._activities: dict[str, Activity] = {}
        self._snapshot: JobSnapshot | None = None
        self._writer = BackgroundWriter(
            "progress",
            interval,
            lambda error: on_problem(f"{PROGRESS} cannot be written ({error.strerror or error}); the job goes on"),
        )

    def __enter__(self) -> Self:
        self._write_if_due(RunState.STARTING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = self._end.error if self._end else _reason(error)
        last = self._current(RunState.ENDED, reason)
        self._writer.close(lambda: self._write(last))

    def progress(self, snapshot: JobSnapshot) -> None:
        """See JobObserver."""
        self._snapshot = snapshot
        self._activities |= {name: task.activity for name, task in snapshot.running.items() if task.activity}
        for clip in snapshot.ended:
            if clip.status is ClipStatus.FAILED:
                reason, _, _ = clip.error.partition("\n")
                self._note(f"{clip.place} ({clip.clip_id}) failed: {reason}")
        self._write_if_due(RunState.PAUSED if self._pause else RunState.RENDERING)

    def message(self, text: str) -> None:
        """Keep a message among the problems."""
        self._note(text)

    def paused(self, reason: str) -> None:
        """See JobObserver."""
        self._pause = reason

    def resumed(self) -> None:
        """See JobObserver."""
        self._pause = ""

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        self._end = run

    def _note(self, text: str) -> None:
        self._problems.append(ProblemNote(at=_now(), text=text))

    def _write_if_due(self, state: RunState) -> None:
        if self._writer.is_due:
            current = self._current(state, self._pause)
            self._writer.start(lambda: self._write(current))

    def _current(self, state: RunState, error: str) -> JobProgress:
        snapshot, end, counts = self._snapshot, self._end, self._counts
        run_done = end.done if end else snapshot.progress.done if snapshot else 0
        run_failed = end.failed if end else snapshot.progress.failed if snapshot else 0
        is_over = state is RunState.ENDED
        return JobProgress(
            state=state,
            started_at=self._started_at,
            updated_at=_now(),
            elapsed_s=end.now if end else snapshot.elapsed_s if snapshot else 0.0,
            clips=counts.clips,
            done=counts.done + run_done,
            failed=counts.failed + run_failed,
            running=0 if snapshot is None or is_over else _running_clips(snapshot),
            run_done=run_done,
            run_failed=run_failed,
            clips_per_hour=snapshot.clips_per_hour if snapshot else None,
            remaining=None if snapshot is None or is_over else snapshot.remaining,
            devices=() if snapshot is None or is_over else tuple(self._devices(snapshot)),
            problems=tuple(self._problems),
            error=error,
        )

    def _devices(self, snapshot: JobSnapshot) -> Iterator[DeviceProgress]:
        for worker, info in snapshot.workers.items():
            known = self._activities.get(worker, _NOTHING_KNOWN)
            line = DeviceProgress(
                worker=worker,
                node=info.node,
                device=info.device,
                state=DeviceState.LOST,
                memory_gb=known.memory_gb,
                memory_total_gb=info.memory_gb,
                attention_backend=known.attention_backend,
                work=snapshot.work[worker],
            )
            if (running := snapshot.running.get(worker)) is not None:
                yield _busy(line, running)
            elif worker in snapshot.idle:
                yield replace(line, state=DeviceState.IDLE, idle_reason=str(snapshot.idle[worker]))
            else:
                yield replace(line, memory_gb=None)


def _reason(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once"  # by a second Ctrl-C
    return "" if error is None else str(error) or type(error).__name__


def _busy(line: DeviceProgress, running: RunningTask) -> DeviceProgress:
    if not running.task.items:
        return replace(line, state=DeviceState.BUSY, stage=LOADING)
    spec, activity = STAGES[running.task.stage], running.activity or _NOTHING_KNOWN
    return replace(
        line,
        state=DeviceState.BUSY,
        stage=str(running.task.stage),
        clip_id=running.clip_id,
        done=activity.done,
        total=activity.total,
        unit=spec.progress_unit,
    )


def _running_clips(snapshot: JobSnapshot) -> int:
    """Clips, not tasks: a clip may have a speculative copy."""
    tasks = (running.task for running in snapshot.running.values())
    return len({task.items[0] for task in tasks if task.items and task.stage in CLIP_STAGES})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
