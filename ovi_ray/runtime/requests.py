"""Translates the scheduler's tasks, which are numbers, into work for a worker: texts, images, clips and files."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ovi.geometry import num_frames
from ovi.stages import PRODUCERS, STAGES, Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.result_row import RENDERED
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Assist, Decode, Denoise, EncodeFirstFrame, EncodeTexts, Preload, Work
from ovi_ray.runtime.executor import Submission
from ovi_ray.scheduling.actions import RunTask
from ovi_ray.scheduling.task import DataKey, DataKind, Task

_FIRST_FRAME_COLUMNS = ["image_path", "image_sha256", "height", "width"]


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
        task = action.task
        return Submission(
            worker=action.worker,
            task=task,
            work=self._work(task, facts),
            model_name=action.model_name,
            components=action.components,
            inputs=tuple(self._inputs(task)),
            outputs=tuple(_outputs(task)),
            leader=action.leader,
        )

    def _inputs(self, task: Task) -> Iterator[DataKey]:
        """The data that the clip's earlier stages made; latents only if they are held, else they are read from their file."""
        kinds = STAGES[task.stage].inputs
        clip = self.tasks.clip(task.items[0]) if kinds and task.items else None
        if clip is None:
            return
        for kind in kinds:
            for number in clip.items(STAGES[PRODUCERS[kind]].item):
                key = DataKey(kind=kind, number=number)
                if kind is not DataKind.LATENTS or self.holds(key):
                    yield key

    def _work(self, task: Task, facts: Mapping[str, Any]) -> Work:
        if not task.items:
            return Preload()
        first = task.items[0]
        match task.stage:
            case Stage.ENCODE_TEXT:
                return self._encode_texts(task.items)
            case Stage.ENCODE_FIRST_FRAME:
                return self._encode_first_frame(first)
            case Stage.DENOISE if task.assists:
                return Assist(params=self.tasks.clip(first).params)
            case Stage.DENOISE:
                return self._denoise(self.tasks.clip(first))
            case Stage.DECODE:
                return self._decode(self.tasks.clip(first), facts)

    def _encode_texts(self, items: tuple[int, ...]) -> EncodeTexts:
        return EncodeTexts(texts=tuple(str(self.tasks.texts.column("text")[item]) for item in items))

    def _encode_first_frame(self, item: int) -> EncodeFirstFrame:
        frame = self.tasks.first_frames.select(_FIRST_FRAME_COLUMNS).slice(item, 1).to_pylist()[0]
        return EncodeFirstFrame(**frame)

    def _denoise(self, clip: ClipTask) -> Denoise:
        return Denoise(
            params=clip.params,
            clip_id=clip.clip_id,
            latents_path=self._latents_path(clip),
            checkpoint_path=str(self.intermediates.checkpoint_path(clip.clip_id).absolute()),
            checkpoint_s=self.intermediates.checkpoint_s,
        )

    def _decode(self, clip: ClipTask, facts: Mapping[str, Any]) -> Decode:
        parameters = {
            "clip_id": clip.clip_id,
            "prompt": clip.prompt,
            "model_name": clip.model_name,
            **{name: getattr(clip.params, name) for name in clip.params.__dataclass_fields__},
            "dtype": self.dtype,
            **({"key": clip.key} if clip.key else {}),
            **({"varies": clip.varies} if clip.varies else {}),
            **clip.meta,
            RENDERED: dict(facts),
        }
        return Decode(
            clip_id=clip.clip_id,
            latents_path=self._latents_path(clip),
            video_path=str(self.results.video_path(clip.clip_id).absolute()),
            poster_path=str(self.results.poster_path(clip.clip_id).absolute()),
            num_frames=num_frames(clip.video_latent_length),
            title=f"{clip.text_prompt} ({clip.varied})" if clip.varied else clip.text_prompt,
            parameters=parameters,
        )

    def _latents_path(self, clip: ClipTask) -> str:
        return str(self.intermediates.latents_path(clip.clip_id).absolute())


def _outputs(task: Task) -> Iterator[DataKey]:
    kind = STAGES[task.stage].output
    if kind is not None and not task.assists:
        for item in task.items:
            yield DataKey(kind=kind, number=item)
