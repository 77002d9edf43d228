"""Summary of a job: its clips and its needs, computed from its file and its prompt list alone."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ovi.config import FRAMES_PER_SECOND, Architecture, Component, model_spec
from ovi.memory.plan import MemoryDemand, activations
from ovi.quality import Quality
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import model_files
from ovi_ray.inputs.columns import QUALITY_COLUMN
from ovi_ray.inputs.job_spec import BatchSpec, Weights
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.inputs.prompt_lengths import text_limit
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.inputs.task_table import TaskTable
from ovi_ray.printing import counted
from ovi_ray.scheduling.device_profile import (
    BF16_SIZES,
    INT8_SIZES,
    STREAMED_HOST_GB,
    STREAMED_SIZES,
    ComponentSizes,
)

_ITEMSIZE = {"bfloat16": 2, "float32": 4}
_SIZES = {
    WeightFormat.DTYPE: BF16_SIZES,
    WeightFormat.QINT8: INT8_SIZES,
    WeightFormat.FP8: ComponentSizes(transformer=INT8_SIZES.transformer),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelNeeds:
    """Files and memory that one model of a job needs."""

    name: str
    files: tuple[str, ...]
    """Relative to the checkpoint folder."""
    resident_gb: float
    """Device memory with every component in it."""
    staged_gb: float
    """Device memory with only the current stage's components in it: less, and slower."""
    pinned_gb: float
    """Host memory for the transformer's blocks of each device, where they are streamed."""


@dataclass(kw_only=True, slots=True, frozen=True)
class JobSummary:
    """The clips of a job and what they need."""

    rows: int
    combinations: int
    """Of a sweep; 1 without one."""
    clips: int
    texts: int
    first_frames: int
    kinds: tuple[str, ...]
    """Clips by size, length, steps and model, such as "12 of 960x960, 5.0 s, 50 steps, 960x960_5s"."""
    models: tuple[ModelNeeds, ...]
    images: tuple[str, ...]
    """Paths or URIs of the first frames."""
    notes: tuple[str, ...]


def manifest_of(job: BatchSpec, prompts: PromptList | None = None) -> Manifest:
    """The clips of a job: no weights are read. Raises InputError, and CheckpointMismatch for an invalid `architecture.json`.

    `prompts` is the job's list, where it has been read already, or a part of it. The models have the sizes of a checkpoint
    folder that is on this machine, else the published ones. The ids differ from those of a render, which depend on the weights.
    """
    folder = None if job.ckpt_dir is None else job.ckpt_dir.local_path
    return build_manifest(
        job,
        Architecture() if folder is None else Architecture.read(folder),
        weights=lambda name: name,
        numerics=job.numerics,
        limit=text_limit(job.ckpt_dir, job.model_name),
        prompts=prompts,
    )


def summarise(job: BatchSpec, manifest: Manifest) -> JobSummary:
    """See JobSummary."""
    tasks = TaskTable.of(manifest)
    columns = ["model_name", "height", "width", "sample_steps", QUALITY_COLUMN, "video_latent_length"]
    clips = manifest.table.select(columns).to_pylist()
    images = manifest.table.column("image_path").unique().drop_null().to_pylist()
    return JobSummary(
        rows=len(manifest.table.column("row").unique()),
        combinations=1 if job.sweep is None else job.sweep.size,
        clips=len(manifest),
        texts=tasks.texts.num_rows,
        first_frames=tasks.first_frames.num_rows,
        kinds=tuple(f"{count} of {kind}" for kind, count in Counter(map(_kind, clips)).items()),
        models=tuple(_needs(job, name, clips) for name in dict.fromkeys(clip["model_name"] for clip in clips)),
        images=tuple(sorted(images)),
        notes=(*job.notes, *manifest.notes),
    )


def _kind(clip: dict[str, Any]) -> str:
    seconds = (4 * clip["video_latent_length"] - 3) / FRAMES_PER_SECOND
    size = f"{clip['height']}x{clip['width']}"
    quality = "" if clip[QUALITY_COLUMN] == Quality.EXACT else f", quality {clip[QUALITY_COLUMN]}"
    return f"{size}, {seconds:.0f} s, {counted(clip['sample_steps'], 'step')}, {clip['model_name']}{quality}"


def _needs(job: BatchSpec, name: str, clips: Iterable[dict[str, Any]]) -> ModelNeeds:
    spec = in_format(model_spec(name), job.weight_format)
    itemsize = _ITEMSIZE[job.dtype]
    streams = job.weights is Weights.STREAMED
    sizes = STREAMED_SIZES if streams else _SIZES[job.weight_format]
    components = {part: int(1e9 * sizes.of(part)) for part in Component}
    if job.weight_format is WeightFormat.DTYPE:
        components = {part: size * itemsize // 2 for part, size in components.items()}
    kinds = {(clip["height"], clip["width"], clip[QUALITY_COLUMN]) for clip in clips if clip["model_name"] == name}
    peaks = [
        activations(Architecture(), spec, height, width, itemsize, Quality(quality), weights=job.weight_format)
        for height, width, quality in kinds
    ]
    largest = {stage: max(peak[stage] for peak in peaks) for stage in Stage}
    demand = MemoryDemand(components=components, activations=largest)
    return ModelNeeds(
        name=name,
        files=tuple(model_files(spec)),
        resident_gb=demand.resident / 1e9,
        staged_gb=demand.staged / 1e9,
        pinned_gb=STREAMED_HOST_GB * itemsize / 2 if streams else 0.0,
    )
