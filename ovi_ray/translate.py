"""A job in the scheduler's terms: its clips as a workload, a worker's device as a profile."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi.config import Component
from ovi.stages import Stage
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

    What a cluster profile declares of it goes before what is assumed. A smaller model than the published one does less work
    for the same clip: the rates are scaled by its weights.
    """
    bytes_per_weight = 4 if dtype == "float32" else 2
    sizes = ComponentSizes(**{component.value: size for component, size in info.component_gb.items()})
    base = info.declared or _assumed(info)

    def scaled(stage: Stage, component: Component) -> float:
        return base.rates.of(stage) * BF16_SIZES.of(component) * bytes_per_weight / 2 / sizes.of(component)

    return dataclasses.replace(
        base,
        memory_gb=min(base.memory_gb, info.memory_gb),
        sizes=sizes,
        rates=StageRates(
            encode_text=scaled(Stage.ENCODE_TEXT, Component.TEXT_ENCODER),
            encode_first_frame=scaled(Stage.ENCODE_FIRST_FRAME, Component.VIDEO_VAE),
            denoise=scaled(Stage.DENOISE, Component.TRANSFORMER),
            decode=scaled(Stage.DECODE, Component.VIDEO_VAE),
        ),
    )


def _assumed(info: WorkerInfo) -> DeviceProfile:
    rate = _CPU_TFLOPS if info.vendor == "cpu" else _GPU_TFLOPS
    return DeviceProfile(
        name=info.device,
        vendor=info.vendor,
        architecture=info.architecture,
        memory_gb=info.memory_gb,
        rates=StageRates(encode_text=rate, encode_first_frame=rate, denoise=rate, decode=rate),
    )


_CPU_TFLOPS = 0.05
_GPU_TFLOPS = 150.0


def _tokens(text: str) -> int:
    """About how many tokens a text has: enough to balance batches."""
    return 1 + len(text) // 4
