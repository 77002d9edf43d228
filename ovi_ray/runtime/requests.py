"""Translates the scheduler's tasks, which are numbers, into work for a worker: texts, images, clips and files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ovi.geometry import num_frames
from ovi.stages import Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.result_row import RENDERED
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Decode, Denoise, EncodeFirstFrame, EncodeTexts, Preload, Work
from ovi_ray.runtime.executor import Submission
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.task import DataKey, DataKind, Task

_FIRST_FRAME_COLUMNS = ["image_path", "image_sha256", "height", "width"]


@dataclass(kw_only=True, slots=True, frozen=True)
class _WorkItem:
    work: Work
    inputs: tuple[DataKey, ...] = ()
    outputs: tuple[DataKey, ...] = ()


@dataclass(kw_only=True, slots=True, frozen=True)
class RequestBuilder:
    """Builds the submissions of one job."""

    tasks: TaskTable
    results: Results
    intermediates: Intermediates
    dtype: str
    holds: Callable[[DataKey], bool]
    """Whether the executor has a datum; a decode whose latents it has not reads their file."""

    def build(self, action: RunTask, facts: Mapping[str, Any]) -> Submission:
        """The submission for an action. `facts` are the known columns of the clip's result row."""
        item = self._work_item(action.task, facts)
        return Submission(
            worker=action.worker,
            task=action.task,
            work=item.work,
            model_name=action.model_name,
            components=action.components,
            inputs=item.inputs,
            outputs=item.outputs,
        )

    def _work_item(self, task: Task, facts: Mapping[str, Any]) -> _WorkItem:
        if not task.items:
            return _WorkItem(work=Preload())
        first = task.items[0]
        match task.stage:
            case Stage.ENCODE_TEXT:
                return self._encode_texts(task.items)
            case Stage.ENCODE_FIRST_FRAME:
                return self._encode_first_frame(first)
            case Stage.DENOISE:
                return self._denoise(self.tasks.clip(first))
            case Stage.DECODE:
                return self._decode(self.tasks.clip(first), facts)

    def _encode_texts(self, items: tuple[int, ...]) -> _WorkItem:
        texts = tuple(str(self.tasks.texts.column("text")[item]) for item in items)
        outputs = tuple(DataKey(kind=DataKind.TEXT, number=item) for item in items)
        return _WorkItem(work=EncodeTexts(texts=texts), outputs=outputs)

    def _encode_first_frame(self, item: int) -> _WorkItem:
        frame = self.tasks.first_frames.select(_FIRST_FRAME_COLUMNS).slice(item, 1).to_pylist()[0]
        return _WorkItem(work=EncodeFirstFrame(**frame), outputs=(DataKey(kind=DataKind.FIRST_FRAME, number=item),))

    def _denoise(self, clip: ClipTask) -> _WorkItem:
        work = Denoise(
            params=clip.params,
            clip_id=clip.clip_id,
            latents_path=self._latents_path(clip),
            checkpoint_path=str(self.intermediates.checkpoint_path(clip.clip_id).absolute()),
            checkpoint_s=self.intermediates.checkpoint_s,
        )
        return _WorkItem(work=work, inputs=_inputs(clip), outputs=(_latents(clip),))

    def _decode(self, clip: ClipTask, facts: Mapping[str, Any]) -> _WorkItem:
        parameters = {
            "clip_id": clip.clip_id,
            "prompt": clip.prompt,
            "model_name": clip.model_name,
            **{name: getattr(clip.params, name) for name in clip.params.__dataclass_fields__},
            "dtype": self.dtype,
            **clip.meta,
            RENDERED: dict(facts),
        }
        work = Decode(
            clip_id=clip.clip_id,
            latents_path=self._latents_path(clip),
            video_path=str(self.results.video_path(clip.clip_id).absolute()),
            poster_path=str(self.results.poster_path(clip.clip_id).absolute()),
            num_frames=num_frames(clip.video_latent_length),
            title=clip.text_prompt,
            parameters=parameters,
        )
        return _WorkItem(work=work, inputs=(_latents(clip),) if self.holds(_latents(clip)) else ())

    def _latents_path(self, clip: ClipTask) -> str:
        return str(self.intermediates.latents_path(clip.clip_id).absolute())


def _latents(clip: ClipTask) -> DataKey:
    return DataKey(kind=DataKind.LATENTS, number=clip.index)


def _inputs(clip: ClipTask) -> tuple[DataKey, ...]:
    texts = tuple(DataKey(kind=DataKind.TEXT, number=number) for number in clip.texts)
    if clip.first_frame is None:
        return texts
    return (*texts, DataKey(kind=DataKind.FIRST_FRAME, number=clip.first_frame))
