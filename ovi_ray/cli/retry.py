"""`ovi-ray retry`: render failed clips again."""

from typing import Annotated

import typer

from ovi_ray.cli.common import ExitCode, command_console, location
from ovi_ray.cli.options import DisplayOptions, JobOptions, with_display_options, with_job_options
from ovi_ray.cli.run import run_job
from ovi_ray.inputs.params import PARAM_FIELDS

JOB_PANELS = {
    "Changes to every failed clip": ("model_name", *PARAM_FIELDS),
    "Where it runs": ("ckpt_dir", "workers", "device", "address"),
}


@with_job_options(JOB_PANELS, shows_defaults=False)
@with_display_options
def retry(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Output folder of a job in which clips failed: a path or a URI.")
    ],
    job_options: JobOptions,
    display: DisplayOptions,
) -> None:
    """Render the failed clips of an output folder again, and any other clips of the job that are missing.

    A clip whose denoise was finished starts at decode. Options replace the values of every failed clip, including those that
    its row set; the changed clip is another clip, and takes the place of the failed one. Other values stay as they were.

    Examples:

        ovi-ray retry out

        ovi-ray retry out --sample-steps 30 --video-frame-height-width 720x720
    """
    with command_console(display) as console:
        folder = location(out, "OUT")
        from ovi_ray.retry import prepare_retry

        found = prepare_retry(folder, job_options)
        console.print(f"retrying {found.clips} failed clips")
        result = run_job(found.prepared, console, explain=False, quiet=display.quiet, options={"replaces": True})
    raise typer.Exit(ExitCode.FAILED if result.failed or result.unreadable else ExitCode.OK)
