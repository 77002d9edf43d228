"""`ovi-ray job`: check job files, show what they mean, and print their JSON Schema."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovi_ray.answers import answer
from ovi_ray.cli.common import EXIT_CODE_HELP, ExitCode, command_console, location
from ovi_ray.cli.faults import Command
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.cli.plan import profile_of
from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.job_file import ALIASES, Given, read_yaml
from ovi_ray.inputs.job_spec import PortableJob
from ovi_ray.printing import Console, counted
from ovi_ray.report.durations import format_duration
from ovi_ray.storage.paths import Location

if TYPE_CHECKING:
    from ovi_ray.inputs.job_summary import JobSummary
    from ovi_ray.simulation.forecast import Forecast

job = typer.Typer(help="Check job files and show what they mean.", epilog=EXIT_CODE_HELP, no_args_is_help=True)

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML), a path or a URI.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON. [default: off]")]
_FILES_SHOWN = 12


@job.command(cls=Command)
@with_display_options
def validate(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Job files (YAML), paths or URIs.")],
    display: DisplayOptions,
    as_json: AsJson = False,
) -> None:
    """Check job files: every key, every row of their prompt lists, every image, the cluster profile.

    Checkpoint and output folders are those of the machine that renders, and are not looked for here.

    Examples:

        ovi-ray job validate job.yaml

        ovi-ray job validate jobs/*/job.yaml --json
    """
    with command_console(display) as console:
        problems: list[Problem] = []
        checked: dict[str, JobSummary] = {}
        for name in jobs:
            try:
                checked[name] = _read(location(name, "JOB"))[1]
            except InputError as error:
                problems += error.problems
        if as_json:
            found = [asdict(problem) for problem in problems]
            answer(json.dumps({"valid": not problems, "jobs": sorted(checked), "problems": found}))
        else:
            for name, summary in checked.items():
                console.print(f"{name}: valid, {counted(summary.clips, 'clip')}", soft_wrap=True)
        if problems:
            raise typer.Exit(ExitCode.BAD_INPUT) if as_json else InputError(problems)


@job.command(cls=Command)
@with_display_options
def show(file: JobFile, display: DisplayOptions, as_json: AsJson = False) -> None:
    """Show a job file resolved: the value of every key and where it comes from, what will be rendered, and what it needs.

    With a cluster profile (resources.cluster) also the time and the cost.

    Examples:

        ovi-ray job show job.yaml

        ovi-ray job show job.yaml --json
    """
    with command_console(display):
        path = location(file, "JOB")
        job, summary, planned = _read(path, forecasts=True)
        given = read_yaml(path, PortableJob.sections)
        settings = job.model_dump(mode="json")
        if as_json:
            content = {"job": settings, **asdict(summary), "forecast": _figures(planned)}
            answer(json.dumps(content))
        else:
            console = Console()
            _show_settings(settings, given, console)
            _show_summary(summary, job, console)
            _show_forecast(planned, console)


@job.command(cls=Command)
def schema() -> None:
    """Print the JSON Schema of a job file, for editors: save it, and name it in the first line of a job file.

    Examples:

        ovi-ray job schema > job.schema.json

        # yaml-language-server: $schema=job.schema.json
    """
    from ovi_ray.inputs.job_schema import job_schema

    answer(json.dumps(job_schema(), indent=2))


def _read(path: Location, *, forecasts: bool = False) -> "tuple[PortableJob, JobSummary, Forecast | None]":
    """A job, its summary and, if wanted and the job names a cluster profile, its forecast. Raises InputError."""
    from ovi_ray.inputs.job_summary import manifest_of, summarise
    from ovi_ray.inputs.policies import scheduler_config
    from ovi_ray.inputs.task_table import TaskTable, workload_of
    from ovi_ray.simulation.forecast import forecast

    job = PortableJob.from_yaml(path)
    profile, manifest = profile_of(job), manifest_of(job)
    planned = None
    if forecasts and profile is not None:
        planned = forecast(workload_of(TaskTable.of(manifest)), profile, config=scheduler_config(job))
    return job, summarise(job, manifest), planned


def _figures(planned: "Forecast | None") -> dict[str, Any] | None:
    names = ("eta_s", "bound_s", "cost", "currency", "clips_per_hour")
    return None if planned is None else {name: getattr(planned, name) for name in names}


def _show_settings(settings: Mapping[str, Any], given: Mapping[str, Given], console: Console) -> None:
    by_field = {ALIASES.get(key, key): item for key, item in given.items()}
    if "text_prompt" in by_field and settings["prompts"]:
        by_field["prompts"] = by_field.pop("text_prompt")
    width = max(map(len, settings))
    for name, value in settings.items():
        item = by_field.get(name)
        origin = "default" if item is None else f"line {item.line}"
        if item is None and value in (None, {}):
            continue
        shown = value if isinstance(value, str) else json.dumps(value)
        style = "dim" if item is None else None
        console.print(f"{name:{width}}  {shown}  ({origin})", style=style, soft_wrap=True)


def _show_summary(summary: "JobSummary", job: PortableJob, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, soft_wrap=True)

    swept = f" x {summary.combinations} combinations" if summary.combinations > 1 else ""
    repeated = f" x {job.each_example_n_times} repeats" if job.each_example_n_times > 1 else ""
    line(f"\nrenders {counted(summary.clips, 'clip')}: {counted(summary.rows, 'row')}{swept}{repeated}")
    for kind in summary.kinds:
        line(f"  {kind}")
    line(f"  {counted(summary.texts, 'distinct text')}, {counted(summary.first_frames, 'first frame')}")
    line("needs")
    for model in summary.models:
        pinned = f", and {model.pinned_gb:.0f} GB of host memory for each device" if model.pinned_gb else ""
        memory = f"{model.resident_gb:.0f} GB of device memory, or {model.staged_gb:.0f} GB with swapping"
        line(f"  {model.name}: {memory}{pinned}")
        for file in model.files:
            line(f"    {job.ckpt_dir or 'CKPT_DIR'}/{file}")
    if job.ckpt_dir is None:
        line("  a checkpoint folder: ckpt_dir, or --ckpt-dir")
    if job.output_dir is None:
        line("  an output folder: output_dir, or --out")
    for image in summary.images[:_FILES_SHOWN]:
        line(f"  image {image}")
    if len(summary.images) > _FILES_SHOWN:
        line(f"  ... and {counted(len(summary.images) - _FILES_SHOWN, 'more image')}")
    for note in summary.notes:
        line(f"note: {note}")


def _show_forecast(planned: "Forecast | None", console: Console) -> None:
    if planned is None:
        return
    cost = "" if planned.cost is None else f", {planned.cost:.2f} {planned.currency}"
    console.print(f"takes {format_duration(planned.eta_s)}, {planned.clips_per_hour:.1f} clips an hour{cost}")
