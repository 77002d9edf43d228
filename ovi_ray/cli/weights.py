"""`ovi-ray weights`: download, check and create checkpoint folders."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ovi.config import MODEL_SPECS
from ovi.weights.formats import WeightFormat
from ovi.weights.hub import HubFile, download_model
from ovi_ray.cli.common import EXIT_CODE_HELP, ExitCode, command_console, local_path
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.printing import Console

weights = typer.Typer(
    help="Download, check and create checkpoint folders.", epilog=EXIT_CODE_HELP, no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder.")]


@weights.command()
@with_display_options
def download(
    ckpt_dir: Folder,
    display: DisplayOptions,
    model_name: Annotated[str, typer.Option(help=f"One of {', '.join(MODEL_SPECS)}.")] = "720x720_5s",
    fp8: Annotated[bool, typer.Option("--fp8", help="The transformer in 8-bit floats, for `render --fp8`.")] = False,
) -> None:
    """Download the published files that a model needs, and no others. An interrupted download is resumed.

    Example:

        ovi-ray weights download --model-name 960x960_5s ckpts
    """
    with command_console(display) as console:

        def announce(file: HubFile) -> None:
            console.print(f"downloading {file.path} from {file.repo_id}", soft_wrap=True)

        weights_in = WeightFormat.FP8 if fp8 else WeightFormat.DTYPE
        fetched = download_model(model_name, local_path(ckpt_dir, "DIR"), weights=weights_in, on_file=announce)
        console.print(f"{len(fetched)} files downloaded; {model_name} is complete in {ckpt_dir}", soft_wrap=True)


@weights.command()
@with_display_options
def check(
    ckpt_dir: Folder,
    display: DisplayOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """List the files that are there, missing or broken, and the models that the folder can run.

    Example:

        ovi-ray weights check ckpts
    """
    with command_console(display):
        from ovi.weights.loading import check_model

        folder = local_path(ckpt_dir, "DIR")
        statuses = {name: check_model(folder, name) for name in MODEL_SPECS}
    files = {status.path: status for found in statuses.values() for status in found}
    usable = [name for name, found in statuses.items() if not any(status.error for status in found)]
    if as_json:
        findings = {path: str(status.error) if status.error else None for path, status in files.items()}
        typer.echo(json.dumps({"models": usable, "files": findings}))
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("file", overflow="fold")
        table.add_column("state", overflow="fold")
        for path, status in files.items():
            state = f"{status.error.found}; expected {status.error.expected}" if status.error else "ok"
            table.add_row(path, state, style=None if status.error is None else "yellow" if status.missing else "red")
        Console().print(table)
        Console().print(f"models that can run: {', '.join(usable) or 'none'}")
    raise typer.Exit(ExitCode.OK if usable else ExitCode.BAD_INPUT)


@weights.command()
@with_display_options
def tiny(ckpt_dir: Folder, display: DisplayOptions) -> None:
    """Write a small built-in checkpoint (8 MB, random weights), with which the whole pipeline runs on any machine.

    Example:

        ovi-ray weights tiny ckpts-tiny
    """
    with command_console(display) as console:
        from ovi.weights.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(local_path(ckpt_dir, "DIR"))
        console.print(f"a small checkpoint of all three models is in {ckpt_dir}", soft_wrap=True)
