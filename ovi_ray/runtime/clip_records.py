"""The known facts of each unfinished clip, and the result row that it becomes."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, DataKind, Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.result_row import result_row
from ovi_ray.protocol.messages import Failure, TaskReport, WorkerInfo
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Task

TRACEBACK_CHARS = 20_000  # the end of a traceback, where the error is


class ClipRecords:
    """Columns of the result rows of one run, collected from task reports; a clip's are dropped with its row."""

    def __init__(self, tasks: TaskTable, dtype: str) -> None:
        self._tasks = tasks
        self._dtype = dtype
        self._facts: dict[int, dict[str, Any]] = {}  # clip -> columns of its row
        counts = tasks.counts()
        self._input_s = {stage: np.zeros(counts[stage]) for stage in INPUT_STAGES}  # seconds by item
        self._tracebacks: dict[tuple[Stage, int], str] = {}  # of items that failed and have not succeeded since

    def started(self, task: Task) -> dict[str, Any]:
        """Count an attempt. Returns the clip's known columns; empty for a task that does not belong to a single clip."""
        if not task.items or task.stage not in CLIP_STAGES:
            return {}
        facts = self._facts_of(task.items[0])
        facts["attempts"] += task.stage is Stage.DENOISE and not task.assists
        return facts

    def succeeded(self, task: Task, worker: str, info: WorkerInfo, report: TaskReport) -> None:
        """Take over what a task measured; one that assists another measures nothing of the clip."""
        if task.assists:
            return
        if self._tracebacks:
            for item in task.items:
                self._tracebacks.pop((task.stage, item), None)
        if task.stage in INPUT_STAGES:
            self._input_s[task.stage][list(task.items)] = report.seconds / len(task.items)
        elif task.items:
            self._clip_stage_succeeded(task, worker, info, report)

    def _clip_stage_succeeded(self, task: Task, worker: str, info: WorkerInfo, report: TaskReport) -> None:
        """The stage that makes the latents says where and how the clip was rendered; later ones add what is not known yet."""
        facts, spec = self._facts_of(task.items[0]), STAGES[task.stage]
        seconds = {f"{spec.time_group}_s": report.seconds}
        if spec.output is DataKind.LATENTS:
            where = {"worker": worker, "node": info.node, "device": info.device}
            facts.update(where | seconds | report.facts)
        else:
            facts.update({**report.facts, **facts, f"{task.stage}_worker": worker, **seconds})

    def failed(self, task: Task, failure: Failure) -> None:
        """Keep the traceback of a failed task for the rows of the clips that fail because of it."""
        if failure.kind is not FailureKind.CANCELLED and failure.traceback:
            for item in task.items:
                self._tracebacks[task.stage, item] = failure.traceback[-TRACEBACK_CHARS:]

    def row(self, clip: ClipTask, end: Finish) -> dict[str, Any]:
        """The result row of a clip that ends now."""
        facts = {
            **self._facts.pop(end.clip, {}),
            **self._input_seconds(clip),
            "dtype": self._dtype,
        }
        if end.status is ClipStatus.FAILED:
            facts["traceback"] = self._take_traceback(end.clip, clip)
        return result_row(clip, facts, status=end.status, error=end.error, finished_at=datetime.now(UTC))

    def _input_seconds(self, clip: ClipTask) -> dict[str, float]:
        """Columns with the seconds for the clip's own inputs: its share of a batch of texts, and its first frame.

        Negative prompts are left out: they are the job's.
        """
        columns: dict[str, float] = {}
        for stage, items in _inputs_of(clip).items():
            own = list(items[:1])
            column = f"{STAGES[stage].time_group}_s"
            columns[column] = columns.get(column, 0.0) + float(self._input_s[stage][own].sum())
        return columns

    def _facts_of(self, clip: int) -> dict[str, Any]:
        return self._facts.setdefault(clip, {"attempts": 0})

    def _take_traceback(self, number: int, clip: ClipTask) -> str | None:
        """The traceback of the latest stage that failed; those of shared inputs stay for other clips."""
        own = [self._tracebacks.pop((stage, number), None) for stage in reversed(CLIP_STAGES)]
        inputs = [(stage, item) for stage, items in _inputs_of(clip).items() for item in items]
        return next(filter(None, [*own, *map(self._tracebacks.get, inputs)]), None)


def _inputs_of(clip: ClipTask) -> dict[Stage, tuple[int, ...]]:
    """The items that a clip needs of each input stage."""
    return {stage: clip.items(STAGES[stage].item) for stage in INPUT_STAGES}
