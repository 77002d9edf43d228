"""What is known of each unfinished clip, and the result row that it becomes."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from ovi.stages import Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.result_row import result_row
from ovi_ray.protocol.messages import Failure, TaskReport, WorkerInfo
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Task

TRACEBACK_CHARS = 20_000  # the end of a traceback, where the error is

CLIP_STAGES = (Stage.DENOISE, Stage.DECODE)
"""Stages whose tasks belong to one clip: `Task.items` is its number."""


class ClipRecords:
    """Columns of the result rows of one run, collected from task reports; a clip's are dropped with its row."""

    def __init__(self, tasks: TaskTable, dtype: str) -> None:
        self._tasks = tasks
        self._dtype = dtype
        self._facts: dict[int, dict[str, Any]] = {}  # clip -> columns of its row
        self._text_s = np.zeros(tasks.texts.num_rows)  # seconds of each text's encode
        self._frame_s = np.zeros(tasks.first_frames.num_rows)
        self._tracebacks: dict[tuple[Stage, int], str] = {}  # of items that failed and have not succeeded since

    def started(self, task: Task) -> dict[str, Any]:
        """Count an attempt. Returns the clip's known columns; empty for a task that does not belong to a single clip."""
        if not task.items or task.stage not in CLIP_STAGES:
            return {}
        facts = self._facts_of(task.items[0])
        facts["attempts"] += task.stage is Stage.DENOISE
        return facts

    def succeeded(self, task: Task, worker: str, info: WorkerInfo, report: TaskReport) -> None:
        """Take over what a task measured."""
        if self._tracebacks:
            for item in task.items:
                self._tracebacks.pop((task.stage, item), None)
        match task.stage:
            case Stage.ENCODE_TEXT:
                self._text_s[list(task.items)] = report.seconds / len(task.items)
            case Stage.ENCODE_FIRST_FRAME:
                self._frame_s[list(task.items)] = report.seconds
            case Stage.DENOISE if task.items:
                where = {"worker": worker, "node": info.node, "device": info.device, "denoise_s": report.seconds}
                self._facts_of(task.items[0]).update(where | report.facts)
            case Stage.DECODE:
                facts = self._facts_of(task.items[0])
                facts.update({**report.facts, **facts, "decode_worker": worker, "decode_s": report.seconds})

    def failed(self, task: Task, failure: Failure) -> None:
        """Keep the traceback of a failed task for the rows of the clips that fail because of it."""
        if failure.kind is not FailureKind.CANCELLED and failure.traceback:
            for item in task.items:
                self._tracebacks[task.stage, item] = failure.traceback[-TRACEBACK_CHARS:]

    def row(self, clip: ClipTask, end: Finish) -> dict[str, Any]:
        """The result row of a clip that ends now."""
        frame_s = 0.0 if clip.first_frame is None else self._frame_s[clip.first_frame]
        facts = {
            **self._facts.pop(end.clip, {}),
            "encode_s": float(self._text_s[clip.texts[0]] + frame_s),
            "dtype": self._dtype,
        }
        if end.status is ClipStatus.FAILED:
            facts["traceback"] = self._take_traceback(end.clip, clip)
        return result_row(clip, facts, status=end.status, error=end.error, finished_at=datetime.now(UTC))

    def _facts_of(self, clip: int) -> dict[str, Any]:
        return self._facts.setdefault(clip, {"attempts": 0})

    def _take_traceback(self, number: int, clip: ClipTask) -> str | None:
        """The traceback of the latest stage that failed; those of shared inputs stay for other clips."""
        own = [self._tracebacks.pop((stage, number), None) for stage in reversed(CLIP_STAGES)]
        inputs = [(Stage.ENCODE_TEXT, text) for text in clip.texts]
        if clip.first_frame is not None:
            inputs.append((Stage.ENCODE_FIRST_FRAME, clip.first_frame))
        return next(filter(None, [*own, *map(self._tracebacks.get, inputs)]), None)
