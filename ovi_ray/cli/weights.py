"""`ovi-ray weights`: download, check and create checkpoint folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ovi.config import MODEL_SPECS
from ovi.weights.formats import WeightFormat
from ovi.weights.hub import HubFile, download_model
from ovi_ray.answers import answer
from ovi_ray.cli.common import EXIT_CODE_HELP, ExitCode, command_console, local_path, location
from ovi_ray.cli.faults import Command
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.printing import Console, counted
from ovi_ray.storage.diagnostics import usable

if TYPE_CHECKING:
    from ovi.errors import CheckpointError

_TOLD_BYTES = 500_000_000  # of a file that is read to its end: a second or more

weights = typer.Typer(
    help="Download, check and create checkpoint folders.", epilog=EXIT_CODE_HELP, no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder.")]


@weights.command(cls=Command)
@with_display_options
def download(
    ckpt_dir: Folder,
    display: DisplayOptions,
    model_name: Annotated[str, typer.Option(help=f"One of {', '.join(MODEL_SPECS)}.")] = "720x720_5s",
    fp8: Annotated[
        bool, typer.Option("--fp8", help="The transformer in 8-bit floats, for `render --fp8`. [default: off]")
    ] = False,
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
        console.print(
            f"{counted(len(fetched), 'file')} downloaded; {model_name} is complete in {ckpt_dir}", soft_wrap=True
        )


@weights.command(cls=Command)
@with_display_options
def check(
    ckpt_dir: Folder,
    display: DisplayOptions,
    model_name: Annotated[
        str | None, typer.Option(help=f"Only this model: one of {', '.join(MODEL_SPECS)}. [default: all]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read only the headers of the files. [default: whole files]")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON. [default: off]")] = False,
) -> None:
    """List the files that are there, missing or broken, and the models that the folder can run.

    Files are read to their end, once: one that was cut off or holds numbers that are not finite is broken.

    Examples:

        ovi-ray weights check ckpts

        ovi-ray weights check ckpts --model-name 960x960_10s --quick
    """
    with command_console(display) as console:
        if model_name is not None and model_name not in MODEL_SPECS:
            problem = Problem(
                file=COMMAND_LINE,
                field="--model-name",
                value=show(model_name),
                expected=f"one of {', '.join(MODEL_SPECS)}{did_you_mean(model_name, MODEL_SPECS)}",
            )
            raise InputError([problem])
        folder = local_path(ckpt_dir, "DIR")
        place = location(str(folder), "DIR")
        if not place.is_dir():
            value = f"{folder}, {'a file' if place.exists() else 'which is not there'}"
            expected = "a checkpoint folder, such as `ovi-ray weights download` makes"
            raise InputError([Problem(file=COMMAND_LINE, field="DIR", value=value, expected=expected)])
        names = MODEL_SPECS if model_name is None else [model_name]
        found = {name: _file_errors(folder, name, console, quick=quick) for name in names}
    files = {path: error for errors in found.values() for path, error in errors.items()}
    able = [name for name, errors in found.items() if not any(errors.values())]
    if as_json:
        findings = {path: str(error) if error else None for path, error in files.items()}
        answer(json.dumps({"models": able, "files": findings}))
    else:
        _show_files(files, able)
    raise typer.Exit(ExitCode.OK if able else ExitCode.BAD_INPUT)


def _file_errors(
    folder: Path, model_name: str, console: Console, *, quick: bool
) -> "dict[str, CheckpointError | None]":
    """Damage of each file of a model, by its path in the folder."""
    from ovi.errors import CheckpointMismatch
    from ovi.weights.loading import check_model
    from ovi_ray.weights.digests import content_damage, is_read

    errors: dict[str, CheckpointError | None] = {}
    for status in check_model(folder, model_name):
        path = folder / status.path
        errors[status.path] = status.error
        if quick or status.error is not None:
            continue
        if not is_read(path) and path.stat().st_size >= _TOLD_BYTES:
            console.print(f"reading {path.stat().st_size / 1e9:,.1f} GB of {path}, once", soft_wrap=True)
        if damage := content_damage(path):
            errors[status.path] = CheckpointMismatch(damage, expected="a whole file of finite numbers", path=path)
    return errors


def _show_files(files: "Mapping[str, CheckpointError | None]", able: Sequence[str]) -> None:
    from ovi.errors import CheckpointNotFound

    table = Table(box=None, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("state", overflow="fold")
    for path, error in files.items():
        state = f"{error.found}; expected {error.expected}" if error else "ok"
        style = None if error is None else "yellow" if isinstance(error, CheckpointNotFound) else "red"
        table.add_row(path, state, style=style)
    Console().print(table)
    Console().print(f"models that can run: {', '.join(able) or 'none'}")


@weights.command(cls=Command)
@with_display_options
def tiny(ckpt_dir: Folder, display: DisplayOptions) -> None:
    """Write a small built-in checkpoint (8 MB, random weights), with which the whole pipeline runs on any machine.

    Example:

        ovi-ray weights tiny ckpts-tiny
    """
    with command_console(display) as console:
        from ovi.weights.tiny import write_tiny_checkpoint

        folder = local_path(ckpt_dir, "DIR")
        with usable(folder, option="DIR"):
            write_tiny_checkpoint(folder)
        console.print(f"a small checkpoint of all three models is in {ckpt_dir}", soft_wrap=True)
