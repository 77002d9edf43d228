"""`ovi-ray retry`: render clips of an output folder again."""

from typing import TYPE_CHECKING, Annotated

import typer

from ovi_ray.cli.common import command_console, location
from ovi_ray.cli.options import (
    KEPT_FIELDS,
    RUNTIME_FIELDS,
    DisplayOptions,
    JobOptions,
    with_display_options,
    with_job_options,
)
from ovi_ray.cli.render import KEPT_PANEL, AsJson, Explain, Limit, Metrics, Notify
from ovi_ray.cli.run import check_watchers, report_end, run_job
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.printing import counted
from ovi_ray.storage.diagnostics import usable

if TYPE_CHECKING:
    from ovi_ray.retry import Retry

JOB_PANELS = {
    "Changes to every clip that is tried again": ("model_name", "mode", "image_path", *PARAM_FIELDS),
    "Where and how it runs": ("ckpt_dir", *RUNTIME_FIELDS, "address"),
    KEPT_PANEL: tuple(name for name in KEPT_FIELDS if name != "keep_seeds"),
}


@with_job_options(JOB_PANELS, default="as before")
@with_display_options
def retry(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job: a path or a URI.")],
    job_options: JobOptions,
    display: DisplayOptions,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="ROWS",
            help="Only clips of these rows, such as 37,40-60; with a change, finished ones too. [default: all]",
        ),
    ] = None,
    new_seed: Annotated[
        bool, typer.Option("--new-seed", help="Another seed for every clip that is tried again. [default: off]")
    ] = False,
    limit: Limit = None,
    explain: Explain = False,
    metrics: Metrics = None,
    notify: Notify = None,
    as_json: AsJson = False,
) -> None:
    """Render the failed clips of an output folder again, and any other clips of the job that are missing.

    A clip whose denoise was finished starts at decode. Options replace the values of every clip that is tried again, including
    those that its row set; the changed clip is another clip, and takes the place of the former one, which is superseded. Other
    values stay as they were. Where every clip is finished, there is nothing to do.

    Examples:

        ovi-ray retry out

        ovi-ray retry out --rows 37 --new-seed

        ovi-ray retry out --sample-steps 30 --video-frame-height-width 720x720
    """
    with command_console(display) as console:
        folder = location(out, "OUT")
        ranges = None if rows is None else RowRanges.parse(rows)
        check_watchers(metrics, notify)
        from ovi_ray.rendering import JobResult
        from ovi_ray.retry import prepare_retry

        def tell(text: str) -> None:
            console.print(text, soft_wrap=True)

        with usable(folder):
            found = prepare_retry(folder, job_options, rows=ranges, new_seed=new_seed, on_message=tell)
        console.print(_what(found, ranges), soft_wrap=True)
        if found.prepared is None:
            result = JobResult(clips=found.total, done=0, failed=0, finished_before=found.finished, seconds=0.0)
        else:
            options = {"replaces": True, "rows": ranges, "limit": limit}
            result = run_job(
                found.prepared,
                console,
                explain=explain,
                quiet=display.quiet,
                options=options,
                metrics=metrics,
                notify=notify,
            )
    report_end(result, folder, as_json=as_json)


def _what(found: "Retry", rows: RowRanges | None) -> str:
    """The number of clips that are rendered now and why, in words."""
    parts = [f"trying {counted(found.clips, 'clip')} again"] if found.clips else []
    if found.missing:
        parts.append(
            f"rendering {counted(found.missing, 'clip')} that {'was' if found.missing == 1 else 'were'} not rendered"
        )
    if parts:
        return ", ".join(parts)
    if rows is not None:
        return "nothing to retry: these rows are finished; --new-seed or another parameter renders them anew"
    return f"nothing to retry: {counted(found.total, 'clip')}, all finished"
