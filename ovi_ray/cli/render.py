"""`ovi-ray render`: render a prompt list or a job file."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ovi.attention import AttentionBackend
from ovi.config import SolverName
from ovi_ray.cli.common import EXIT_FAILED_CLIPS, PLACE, plain_errors, read_job
from ovi_ray.cli.run import run_job
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec, Mode
from ovi_ray.output.intermediates import CHECKPOINT_S

if TYPE_CHECKING:
    from ovi_ray.render import JobResult


JOB = "What to render"
CLIP = "Every clip, unless its row says otherwise"
WHERE = "Where"
KEPT = "What is there already"
OUTPUT = "What is shown"


def render(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A prompt list (CSV, TSV, JSON Lines, text, Arrow, Parquet), a job file (YAML), or a prompt. Files and"
            " folders may lie in stores: s3://, gs://, hdfs://."
        ),
    ],
    ckpt_dir: Annotated[str | None, typer.Option(metavar=PLACE, help="Checkpoint folder.", rich_help_panel=JOB)] = None,
    out: Annotated[
        str | None, typer.Option(metavar=PLACE, help="Folder for videos, results and report.", rich_help_panel=JOB)
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="720x720_5s, 960x960_5s or 960x960_10s.", rich_help_panel=JOB)
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="t2v: text alone. i2v: an image in every row. auto: an image where a row has one.", rich_help_panel=JOB
        ),
    ] = None,
    image_path: Annotated[
        str | None, typer.Option(metavar=PLACE, help="First frame of rows without one.", rich_help_panel=JOB)
    ] = None,
    each_example_n_times: Annotated[
        int | None, typer.Option(help="Clips of each row, with seeds counting up.", rich_help_panel=JOB)
    ] = None,
    sample_steps: Annotated[
        str | None, typer.Option(metavar="INTEGER", help="Denoising steps.", rich_help_panel=CLIP)
    ] = None,
    solver_name: Annotated[
        str | None, typer.Option(help=f"ODE solver: {', '.join(SolverName)}.", rich_help_panel=CLIP)
    ] = None,
    shift: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Shift of the noise schedule.", rich_help_panel=CLIP)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="INTEGER", help="Seed that rows without one are derived from.", rich_help_panel=CLIP),
    ] = None,
    video_frame_height_width: Annotated[
        str | None, typer.Option(help="Size, such as 704x1280 (height x width).", rich_help_panel=CLIP)
    ] = None,
    video_guidance_scale: Annotated[str | None, typer.Option(metavar="NUMBER", rich_help_panel=CLIP)] = None,
    audio_guidance_scale: Annotated[str | None, typer.Option(metavar="NUMBER", rich_help_panel=CLIP)] = None,
    slg_layer: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER", help="Block that skip-layer guidance leaves out; 0 for none.", rich_help_panel=CLIP
        ),
    ] = None,
    video_negative_prompt: Annotated[str | None, typer.Option(rich_help_panel=CLIP)] = None,
    audio_negative_prompt: Annotated[str | None, typer.Option(rich_help_panel=CLIP)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers; by default one a GPU, or one.", rich_help_panel=WHERE)
    ] = None,
    device: Annotated[DeviceKind | None, typer.Option(help="What workers run on.", rich_help_panel=WHERE)] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32.", rich_help_panel=WHERE)] = None,
    attention: Annotated[
        str | None,
        typer.Option(help=f"Attention backend: {', '.join(AttentionBackend)}.", rich_help_panel=WHERE),
    ] = None,
    allow_inexact: Annotated[
        bool | None,
        typer.Option("--allow-inexact", help="Attention may change pixels for speed.", rich_help_panel=WHERE),
    ] = None,
    qint8: Annotated[
        bool | None,
        typer.Option("--qint8", help="8-bit weights: half the memory, other pixels.", rich_help_panel=WHERE),
    ] = None,
    fp8: Annotated[
        bool | None, typer.Option("--fp8", help="The published 8-bit float weights.", rich_help_panel=WHERE)
    ] = None,
    cpu_offload: Annotated[
        bool | None,
        typer.Option("--cpu-offload", help="Components wait in the host's memory.", rich_help_panel=WHERE),
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="GB of its device that a worker may use.", rich_help_panel=WHERE)
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar=PLACE,
            help="A cluster profile: its workers, with the stages, memory and speed that it declares.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster to join, such as auto; else one is started here.", rich_help_panel=WHERE),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Render every clip again, finished ones too.", rich_help_panel=KEPT),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read finished videos to their end; render broken ones again.", rich_help_panel=KEPT
        ),
    ] = False,
    keep_latents: Annotated[
        bool, typer.Option("--keep-latents", help="Keep the latents of finished clips.", rich_help_panel=KEPT)
    ] = False,
    checkpoint_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds between two saves of a denoise: what a lost worker costs.", rich_help_panel=KEPT
        ),
    ] = CHECKPOINT_S,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Print every decision of the scheduler and its reason.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as JSON on standard output.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Render a prompt list. What an earlier run of the same job finished is kept, so the same command goes on with it.

    Examples:

        ovi-ray render prompts.csv --ckpt-dir ckpts --out out

        ovi-ray render job.yaml --out out

        ovi-ray render frames.csv --mode i2v --model-name 960x960_5s --ckpt-dir ckpts --out out --address auto

        ovi-ray render s3://bucket/prompts.csv --ckpt-dir s3://bucket/ckpts --out s3://bucket/out

        ovi-ray render "A dog howls at the moon. Audio: howling" --ckpt-dir ckpts --out out
    """
    options: dict[str, Any] = {
        "ckpt_dir": ckpt_dir,
        "output_dir": out,
        "model_name": model_name,
        "mode": mode,
        "image_path": image_path,
        "each_example_n_times": each_example_n_times,
        "sample_steps": sample_steps,
        "solver_name": solver_name,
        "shift": shift,
        "seed": seed,
        "video_frame_height_width": video_frame_height_width,
        "video_guidance_scale": video_guidance_scale,
        "audio_guidance_scale": audio_guidance_scale,
        "slg_layer": slg_layer,
        "video_negative_prompt": video_negative_prompt,
        "audio_negative_prompt": audio_negative_prompt,
        "workers": workers,
        "device": device,
        "dtype": dtype,
        "attention": attention,
        "allow_inexact": allow_inexact,
        "qint8": qint8,
        "fp8": fp8,
        "cpu_offload": cpu_offload,
        "memory_gb": memory_gb,
        "address": address,
        "cluster": cluster,
    }
    console = Console(stderr=True)
    with plain_errors(console):
        job = read_job(prompts, options)
        keeping = {
            "overwrite": overwrite,
            "verify": verify,
            "keep_latents": keep_latents,
            "checkpoint_s": checkpoint_s,
        }
        result = _render(job, console, explain=explain, quiet=quiet, options=keeping)
    if as_json:
        typer.echo(json.dumps({**asdict(result), "output_dir": str(job.output_dir)}))
    raise typer.Exit(EXIT_FAILED_CLIPS if result.failed else 0)


def _render(job: JobSpec, console: Console, *, explain: bool, quiet: bool, options: dict[str, Any]) -> "JobResult":
    from ovi_ray.prepare import prepare

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return run_job(prepare(job, tell=tell), console, explain=explain, quiet=quiet, options=options)
