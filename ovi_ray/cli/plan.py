"""`ovi-ray plan`: how long a job will take on a cluster, and what it will cost."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ovi.stages import STAGES, TIME_GROUPS, Stage
from ovi_ray.answers import answer
from ovi_ray.cli.common import command_console, local_path, location, read_job
from ovi_ray.cli.dry_run import quality_line
from ovi_ray.cli.options import (
    LIST_FIELDS,
    LOCATION,
    PROMPT_OPTION,
    SAMPLING_PANEL,
    DisplayOptions,
    JobOptions,
    with_display_options,
    with_job_options,
)
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show_path
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.printing import Console, counted
from ovi_ray.report.durations import format_duration
from ovi_ray.storage.paths import Location

if TYPE_CHECKING:
    from ovi_ray.inputs.cluster_profile import ClusterProfile
    from ovi_ray.report.actuals import Actuals
    from ovi_ray.simulation.comparison import Comparison
    from ovi_ray.simulation.forecast import Forecast

MAX_BOTTLENECKS_SHOWN = 5
_NOTHING = 0.005  # share of the time below which a saving is within the noise of a schedule
JOB_PANELS = {"What to render": ("ckpt_dir", *LIST_FIELDS), **SAMPLING_PANEL}

Prompts = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPTS",
        help="A prompt list or a job file (YAML), each a path or a URI, or a prompt in several words.",
    ),
]
OnePrompt = Annotated[str | None, PROMPT_OPTION]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar=LOCATION, help="Cluster profile (YAML), such as cluster/profiles/b.yaml. [default: the job file's]"
    ),
]
Timeline = Annotated[
    Path | None, typer.Option(help="Draw which device does what when: a .html or .svg file to write. [default: none]")
]
Actual = Annotated[
    str | None,
    typer.Option(metavar=LOCATION, help="Output folder of the finished job, to compare the plan with. [default: none]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan as JSON. [default: off]")]


@with_job_options(JOB_PANELS)
@with_display_options
def plan(
    job_options: JobOptions,
    display: DisplayOptions,
    prompts: Prompts = None,
    prompt: OnePrompt = None,
    cluster: Cluster = None,
    timeline: Timeline = None,
    actual: Actual = None,
    as_json: AsJson = False,
) -> None:
    """Forecast a job on a cluster: time, device-hours, cost, what placement brings, and bottlenecks. Nothing is started.

    The list is checked as for rendering, without weights. Given a checkpoint folder, prompts that are longer than its text
    encoder reads are counted.

    Examples:

        ovi-ray plan prompts.csv --cluster cluster/profiles/b.yaml

        ovi-ray plan job.yaml --cluster cluster/profiles/c.yaml --timeline timeline.html

        ovi-ray plan job.yaml --cluster mine.yaml --actual out
    """
    from ovi_ray.inputs.job_summary import manifest_of
    from ovi_ray.inputs.policies import scheduler_config
    from ovi_ray.inputs.task_table import TaskTable, workload_of
    from ovi_ray.output.results import measured_passes
    from ovi_ray.simulation.comparison import compare
    from ovi_ray.simulation.forecast import forecast
    from ovi_ray.simulation.virtual_cluster import virtual_devices

    with command_console(display) as console:
        given = {} if cluster is None else {"cluster": location(cluster, "--cluster")}
        job = read_job(BatchSpec, prompts, {**job_options, "prompt": prompt, **given})
        profile = profile_of(job)
        if profile is None:
            raise InputError([_no_cluster()])
        manifest = manifest_of(job)
        for note in manifest.notes:
            console.print(f"note: {note}", soft_wrap=True)
        finished = None if actual is None else location(actual, "--actual")
        passes = {} if finished is None else measured_passes(finished)
        workload, config = workload_of(TaskTable.of(manifest), passes=passes), scheduler_config(job)
        planned = forecast(workload, profile, config=config, keep_spans=timeline is not None)
        comparison = compare(workload, virtual_devices(profile), planned.eta_s, config)
        if timeline is not None:
            _write_timeline(
                local_path(timeline, "--timeline"),
                planned,
                title=f"{counted(planned.clips, 'clip')} on cluster {profile.name}",
            )
            console.print(f"timeline {timeline}", soft_wrap=True)
        actuals = None if finished is None else _actuals(finished)
    if as_json:
        facts = {"qualities": manifest.qualities, "notes": manifest.notes}
        answer(json.dumps({**_as_json(planned, comparison, actuals), **facts}))
    else:
        if line := quality_line(manifest.qualities):
            Console().print(line)
        _show(planned, comparison, actuals, Console())


def profile_of(job: BatchSpec) -> "ClusterProfile | None":
    """The cluster profile that a job names, at the job's prices; None without one. Raises InputError."""
    from ovi_ray.inputs.cluster_profile import read_profile

    return None if job.cluster is None else read_profile(job.cluster).priced(job.prices)


def _no_cluster() -> Problem:
    expected = "a cluster profile, such as cluster/profiles/b.yaml, here or as resources.cluster of the job file"
    return Problem(file=COMMAND_LINE, field="--cluster", value="missing", expected=expected)


def _actuals(output_dir: Location) -> "Actuals":
    from ovi_ray.report.actuals import read_actuals

    return read_actuals(output_dir)


