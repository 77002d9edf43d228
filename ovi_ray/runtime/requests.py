"""What a task of the scheduler means to a worker: which texts, which image, which clip, which files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovi.geometry import num_frames
from ovi.stages import Stage
from ovi_ray.inputs.task_table import ClipTask, TaskTable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.result_row import RENDERED
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import Decode, Denoise, EncodeFirstFrame, EncodeTexts, Preload, Work
from ovi_ray.scheduling.task import DataKey, DataKind, Task

_FIRST_FRAME = ["image_path", "image_sha256", "height", "width"]


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskOrder:
    """A task as a worker does it."""

    work: Work
    inputs: tuple[DataKey, ...] = ()
    """Names of the data that it takes, in order."""
    outputs: tuple[DataKey, ...] = ()
    """Names of the data that it gives."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskOrders:
    """The orders of one job."""

    plan: TaskTable
    ledger: Results
    keep: Intermediates
    dtype: str

    def order(self, task: Task, facts: Mapping[str, Any], *, has_latents: bool) -> TaskOrder:
        """What a task is. `facts` are what is known of its clip; without `has_latents` a decode reads their file."""
        if not task.items:
            return TaskOrder(work=Preload())
        first = task.items[0]
        latents = DataKey(kind=DataKind.LATENTS, number=first)
        match task.stage:
            case Stage.ENCODE_TEXT:
                texts = tuple(str(self.plan.texts.column("text")[item]) for item in task.items)
                outputs = tuple(DataKey(kind=DataKind.TEXT, number=item) for item in task.items)
                return TaskOrder(work=EncodeTexts(texts=texts), outputs=outputs)
            case Stage.ENCODE_FIRST_FRAME:
                frame = self.plan.first_frames.select(_FIRST_FRAME).slice(first, 1).to_pylist()[0]
                key = DataKey(kind=DataKind.FIRST_FRAME, number=first)
                return TaskOrder(work=EncodeFirstFrame(**frame), outputs=(key,))
            case Stage.DENOISE:
                clip = self.plan.clip(first)
                return TaskOrder(work=self._denoise(clip), inputs=_inputs(clip), outputs=(latents,))
            case Stage.DECODE:
                work = self._decode(self.plan.clip(first), facts)
                return TaskOrder(work=work, inputs=(latents,) if has_latents else ())

    def _denoise(self, clip: ClipTask) -> Denoise:
        return Denoise(
            params=clip.params,
            clip_id=clip.clip_id,
            latents_path=str(self.keep.latents_path(clip.clip_id).absolute()),
            checkpoint_path=str(self.keep.checkpoint_path(clip.clip_id).absolute()),
            checkpoint_s=self.keep.checkpoint_s,
        )

    def _decode(self, clip: ClipTask, facts: Mapping[str, Any]) -> Decode:
        parameters = {
            "clip_id": clip.clip_id,
            "prompt": clip.prompt,
            "model_name": clip.model_name,
            **{name: getattr(clip.params, name) for name in clip.params.__dataclass_fields__},
            "dtype": self.dtype,
            RENDERED: dict(facts),
        }
        return Decode(
            clip_id=clip.clip_id,
            latents_path=str(self.keep.latents_path(clip.clip_id).absolute()),
            video_path=str(self.ledger.video_path(clip.clip_id).absolute()),
            poster_path=str(self.ledger.poster_path(clip.clip_id).absolute()),
            num_frames=num_frames(clip.video_latent_length),
            title=clip.text_prompt,
            parameters=parameters,
        )


def _inputs(clip: ClipTask) -> tuple[DataKey, ...]:
    texts = tuple(DataKey(kind=DataKind.TEXT, number=number) for number in clip.texts)
    if clip.first_frame is None:
        return texts
    return (*texts, DataKey(kind=DataKind.FIRST_FRAME, number=clip.first_frame))
