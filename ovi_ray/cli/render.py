"""`ovi-ray render`: render a prompt list or a job file."""

import json
from dataclasses import replace
from typing import Annotated, NoReturn

import typer

from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, read_job, refuse, unused
from ovi_ray.cli.detach import INPUTS_CHECKED, OPTION, start_detached
from ovi_ray.cli.dry_run import print_bad_rows, show_dry_run
from ovi_ray.cli.faults import given_arguments
from ovi_ray.cli.options import (
    DISPLAY_PANEL,
    KEPT_FIELDS,
    LIST_FIELDS,
    PROMPT_OPTION,
    RUNTIME_FIELDS,
    SAMPLING_PANEL,
    DisplayOptions,
    JobOptions,
    with_display_options,
    with_job_options,
)
from ovi_ray.cli.run import check_watchers, report_end, run_job
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.inputs.shard import Shard
from ovi_ray.output.job_files import read_token
from ovi_ray.printing import Console, counted, shell_command
from ovi_ray.runtime.cluster_probe import check_joinable

KEPT_PANEL = "What an earlier run left"
JOB_PANELS = {
    "What to render": ("ckpt_dir", "output_dir", *LIST_FIELDS),
    **SAMPLING_PANEL,
    "Where and how it runs": (*RUNTIME_FIELDS, "address"),
    KEPT_PANEL: KEPT_FIELDS,
}


Prompts = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPTS",
        help="A prompt list (CSV, TSV, JSON Lines, text, .xlsx, .ods, Arrow, Parquet or a folder of Parquet files) or a job"
        " file (YAML), or a prompt in several words. Files and folders may be in stores: s3://, gs://, hdfs://.",
    ),
]
OnePrompt = Annotated[str | None, PROMPT_OPTION]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Render part I of N parts of the clips, from 0; each part needs its own --out. [default: all]",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Render every clip again, finished ones too. [default: off]", rich_help_panel=KEPT_PANEL
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Read finished videos to their end, and render broken ones again. [default: off]",
        rich_help_panel=KEPT_PANEL,
    ),
]
DryRunFlag = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only say what there is to do, with time and cost by device class given --cluster. [default: off]",
    ),
]
SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows",
        help="Render the rows without problems; the others go to rejected.csv in the folder. [default: off]",
    ),
]
Rows = Annotated[
    str | None,
    typer.Option(
        "--rows", metavar="ROWS", help="Render the clips of these rows only, such as 37,40-60. [default: all]"
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Render at most so many clips. [default: all]")]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Print every decision of the scheduler with its reason. [default: off]",
        rich_help_panel=DISPLAY_PANEL,
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        OPTION,
        help="Go on in the background, also when this terminal is closed, once the input is checked; `ovi-ray status OUT` and"
        " `ovi-ray stop OUT` look after it. [default: off]",
        rich_help_panel="Where and how it runs",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        help="Metrics for Prometheus at this address while the job runs; a port alone is on loopback, and part I of a job in"
        " shards takes the port plus I. [default: off]",
        rich_help_panel=DISPLAY_PANEL,
    ),
]
Notify = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Post JSON to this URL when the job pauses, ends or fails. [default: off]",
        rich_help_panel=DISPLAY_PANEL,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the outcome as JSON on standard output. [default: off]", rich_help_panel=DISPLAY_PANEL
    ),
]


@with_job_options(JOB_PANELS)
@with_display_options
def render(
    job_options: JobOptions,
    display: DisplayOptions,
    prompts: Prompts = None,
    prompt: OnePrompt = None,
    shard: ShardOption = None,
    rows: Rows = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
    verify: Verify = False,
    explain: Explain = False,
    metrics: Metrics = None,
    notify: Notify = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Render a prompt list. Clips that an earlier run of the same job finished are kept: the same command continues it.

    Examples:

        ovi-ray render prompts.csv --ckpt-dir ckpts --out out

        ovi-ray render job.yaml --out out

        ovi-ray render frames.csv --mode i2v --model-name 960x960_5s --ckpt-dir ckpts --out out --address auto

        ovi-ray render s3://bucket/prompts.csv --ckpt-dir s3://bucket/ckpts --out s3://bucket/out

        ovi-ray render prompts.csv --ckpt-dir ckpts --out out --sweep video_guidance_scale=3,4,5 --sweep seed=0-19

        ovi-ray render prompts.csv --ckpt-dir ckpts --out out --skip-bad-rows --dry-run

        ovi-ray render prompts.csv --ckpt-dir ckpts --out out --rows 37,40-60 --limit 5

        ovi-ray render job.yaml --detach && ovi-ray status out

        ovi-ray render --prompt "A dog howls at the moon. Audio: howling" --ckpt-dir ckpts --out howl
    """
    with command_console(display) as console:
        ranges = None if rows is None else RowRanges.parse(rows)
        part = None if shard is None else Shard.parse(shard)
        check_watchers(metrics, notify)
        refuse(unused({"--verify": verify and dry_run}, "beside --dry-run, which reads no video"))
        job = read_job(JobSpec, prompts, {**job_options, "prompt": prompt})
        if job.address and not (dry_run or _is_begun(job)):  # a job that is finished needs no cluster
            check_joinable(job.address)
        from ovi_ray.preparation import prepare

        def print_message(text: str) -> None:
            console.print(text, soft_wrap=True)

        prepared = prepare(job, skip_bad_rows=skip_bad_rows or dry_run, on_message=print_message)
        if part is not None:
            prepared = replace(prepared, manifest=part.of(prepared.manifest))
        if ranges is not None:
            ranges.check(prepared.manifest.table.column("row"))
        if dry_run:
            choice = {"rows": ranges, "limit": limit, "overwrite": overwrite}
            would = show_dry_run(prepared, console, as_json=as_json, **choice)
            raise typer.Exit(ExitCode.BAD_INPUT if would.bad_rows and not skip_bad_rows else ExitCode.OK)
        print_message(f"{INPUTS_CHECKED}{counted(len(prepared.manifest), 'clip')}")
        print_bad_rows(prepared.bad_rows, console)
        if detach:
            _detach(job, console, as_json=as_json)
        options = {"overwrite": overwrite, "verify": verify, "rows": ranges, "limit": limit}
        result = run_job(
            prepared,
            console,
            explain=explain,
            quiet=display.quiet,
            options=options,
            metrics=metrics,
            notify=notify,
            part=part,
        )
    report_end(result, job.output_dir, as_json=as_json)


def _is_begun(job: JobSpec) -> bool:
    try:
        return bool(read_token(job.output_dir))
    except OSError:  # told where the folder is opened
        return True


def _detach(job: JobSpec, console: Console, *, as_json: bool) -> NoReturn:
    """Leave the job to a driver of its own. Raises typer.Exit."""
    driver = start_detached(given_arguments.get(), job.output_dir)
    if driver.exit_code is None:
        status, stop = (shell_command("ovi-ray", verb, job.output_dir) for verb in ("status", "stop"))
        console.print(f"rendering in process {driver.pid}; it prints to {driver.log}", soft_wrap=True)
        console.print(f"{status}; {stop}", style="dim", soft_wrap=True)
    else:
        console.print(driver.last_lines, soft_wrap=True)
    if as_json:
        answer(json.dumps({"pid": driver.pid, "log": str(driver.log), "output_dir": str(job.output_dir)}))
    raise typer.Exit(driver.exit_code or ExitCode.OK)
