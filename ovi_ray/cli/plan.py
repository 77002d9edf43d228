"""`ovi-ray plan`: what a job will take on a cluster, before anything is submitted."""

import json
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ovi.config import Architecture
from ovi_ray.cli.common import PLACE, location, plain_errors, read_job
from ovi_ray.inputs.job_spec import Mode
from ovi_ray.storage.paths import Location

if TYPE_CHECKING:
    from ovi_ray.report.actuals import Actuals
    from ovi_ray.scheduling.workload import Workload
    from ovi_ray.simulation.forecast import Forecast

MAX_BOTTLENECKS_SHOWN = 5


def plan(
    prompts: Annotated[
        str, typer.Argument(help="A prompt list or a job file (YAML), each a path or a URI, or a prompt.")
    ],
    cluster: Annotated[
        str, typer.Option(metavar=PLACE, help="Cluster profile (YAML), such as cluster/profiles/b.yaml.")
    ],
    model_name: Annotated[str | None, typer.Option(help="720x720_5s, 960x960_5s or 960x960_10s.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="t2v, i2v or auto.")] = None,
    each_example_n_times: Annotated[int | None, typer.Option(help="Clips of each row.")] = None,
    sample_steps: Annotated[str | None, typer.Option(metavar="INTEGER", help="Denoising steps.")] = None,
    video_frame_height_width: Annotated[str | None, typer.Option(help="Size, such as 704x1280.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Write a picture of who does what when: a .html or .svg file.")
    ] = None,
    actual: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help="Output folder of the job once it ran: what it took beside what was planned."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Tell what a job will take on a cluster: time, device-hours, cost, and what holds it up. Nothing is started.

    Examples:

        ovi-ray plan prompts.csv --cluster cluster/profiles/b.yaml

        ovi-ray plan job.yaml --cluster cluster/profiles/c.yaml --timeline timeline.html

        ovi-ray plan job.yaml --cluster mine.yaml --actual out
    """
    from ovi_ray.inputs.cluster_profile import read_profile
    from ovi_ray.report.timeline import write_timeline
    from ovi_ray.simulation.forecast import forecast

    options = {
        "model_name": model_name,
        "mode": mode,
        "each_example_n_times": each_example_n_times,
        "sample_steps": sample_steps,
        "video_frame_height_width": video_frame_height_width,
    }
    console = Console(stderr=True)
    with plain_errors(console):
        profile = read_profile(location(cluster, "--cluster"))
        told = forecast(_workload(prompts, options), profile, keep_spans=timeline is not None)
        if timeline is not None:
            write_timeline(timeline, told.spans, title=f"{told.clips} clips on cluster {profile.name}")
            console.print(f"timeline {timeline}", highlight=False, soft_wrap=True)
        actuals = None if actual is None else _actuals(location(actual, "--actual"))
    if as_json:
        typer.echo(json.dumps(_as_json(told, actuals)))
    else:
        _show(told, actuals, Console())


def _workload(prompts: str, options: dict[str, Any]) -> "Workload":
    """The job's clips, at the published sizes: a plan needs neither weights nor an output folder."""
    from ovi_ray.inputs.manifest import build_manifest
    from ovi_ray.inputs.task_table import TaskTable, workload_of

    with tempfile.TemporaryDirectory() as nowhere:
        job = read_job(prompts, {**options, "ckpt_dir": Path(nowhere), "output_dir": Path(nowhere)})
        manifest = build_manifest(job, Architecture(), weights=lambda name: name, numerics=job.dtype)
    return workload_of(TaskTable.of(manifest))


def _actuals(output_dir: Location) -> "Actuals":
    from ovi_ray.report.actuals import read_actuals

    return read_actuals(output_dir)


def _as_json(told: "Forecast", actuals: "Actuals | None") -> dict[str, Any]:
    facts = {
        name: getattr(told, name) for name in ("clips", "texts", "first_frames", "eta_s", "bound_s", "cost", "currency")
    }
    return {
        **facts,
        "clips_per_hour": told.clips_per_hour,
        "classes": [asdict(part) for part in told.classes],
        "bottlenecks": [asdict(bottleneck) for bottleneck in told.bottlenecks],
        "actual": None if actuals is None else {**asdict(actuals), "clips_per_hour": actuals.clips_per_hour},
    }


def _show(told: "Forecast", actuals: "Actuals | None", console: Console) -> None:
    frames = f", {told.first_frames} first frames" if told.first_frames else ""
    console.print(f"{told.clips} clips, {told.texts} distinct texts{frames}", highlight=False)
    console.print(
        f"time {_clock(told.eta_s)}, {told.clips_per_hour:.1f} clips an hour "
        f"(no schedule could end before {_clock(told.bound_s)})",
        style="bold",
        highlight=False,
    )
    if told.cost is not None:
        console.print(f"cost {told.cost:.2f} {told.currency}", highlight=False)
    console.print(_class_table(told))
    for bottleneck in told.bottlenecks[:MAX_BOTTLENECKS_SHOWN]:
        console.print(
            f"bottleneck: {bottleneck.what}; {bottleneck.change} would end it {bottleneck.sooner:.0%} sooner",
            highlight=False,
        )
    if actuals is not None:
        _show_actuals(told, actuals, console)


def _class_table(told: "Forecast") -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("devices", "count", "device-hours", "busy", "encode", "denoise", "decode", "load"):
        table.add_column(name, justify="left" if name == "devices" else "right")
    for part in told.classes:
        shares = {stage.value: share for stage, share in part.busy.items()}
        encode = shares.get("encode_text", 0.0) + shares.get("encode_first_frame", 0.0)
        denoise, decode = shares.get("denoise", 0.0), shares.get("decode", 0.0)
        busy = encode + denoise + decode + part.load
        percents = [f"{share:.0%}" for share in (busy, encode, denoise, decode, part.load)]
        table.add_row(part.name, str(part.count), f"{part.device_hours:.2f}", *percents)
    return table


def _show_actuals(told: "Forecast", actuals: "Actuals", console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "planned", "actual"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("clips", str(told.clips), f"{actuals.clips}, {actuals.failed} failed")
    table.add_row("time", _clock(told.eta_s), _clock(actuals.seconds))
    table.add_row("clips an hour", f"{told.clips_per_hour:.1f}", f"{actuals.clips_per_hour:.1f}")
    for stage, planned in _planned_seconds(told).items():
        table.add_row(f"{stage}, seconds a clip", f"{planned:.2f}", f"{actuals.stage_s[stage]:.2f}")
    console.print(table)


def _planned_seconds(told: "Forecast") -> dict[str, float]:
    """Mean device-seconds a clip of each stage."""
    seconds = dict.fromkeys(("encode", "denoise", "decode"), 0.0)
    for part in told.classes:
        for stage, share in part.busy.items():
            seconds[stage.value.partition("_")[0]] += share * part.device_hours * 3600 / max(1, told.clips)
    return seconds


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
