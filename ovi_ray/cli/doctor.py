"""`ovi-ray doctor`: what each device can do, and what would help."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ovi.errors import OviError
from ovi_ray.cli.common import PLACE, location
from ovi_ray.errors import OviRayError

if TYPE_CHECKING:
    from ovi_ray.devices.node_report import DeviceReport, NodeReport

EXIT_BAD_INPUT = 2


def doctor(
    ckpt_dir: Annotated[
        str,
        typer.Option(
            metavar=PLACE, help="Checkpoint folder, for the sizes of its model; by default the published ones."
        ),
    ] = "ckpts",
    model_name: Annotated[str, typer.Option(help="720x720_5s, 960x960_5s or 960x960_10s.")] = "720x720_5s",
    address: Annotated[str | None, typer.Option(help="A Ray cluster, such as auto: every node of it.")] = None,
    allow_inexact: Annotated[bool, typer.Option("--allow-inexact", help="Try attention that changes pixels.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Print this node's labels for `ray start`.")] = False,
) -> None:
    """Say what each device is, which attention works on it and how fast, what fits, and what would help.

    Examples:

        ovi-ray doctor

        ovi-ray doctor --address auto --json

        ray start --address head:6379 --labels "$(ovi-ray doctor --labels)"
    """
    from ovi_ray.devices.doctor import examine_node
    from ovi_ray.devices.probe import node_labels, probe

    if labels:
        pairs = node_labels(probe().devices[0]).items()
        typer.echo(",".join(f"{name}={value}" for name, value in pairs))
        return
    try:
        folder = location(ckpt_dir, "--ckpt-dir").absolute()
        if address:
            from ovi_ray.runtime.ray_session import examine_cluster

            reports = examine_cluster(address, str(folder), model_name, allow_inexact=allow_inexact)
        else:
            reports = [examine_node(folder, model_name, allow_inexact=allow_inexact)]
    except (OviError, OviRayError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if as_json:
        typer.echo(json.dumps({"nodes": [report.as_json() for report in reports]}, indent=1))
    else:
        for report in reports:
            _show(report, Console())


def _show(report: "NodeReport", console: Console) -> None:
    console.print(f"[bold]{report.node}[/]  torch {report.torch_build}  driver {report.driver or '-'}", highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    for device in report.devices:
        _show_device(device, console)


def _show_device(report: "DeviceReport", console: Console) -> None:
    from ovi.attention.autotune import CANDIDATES
    from ovi_ray.devices.node_report import backend_summary

    device = report.device
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("device", device.name)
    facts.add_row("vendor, architecture", f"{device.vendor} {device.architecture or '-'}")
    facts.add_row("memory", f"{device.memory_gb:.1f} GB, {report.memory or 'too small for any stage'}")
    facts.add_row("stages that fit", ", ".join(report.stages) or "none")
    expected = "-" if report.clip_s is None else f"{report.clip_s:,.0f} s a clip, 50 steps"
    facts.add_row("denoise", expected)
    console.print(facts)
    if report.attention_error:
        console.print(report.attention_error, style="red", markup=False, highlight=False)
    if report.attention:
        shape = next(iter(report.attention.values())).shape
        table = Table("attention", f"video self-attention, {shape}", "chosen at", box=None, pad_edge=False)
        for backend in CANDIDATES:
            table.add_row(backend, *backend_summary(backend, report.attention))
        console.print(table)
    for line in report.advice:
        console.print(f"advice: {line}", style="cyan", markup=False, highlight=False)
