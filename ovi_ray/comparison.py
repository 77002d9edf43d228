"""A quality beside exact clips: a few clips rendered both ways, and exactly once more with another attention backend.

Two exact renderings differ too, because kernels round differently and a clip amplifies it over its steps. Their difference
is the floor: what a quality loses shows only above it.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovi.attention import AttentionBackend
from ovi.media.difference import IDEAL, ClipDifference, clip_difference
from ovi.quality import Quality
from ovi_ray.devices.kernel_gpus import may_have_gpu
from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.inputs.columns import QUALITY_COLUMN
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec
from ovi_ray.inputs.manifest import read_prompts
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.inputs.sweep import DeclaredSweep
from ovi_ray.output.results import read_rows
from ovi_ray.preparation import PreparedJob, prepare
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import to_location

_ROW_COLUMNS = (
    "row",
    QUALITY_COLUMN,
    "status",
    "video_path",
    "finished_at",
    "attention_backend",
    "denoise_s",
    "video_loss",
    "audio_loss",
    "exact_from_step",
)


@dataclass(kw_only=True, slots=True, frozen=True)
class ComparisonJobs:
    """The two jobs whose clips are compared."""

    pairs: PreparedJob
    """Each clip exactly and with the quality."""
    floor: PreparedJob
    """Each clip exactly, with another attention backend."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ComparedClip:
    """One clip rendered three times."""

    row: int
    """Row of the prompt list, from 1."""
    difference: ClipDifference
    """Of the clip with the quality from the exact one."""
    floor: ClipDifference
    """Of the exact clip with the other backend from the exact one."""
    exact_denoise_s: float
    denoise_s: float
    """With the quality."""
    video_loss: float | None
    """Largest relative error of a velocity that the clip's audits found."""
    audio_loss: float | None
    exact_from_step: int | None
    """The step from which the clip went on exactly; None if it never did."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Summary:
    """A figure over all clips. Means and worst values of signed figures are of their amounts."""

    mean: float
    worst: float
    floor_mean: float
    floor_worst: float


@dataclass(kw_only=True, slots=True, frozen=True)
class Comparison:
    """Differences, seconds and losses of some clips rendered with a quality and exactly."""

    quality: Quality
    clips: tuple[ComparedClip, ...]
    missing: tuple[int, ...]
    """Rows of which a rendering failed."""
    attention: str
    """That the pairs were rendered with."""
    floor_attention: str

    @property
    def floor_is_real(self) -> bool:
        """Whether the floor was rendered with another backend than the pairs."""
        return self.attention != self.floor_attention

    @property
    def speedup(self) -> float:
        """Seconds of exact denoises over those with the quality."""
        return sum(clip.exact_denoise_s for clip in self.clips) / sum(clip.denoise_s for clip in self.clips)

    @property
    def figures(self) -> dict[str, Summary]:
        """The figures of `ClipDifference`, by name."""
        return {name: self._summary(name) for name in IDEAL}

    def _summary(self, name: str) -> Summary:
        mean, worst = _mean_and_worst(name, [clip.difference for clip in self.clips])
        floor_mean, floor_worst = _mean_and_worst(name, [clip.floor for clip in self.clips])
        return Summary(mean=mean, worst=worst, floor_mean=floor_mean, floor_worst=floor_worst)


def comparison_jobs(
    job: JobSpec,
    out: Path,
    *,
    clips: int,
    floor_attention: AttentionBackend | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> ComparisonJobs:
    """The jobs for `clips` rows of a job's list, evenly spaced, and the job's quality. Raises InputError."""
    if job.quality is Quality.EXACT:
        expected = "high or fast: what is compared with exact clips"
        raise InputError([Problem(file=COMMAND_LINE, field="--quality", value=str(job.quality), expected=expected)])
    backend = floor_attention or _other_backend(job)
    if backend is job.attention:
        expected = "another backend than that of the clips: the floor is the difference that a backend makes"
        raise InputError([Problem(file=COMMAND_LINE, field="--floor", value=str(backend), expected=expected)])
    prompts = _some(read_prompts(job), clips)
    sides = {"quality": Quality.EXACT, "each_example_n_times": 1, "keep_seeds": None}
    both = {
        "sweep": DeclaredSweep.model_validate({"quality": [Quality.EXACT, job.quality]}),
        "output_dir": to_location(out / "pairs"),
    }
    other = {"sweep": None, "attention": backend, "output_dir": to_location(out / f"exact-{backend}")}
    return ComparisonJobs(
        pairs=prepare(job.model_copy(update={**sides, **both}), prompts=prompts, on_message=on_message),
        floor=prepare(job.model_copy(update={**sides, **other}), prompts=prompts, on_message=on_message),
    )


def compare(jobs: ComparisonJobs, quality: Quality) -> Comparison:
    """The comparison of the clips that both jobs have rendered. Raises MediaError, OSError, and InputError for none."""
    pairs, floor = _Rendered.of(jobs.pairs), _Rendered.of(jobs.floor)
    rows = jobs.floor.manifest.table.column("row").to_pylist()
    complete = [row for row in rows if pairs.has(row, Quality.EXACT, quality) and floor.has(row, Quality.EXACT)]
    if not complete:
        expected = "at least one clip that was rendered all three times; `ovi-ray retry` it, and compare again"
        raise InputError([Problem(file=str(pairs.folder), value="no clip to compare", expected=expected)])
    return Comparison(
        quality=quality,
        clips=tuple(_compared(row, quality, pairs, floor) for row in complete),
        missing=tuple(row for row in rows if row not in complete),
        attention=pairs.attention,
        floor_attention=floor.attention,
    )


@dataclass(kw_only=True, slots=True, frozen=True)
class _Rendered:
    """The finished clips of a folder, by row and quality."""

    folder: Path
    clips: Mapping[tuple[int, str], Mapping[str, Any]]

    @classmethod
    def of(cls, prepared: PreparedJob) -> "_Rendered":
        folder = prepared.job.output_dir
        rows = sorted(read_rows(folder, _ROW_COLUMNS).to_pylist(), key=lambda row: row["finished_at"])
        done = {(row["row"], row[QUALITY_COLUMN]): row for row in rows if row["status"] == ClipStatus.DONE}
        return cls(folder=Path(str(folder)), clips=done)

    @property
    def attention(self) -> str:
        return " | ".join(sorted({str(row["attention_backend"]) for row in self.clips.values()}))

    def has(self, row: int, *qualities: Quality) -> bool:
        return all((row, quality) in self.clips for quality in qualities)

    def video(self, row: int, quality: Quality) -> Path:
        return self.folder / str(self.clips[row, quality]["video_path"])


def _compared(row: int, quality: Quality, pairs: _Rendered, floor: _Rendered) -> ComparedClip:
    exact, lossy = pairs.clips[row, Quality.EXACT], pairs.clips[row, quality]
    reference = pairs.video(row, Quality.EXACT)
    return ComparedClip(
        row=row,
        difference=clip_difference(reference, pairs.video(row, quality)),
        floor=clip_difference(reference, floor.video(row, Quality.EXACT)),
        exact_denoise_s=exact["denoise_s"],
        denoise_s=lossy["denoise_s"],
        video_loss=lossy["video_loss"],
        audio_loss=lossy["audio_loss"],
        exact_from_step=lossy["exact_from_step"],
    )


def _mean_and_worst(name: str, differences: Sequence[ClipDifference]) -> tuple[float, float]:
    ideal = IDEAL[name]
    values = [float(getattr(difference, name)) for difference in differences]
    if ideal == 0:
        values = list(map(abs, values))
    return statistics.fmean(values), max(values, key=lambda value: abs(value - ideal))


def _some(prompts: PromptList, count: int) -> PromptList:
    """Evenly spaced rows of a list, which do not set a quality themselves."""
    step = max(1, len(prompts) // count)
    chosen = prompts.taken(range(0, len(prompts), step)[:count])
    return replace(chosen, columns={name: cells for name, cells in chosen.columns.items() if name != QUALITY_COLUMN})


def _other_backend(job: JobSpec) -> AttentionBackend:
    """A backend of torch's that `auto` hardly ever chooses, and that full-size clips have memory for."""
    on_cpu = job.device is DeviceKind.CPU or (job.device is DeviceKind.AUTO and not may_have_gpu())
    return AttentionBackend.SDPA_MATH if on_cpu else AttentionBackend.SDPA_EFFICIENT
