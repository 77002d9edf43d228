"""`ovi-ray compare`: clips of a quality beside exact ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ovi.attention.types import AttentionBackend
from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, local_path, read_job
from ovi_ray.cli.options import (
    PROMPT_OPTION,
    RUNTIME_FIELDS,
    SAMPLING_PANEL,
    DisplayOptions,
    JobOptions,
    with_display_options,
    with_job_options,
)
from ovi_ray.cli.run import run_job
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show_path
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.printing import Console, counted

if TYPE_CHECKING:
    from ovi_ray.comparison import Comparison

JOB_PANELS = {
    "What to compare": ("ckpt_dir", "output_dir", "model_name", "mode", "image_path", "delimiter", "sheet"),
    **SAMPLING_PANEL,
    "Where and how it runs": (*RUNTIME_FIELDS, "address"),
}

Prompts = Annotated[
    str | None,
    typer.Argument(metavar="PROMPTS", help="A prompt list, a job file (YAML), or a prompt in several words."),
]
OnePrompt = Annotated[str | None, PROMPT_OPTION]
Clips = Annotated[int, typer.Option("--clips", min=1, help="Rows to compare, evenly spaced over the list.")]
Floor = Annotated[
    AttentionBackend | None,
    typer.Option(
        "--floor",
        metavar="BACKEND",
        help="Attention backend of the exact clips that show the noise floor."
        " [default: sdpa_efficient, or sdpa_math on CPUs]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the comparison as JSON. [default: off]")]


@with_job_options(JOB_PANELS)
@with_display_options
def compare(
    job_options: JobOptions,
    display: DisplayOptions,
    prompts: Prompts = None,
    prompt: OnePrompt = None,
    clips: Clips = 3,
    floor: Floor = None,
    as_json: AsJson = False,
) -> None:
    """Render a few clips exactly and with another quality, and tell how far apart they are, in picture and in sound.

    Every figure stands beside that of two exact renderings with different attention backends: the noise floor, which no
    quality can be told from. The clips stay in OUT/pairs and OUT/exact-BACKEND, and the same command continues there.

    Examples:

        ovi-ray compare prompts.csv --quality high --ckpt-dir ckpts --out compared

        ovi-ray compare job.yaml --quality fast --clips 5 --out compared --json
    """
    with command_console(display) as console:
        job = read_job(JobSpec, prompts, {**job_options, "prompt": prompt})
        out = _local_folder(job)
        from ovi_ray.comparison import compare as compared
        from ovi_ray.comparison import comparison_jobs

        def print_message(text: str) -> None:
            console.print(text, soft_wrap=True)

        jobs = comparison_jobs(job, out, clips=clips, floor_attention=floor, on_message=print_message)
        for prepared in (jobs.pairs, jobs.floor):
            run_job(prepared, console, explain=False, quiet=display.quiet, options={})
        print_message("comparing")
        found = compared(jobs, job.quality)
    if as_json:
        answer(json.dumps(comparison_json(found)))
    else:
        print_comparison(found, Console())
    raise typer.Exit(ExitCode.FAILED if found.missing else ExitCode.OK)


def _local_folder(job: JobSpec) -> Path:
    """The output folder. Raises InputError for one in a store: the videos are read many times."""
    if not job.output_dir.is_local:
        expected = "a folder on a disk, from which videos are read"
        problem = Problem(file=COMMAND_LINE, field="--out", value=show_path(job.output_dir), expected=expected)
        raise InputError([problem])
    return local_path(Path(str(job.output_dir)), "--out")


def comparison_json(found: "Comparison") -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        **asdict(found),
        "floor_is_real": found.floor_is_real,
        "speedup": found.speedup,
        "figures": {name: asdict(summary) for name, summary in found.figures.items()},
    }


def print_comparison(found: "Comparison", console: Console) -> None:
    """A comparison as a table, with the audits of each clip."""
    from ovi.media.difference import IDEAL

    console.print(f"{counted(len(found.clips), 'clip')} of quality {found.quality} beside exact ones", style="bold")
    table = Table(box=None, pad_edge=False)
    table.add_column("figure")
    for name in ("equal", "exact, mean", "worst", f"{found.quality}, mean", "worst"):
        table.add_column(name, justify="right")
    for name, summary in found.figures.items():
        numbers = (IDEAL[name], summary.floor_mean, summary.floor_worst, summary.mean, summary.worst)
        table.add_row(name, *(f"{number:.4g}" for number in numbers))
    console.print(table)
    if found.floor_is_real:
        console.print(f"exact: {found.floor_attention} beside {found.attention}", soft_wrap=True)
    else:
        console.print(
            f"no noise floor: every clip was rendered with {found.attention}; --floor names another backend",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"denoise {found.speedup:.2f} times as fast")
    for clip in found.clips:
        console.print(f"row {clip.row}: {_measured(clip.video_loss, clip.audio_loss, clip.exact_from_step)}")
    if found.missing:
        rows = ", ".join(map(str, found.missing))
        console.print(f"not compared, because a rendering failed: row {rows}", style="bold red", soft_wrap=True)


def _measured(video_loss: float | None, audio_loss: float | None, exact_from_step: int | None) -> str:
    """The audits of one clip, in words."""
    if video_loss is None or audio_loss is None:
        return "no step was audited"
    ended = "" if exact_from_step is None else f"; beyond the bound, so exact from step {exact_from_step} on"
    return f"largest measured error of a step {video_loss:.2g} in video, {audio_loss:.2g} in audio{ended}"
