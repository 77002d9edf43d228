"""The clips of a list by what they ask of a device's memory: from its cells alone, before images are opened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ovi.quality import Quality
from ovi_ray.inputs.columns import QUALITY_COLUMN, SIZE_COLUMN, is_blank
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.lists.prompt_list import PromptList
from ovi_ray.inputs.params import parse_param
from ovi_ray.inputs.rows import join_sides

_COLUMNS = ("model_name", SIZE_COLUMN, QUALITY_COLUMN)


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipForm:
    """Clips that take the same memory. A first frame changes their shape, and hardly their area."""

    model_name: str
    size: tuple[int, int]
    """Height and width as asked for."""
    quality: Quality

    @classmethod
    def of_job(cls, job: BatchSpec) -> "ClipForm":
        """Of the rows that set nothing themselves."""
        return cls(model_name=job.model_name, size=job.video_frame_height_width, quality=job.quality)

    def __str__(self) -> str:
        height, width = self.size
        quality = "" if self.quality is Quality.EXACT else f", quality {self.quality}"
        return f"{self.model_name}, {height}x{width}{quality}"


def clip_forms(prompts: PromptList, job: BatchSpec) -> tuple[ClipForm, ...]:
    """The forms of a job's clips, each once; that of the job itself where no row can be read. Bad cells are told elsewhere."""
    join_sides(prompts)
    swept = {} if job.sweep is None else job.sweep.values
    absent = [None] * len(prompts)
    columns = [absent if name in swept else prompts.columns.get(name, absent) for name in _COLUMNS]
    rows = {tuple(map(repr, cells)): cells for cells in zip(*columns, strict=True)}
    defaults = [swept.get(name, (getattr(job, name),)) for name in _COLUMNS]
    found = dict.fromkeys(form for cells in rows.values() for form in _forms(cells, defaults))
    return tuple(found) or (ClipForm.of_job(job),)


def _forms(cells: Sequence[Any], defaults: Sequence[Sequence[Any]]) -> Iterator[ClipForm]:
    """The forms of rows with these cells, as many as the job sweeps; none where a cell is bad."""
    try:
        values = [
            default if is_blank(cell) else (parse_param(name, cell),)
            for name, cell, default in zip(_COLUMNS, cells, defaults, strict=True)
        ]
    except ValueError:
        return
    for model_name, size, quality in product(*values):
        yield ClipForm(model_name=model_name, size=tuple(size), quality=Quality(quality))
