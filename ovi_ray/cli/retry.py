"""`ovi-ray retry`: render again what failed."""

from typing import Annotated, Any

import typer
from rich.console import Console

from ovi_ray.cli.common import EXIT_FAILED_CLIPS, PLACE, location, plain_errors
from ovi_ray.cli.run import run_job
from ovi_ray.inputs.job_spec import DeviceKind


def retry(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Output folder of a job in which clips failed: a path or a URI.")
    ],
    sample_steps: Annotated[str | None, typer.Option(metavar="INTEGER", help="Denoising steps instead.")] = None,
    solver_name: Annotated[str | None, typer.Option(help="ODE solver instead.")] = None,
    shift: Annotated[str | None, typer.Option(metavar="NUMBER", help="Shift of the noise schedule instead.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="INTEGER", help="Seed to derive the clips' from instead.")] = None,
    video_frame_height_width: Annotated[str | None, typer.Option(help="Size instead, such as 720x720.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Model instead.")] = None,
    ckpt_dir: Annotated[str | None, typer.Option(metavar=PLACE, help="Checkpoint folder, where it has moved.")] = None,
    workers: Annotated[int | None, typer.Option(help="Workers.")] = None,
    device: Annotated[DeviceKind | None, typer.Option(help="What workers run on.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to join, such as auto.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Render again what failed in an output folder, and whatever else of its job is missing.

    Clips whose denoise was finished begin at decode. An option holds for every clip that failed, whatever its row said; such
    a clip is another clip, and takes the place of the one that failed.

    Examples:

        ovi-ray retry out

        ovi-ray retry out --sample-steps 30 --video-frame-height-width 720x720
    """
    changes: dict[str, Any] = {
        "sample_steps": sample_steps,
        "solver_name": solver_name,
        "shift": shift,
        "seed": seed,
        "video_frame_height_width": video_frame_height_width,
        "model_name": model_name,
        "ckpt_dir": ckpt_dir,
        "workers": workers,
        "device": device,
        "address": address,
    }
    console = Console(stderr=True)
    with plain_errors(console):
        folder = location(out, "OUT")
        from ovi_ray.retry import prepare_retry

        prepared = prepare_retry(folder, changes)
        console.print(f"{prepared.clips} failed clips are tried again", highlight=False)
        result = run_job(prepared.prepared, console, explain=False, quiet=quiet, options={"replaces": True})
    raise typer.Exit(EXIT_FAILED_CLIPS if result.failed else 0)
