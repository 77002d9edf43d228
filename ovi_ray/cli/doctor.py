"""`ovi-ray doctor`: what each device can do, and what would improve it."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ovi.config import MODEL_SPECS
from ovi_ray.answers import answer
from ovi_ray.cli.common import command_console, location, refuse, unused
from ovi_ray.cli.options import LOCATION, DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.printing import Console
from ovi_ray.runtime.cluster_probe import check_joinable
from ovi_ray.storage.paths import Location

if TYPE_CHECKING:
    from ovi_ray.devices.node_report import DeviceReport, NodeReport

DEFAULT_FOLDER, DEFAULT_MODEL = "ckpts", "720x720_5s"


@with_display_options
def doctor(
    display: DisplayOptions,
    ckpt_dir: Annotated[
        str | None,
        typer.Option(
            metavar=LOCATION,
            help="Checkpoint folder, for the sizes of its model; without one, the published sizes. "
            f" [default: {DEFAULT_FOLDER}]",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(MODEL_SPECS)}. [default: {DEFAULT_MODEL}]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster, such as auto, to examine every node of. [default: this machine]")
    ] = None,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Also try attention that changes pixels. [default: off]")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON. [default: off]")] = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Print this node's labels for `ray start`. [default: off]")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Run the model's stages, and print a cluster profile with the measured speeds, for --cluster and `ovi-ray"
            " plan`. The weights must be there. [default: off]",
        ),
    ] = False,
) -> None:
    """Report each device, which attention backends work on it and how fast, which stages fit, and what would improve it.

    Examples:

        ovi-ray doctor

        ovi-ray doctor --address auto --json

        ovi-ray doctor --ckpt-dir ckpts --profile > mine.yaml

        ray start --address head:6379 --labels "$(ovi-ray doctor --labels)"
    """
    with command_console(display) as console:
        if sum([as_json, labels, profile]) > 1:
            expected = "one of --json, --labels and --profile"
            raise InputError([Problem(file=COMMAND_LINE, field="OPTIONS", value="more than one", expected=expected)])
        if labels:
            examined = {"--ckpt-dir": ckpt_dir, "--model-name": model_name, "--address": address}
            given = {**examined, "--allow-inexact": allow_inexact}
            refuse(unused(given, "beside --labels, which tells the devices of this machine and nothing else"))
            answer(_node_labels())
            return
        folder = location(ckpt_dir or DEFAULT_FOLDER, "--ckpt-dir").absolute()

        def announce(text: str) -> None:
            console.print(text, soft_wrap=True)

        options = {"allow_inexact": allow_inexact, "measures_stages": profile}
        reports = _examine(folder, model_name or DEFAULT_MODEL, address, announce, options)
    if profile:
        from ovi_ray.devices.measured_profile import profile_text

        answer(profile_text(reports), end="")
    elif as_json:
        answer(json.dumps({"nodes": [report.as_json() for report in reports]}, indent=1))
    else:
        for report in reports:
            _show(report, Console())


def _node_labels() -> str:
    from ovi_ray.devices.probe import node_labels, probe

    return ",".join(f"{name}={value}" for name, value in node_labels(probe().devices[0]).items())


def _examine(
    folder: Location, model_name: str, address: str | None, announce: Callable[[str], None], options: Mapping[str, Any]
) -> "list[NodeReport]":
    """The reports of this machine, or of every node of a cluster; `options` are those of `examine_node`."""
    if address:
        check_joinable(address)
        from ovi_ray.runtime.ray_session import examine_cluster

        return examine_cluster(address, str(folder), model_name, **options)
    from ovi_ray.devices.doctor import examine_node

    return [examine_node(folder, model_name, announce=announce, **options)]


def _show(report: "NodeReport", console: Console) -> None:
    console.print(f"{report.node}  torch {report.torch_build}  driver {report.driver or '-'}", style="bold")
    console.print(f"model {report.model}", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", style="yellow")
    for device in report.devices:
        _show_device(device, console)


def _show_device(report: "DeviceReport", console: Console) -> None:
    from ovi.attention.autotune import CANDIDATES
    from ovi_ray.devices.node_report import backend_summary, convolution_summary, kernel_summary, weights_summary

    device = report.device
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("device", device.name)
    facts.add_row("vendor, architecture", f"{device.vendor} {device.architecture or '-'}")
    facts.add_row("memory", f"{device.memory_gb:.1f} GB, {report.memory or 'too small for any stage'}")
    facts.add_row("stages that fit", ", ".join(report.stages) or "none")
    facts.add_row("convolutions", convolution_summary(report))
    expected = "-" if report.clip_s is None else f"{report.clip_s:,.0f} s a clip, 50 steps"
    facts.add_row("denoise", expected)
    rates = ", ".join(f"{stage} {report.assumed_rates.of(stage):.3g}" for stage in report.stages)
    facts.add_row("assumed until measured", f"{rates} TFLOP/s" if rates else "-")
    console.print(facts)
    table = Table("weights", "on the device", "host memory", "memory mode", "stages that fit", box=None, pad_edge=False)
    for weights, found in report.weights.items():
        table.add_row(weights, *weights_summary(found))
    console.print(table)
    if report.attention_error:
        console.print(report.attention_error, style="red")
    if report.attention:
        shape = next(iter(report.attention.values())).shape
        table = Table("attention", f"video self-attention, {shape}", "chosen at", box=None, pad_edge=False)
        for backend in CANDIDATES:
            table.add_row(backend, *backend_summary(backend, report.attention))
        console.print(table)
    if report.kernels.trials:
        table = Table("fused kernel", "trial", "used by jobs", box=None, pad_edge=False)
        for trial in report.kernels.trials:
            table.add_row(trial.kernel, *kernel_summary(trial))
        console.print(table)
    for line in report.advice:
        console.print(f"advice: {line}", style="cyan")