def _as_json(planned: "Forecast", comparison: "Comparison", actuals: "Actuals | None") -> dict[str, Any]:
    facts = {
        name: getattr(planned, name)
        for name in ("clips", "texts", "first_frames", "eta_s", "bound_s", "cost", "currency")
    }
    return {
        **facts,
        "clips_per_hour": planned.clips_per_hour,
        "classes": [asdict(part) for part in planned.classes],
        "comparison": _comparison_json(comparison),
        "bottlenecks": [asdict(bottleneck) for bottleneck in planned.bottlenecks],
        "actual": None if actuals is None else {**asdict(actuals), "clips_per_hour": actuals.clips_per_hour},
    }


def _show(planned: "Forecast", comparison: "Comparison", actuals: "Actuals | None", console: Console) -> None:
    frames = f", {counted(planned.first_frames, 'first frame')}" if planned.first_frames else ""
    console.print(f"{counted(planned.clips, 'clip')}, {counted(planned.texts, 'distinct text')}{frames}")
    console.print(
        f"time {format_duration(planned.eta_s)}, {planned.clips_per_hour:.1f} clips an hour "
        f"(no schedule could end before {format_duration(planned.bound_s)})",
        style="bold",
    )
    if planned.cost is not None:
        console.print(f"cost {planned.cost:.2f} {planned.currency}")
    console.print(_class_table(planned))
    for line in _comparison_lines(comparison):
        console.print(line, highlight=False)
    for bottleneck in planned.bottlenecks[:MAX_BOTTLENECKS_SHOWN]:
        console.print(
            f"bottleneck: {bottleneck.what}; {bottleneck.change} would end it {bottleneck.sooner:.0%} sooner",
        )
    if actuals is not None:
        _show_actuals(planned, actuals, console)


def _comparison_json(found: "Comparison") -> dict[str, Any]:
    return {**asdict(found), "placement_saves": found.placement_saves, "helpers_save": found.helpers_save}


def _comparison_lines(found: "Comparison") -> list[str]:
    """Lines on the time that placement saves on this cluster, and on the worth of devices that cannot denoise."""
    return [line for line in (_placement_line(found), _helpers_line(found)) if line]


def _placement_line(found: "Comparison") -> str:
    if not found.clips:
        return ""
    if found.whole_clips_s is None or found.placement_saves is None:
        return (
            "placement: no device can both denoise and decode every clip, so no queue of whole clips could render them"
        )
    return (
        f"placement ({counted(found.clips, 'clip')}): {format_duration(found.placed_s)}; a queue of whole clips, each device"
        f" pulling the next: {format_duration(found.whole_clips_s)}; placement {_saving(found.placement_saves)}"
    )


def _helpers_line(found: "Comparison") -> str:
    if not found.helpers:
        return ""
    who = f"devices that cannot denoise ({', '.join(found.helpers)})"
    if found.without_helpers_s is None or found.helpers_save is None:
        return f"{who}: without them the job cannot be rendered"
    without = format_duration(found.without_helpers_s)
    return f"{who}: without them {without}; together they {_saving(found.helpers_save, plural=True)}"


def _saving(share: float, *, plural: bool = False) -> str:
    ending = "" if plural else "s"
    if abs(share) < _NOTHING:
        return f"save{ending} nothing"
    return f"{'save' if share > 0 else 'cost'}{ending} {abs(share):.1%} of the time"


def _class_table(planned: "Forecast") -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("devices", "count", "device-hours", "busy", *TIME_GROUPS, "load"):
        table.add_column(name, justify="left" if name == "devices" else "right")
    for part in planned.classes:
        shares = [*_by_group(part.busy).values(), part.load]
        percents = [f"{share:.0%}" for share in (sum(shares), *shares)]
        table.add_row(part.name, str(part.count), f"{part.device_hours:.2f}", *percents)
    return table


def _show_actuals(planned: "Forecast", actuals: "Actuals", console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "planned", "actual"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("clips", str(planned.clips), f"{actuals.clips}, {actuals.failed} failed")
    table.add_row("time", format_duration(planned.eta_s), format_duration(actuals.seconds))
    table.add_row("clips an hour", f"{planned.clips_per_hour:.1f}", f"{actuals.clips_per_hour:.1f}")
    for stage, seconds in _planned_seconds(planned).items():
        table.add_row(f"{stage}, seconds a clip", f"{seconds:.2f}", f"{actuals.stage_s[stage]:.2f}")
    console.print(table)


def _planned_seconds(planned: "Forecast") -> dict[str, float]:
    """Mean device-seconds a clip of each stage."""
    seconds = dict.fromkeys(TIME_GROUPS, 0.0)
    for part in planned.classes:
        for group, share in _by_group(part.busy).items():
            seconds[group] += share * part.device_hours * 3600 / max(1, planned.clips)
    return seconds


def _by_group(shares: Mapping[Stage, float]) -> dict[str, float]:
    """Time group -> the sum of its stages' shares."""
    return {group: sum(shares.get(s, 0.0) for s in STAGES if STAGES[s].time_group == group) for group in TIME_GROUPS}


def _write_timeline(path: Path, planned: "Forecast", *, title: str) -> None:
    from ovi_ray.report.timeline import write_timeline

    try:
        write_timeline(path, planned.spans, title=title)
    except OSError as error:
        expected = f"a file that can be written ({error.strerror or error})"
        problem = Problem(file=COMMAND_LINE, field="--timeline", value=show_path(path), expected=expected)
        raise InputError([problem]) from None
