"""What is known of how each clip under way was rendered, and the row that comes of it."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from ovi.stages import Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.result_row import result_row
from ovi_ray.protocol.messages import Failure, Report, WorkerInfo
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.task import ClipStatus, FailureKind, Task

TRACEBACK_CHARS = 20_000  # its end, where the error is


class ClipFacts:
    """The facts of the clips of one run; those of a clip are dropped with its row."""

    def __init__(self, plan: TaskTable, dtype: str) -> None:
        self._plan = plan
        self._dtype = dtype
        self._of: dict[int, dict[str, Any]] = {}
        self._text_s = np.zeros(plan.texts.num_rows)
        self._frame_s = np.zeros(plan.first_frames.num_rows)
        self._tracebacks: dict[tuple[Stage, int], str] = {}
        """Of what failed and has not gone well since."""

    def of(self, clip: int) -> dict[str, Any]:
        """What is known of a clip."""
        return self._of.setdefault(clip, {"attempts": 0})

    def started(self, task: Task) -> dict[str, Any]:
        """A task begins; gives what is known of its clip, nothing where it is of no single one."""
        if not task.items or task.stage not in (Stage.DENOISE, Stage.DECODE):
            return {}
        facts = self.of(task.items[0])
        facts["attempts"] += task.stage is Stage.DENOISE
        return facts

    def done(self, task: Task, worker: str, info: WorkerInfo, report: Report) -> None:
        """A task ended well."""
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
                self.of(task.items[0]).update(where | report.facts)
            case Stage.DECODE:
                facts = self.of(task.items[0])
                facts.update({**report.facts, **facts, "decode_worker": worker, "decode_s": report.seconds})

    def failed(self, task: Task, failure: Failure) -> None:
        """A task ended badly: its traceback is kept for the rows of the clips that fail of it."""
        if failure.kind is not FailureKind.CANCELLED and failure.traceback:
            for item in task.items:
                self._tracebacks[task.stage, item] = failure.traceback[-TRACEBACK_CHARS:]

    def row(self, clip: ClipTask, end: Finish) -> dict[str, Any]:
        """The row of a clip that ends now."""
        frame_s = 0.0 if clip.first_frame is None else self._frame_s[clip.first_frame]
        facts = {
            **self._of.pop(end.clip, {}),
            "encode_s": float(self._text_s[clip.texts[0]] + frame_s),
            "dtype": self._dtype,
        }
        if end.status is ClipStatus.FAILED:
            facts["traceback"] = self._traceback(end.clip, clip)
        return result_row(clip, facts, status=end.status, error=end.error, finished_at=datetime.now(UTC))

    def _traceback(self, number: int, clip: ClipTask) -> str | None:
        """Of the last stage of a clip that failed; those of its own are not needed again."""
        own = [self._tracebacks.pop((stage, number), None) for stage in (Stage.DECODE, Stage.DENOISE)]
        inputs = [(Stage.ENCODE_TEXT, text) for text in clip.texts]
        if clip.first_frame is not None:
            inputs.append((Stage.ENCODE_FIRST_FRAME, clip.first_frame))
        return next(filter(None, [*own, *map(self._tracebacks.get, inputs)]), None)
