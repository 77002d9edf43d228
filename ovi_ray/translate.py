"""A job in the scheduler's terms: its clips as a workload, a worker's device as a profile."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi.config import Component
from ovi_ray import stages
from ovi_ray.costs import BF16_SIZES, ComponentSizes, DeviceProfile, StageRates
from ovi_ray.orders import WorkerInfo
from ovi_ray.plan import JobPlan
from ovi_ray.workload import ClipKind, IntArray, Workload


def workload_of(plan: JobPlan, with_latents: pa.Array | None = None) -> Workload:
    """The plan as the scheduler sees it: clips of the same cost share a kind.

    `with_latents` are ids of clips, of this plan or not, whose latents are kept: those of the plan begin at decode.
    """
    names = ("model_name", "height", "width", "video_latent_length", "sample_steps")
    columns = [plan.clips.column(name).to_pylist() for name in names]
    has_image = (plan.clip_first_frame >= 0).tolist()
    number_of: dict[tuple[Any, ...], int] = {}
    clip_kind = [number_of.setdefault(key, len(number_of)) for key in zip(*columns, has_image, strict=True)]
    kinds = [ClipKind(**dict(zip((*names, "has_image"), key, strict=True))) for key in number_of]
    with_frame = np.flatnonzero(plan.clip_first_frame >= 0)
    frame_kind = np.zeros(plan.first_frames.num_rows, np.int32)
    frame_kind[plan.clip_first_frame[with_frame]] = np.asarray(clip_kind, np.int32)[with_frame]
    return Workload(
        kinds=tuple(kinds),
        clip_kind=np.asarray(clip_kind, np.int32),
        clip_texts=plan.clip_texts,
        text_tokens=np.array([_tokens(text) for text in plan.texts.column("text").to_pylist()], np.int32),
        clip_first_frame=plan.clip_first_frame,
        first_frame_kind=frame_kind,
        clips_with_latents=_places(plan, with_latents),
    )


def _places(plan: JobPlan, ids: pa.Array | None) -> IntArray:
    if ids is None or not len(ids):
        return np.zeros(0, np.int32)
    is_there = pc.is_in(plan.clips.column("clip_id"), value_set=ids)
    return np.flatnonzero(is_there.to_numpy()).astype(np.int32)


def device_profile(info: WorkerInfo, dtype: str) -> DeviceProfile:
    """A worker's device as the scheduler sees it; its speeds are a first guess that measuring corrects.

    A smaller model than the published one does less work for the same clip: the guess is scaled by its weights.
    """
    bytes_per_weight = 4 if dtype == "float32" else 2
    sizes = ComponentSizes(
        text_encoder=info.component_gb[Component.TEXT_ENCODER],
        transformer=info.component_gb[Component.TRANSFORMER],
        video_vae=info.component_gb[Component.VIDEO_VAE],
        audio_vae=info.component_gb[Component.AUDIO_VAE] + info.component_gb[Component.VOCODER],
    )
    rate = _CPU_TFLOPS if info.vendor == "cpu" else _GPU_TFLOPS

    def scaled(component: stages.Component) -> float:
        return rate * BF16_SIZES.of(component) * bytes_per_weight / 2 / sizes.of(component)

    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        sizes=sizes,
        rates=StageRates(
            encode_text=scaled(stages.Component.TEXT_ENCODER),
            encode_first_frame=scaled(stages.Component.VIDEO_VAE),
            denoise=scaled(stages.Component.TRANSFORMER),
            decode=scaled(stages.Component.VIDEO_VAE),
        ),
    )


_CPU_TFLOPS = 0.05
_GPU_TFLOPS = 150.0


def _tokens(text: str) -> int:
    """About how many tokens a text has: enough to balance batches."""
    return 1 + len(text) // 4


def own_components(wanted: frozenset[stages.Component]) -> frozenset[Component]:
    """The model's components that the scheduler's stand for: its audio VAE is the vocoder too."""
    own = {Component(component) for component in wanted}
    return frozenset(own | {Component.VOCODER}) if Component.AUDIO_VAE in own else frozenset(own)
