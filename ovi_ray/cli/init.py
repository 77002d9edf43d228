"""`ovi-ray init`: job examples and cluster profiles to begin with."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import ovi_ray
from ovi_ray.cli.common import command_console, local_path
from ovi_ray.cli.options import DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show_path
from ovi_ray.printing import counted, shell_command
from ovi_ray.storage.diagnostics import usable

EXAMPLES = Path(ovi_ray.__file__).parent / "examples"
"""Laid out as the folder that `init` makes: paths from a job to a profile are the same in both."""
_MAX_SHOWN = 5


@with_display_options
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the examples; it is created.")],
    display: DisplayOptions,
) -> None:
    """Copy job examples and cluster profiles into a folder, to run, to read and to change. Files of your own stay as they are.

    Example:

        ovi-ray init films
    """
    with command_console(display) as console:
        target = local_path(folder, "DIR")
        copied = copy_examples(target)
        console.print(f"{counted(len(copied), 'file')} copied to {target}. Try:", soft_wrap=True)
        quickstart = target / "jobs" / "quickstart" / "job.yaml"
        for words in (("weights", "tiny", target / "demo" / "ckpts"), ("render", quickstart, "--workers", 2)):
            console.print(f"  {shell_command('ovi-ray', *words)}", soft_wrap=True)


def copy_examples(folder: Path) -> list[Path]:
    """Copy the examples that are not there yet, and return their paths. Raises InputError where other files are in the way."""
    wanted = {folder / source.relative_to(EXAMPLES): source for source in _files(EXAMPLES)}
    missing = {target: source for target, source in wanted.items() if not _is_copy(target, source)}
    if taken := [target for target in missing if target.exists()]:
        shown = ", ".join(str(target.relative_to(folder)) for target in taken[:_MAX_SHOWN])
        more = f" and {len(taken) - _MAX_SHOWN} more" if len(taken) > _MAX_SHOWN else ""
        value = f"{show_path(folder)}, where {shown}{more} {'is' if len(taken) == 1 else 'are'} other than the examples"
        raise InputError([Problem(file=COMMAND_LINE, field="DIR", value=value, expected="another folder")])
    with usable(folder, option="DIR"):
        for target, source in missing.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return list(missing)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; in a checkout its parts are links, and the jobs may have been rendered."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from () if path.name == "out" else _files(path)
        else:
            yield path


def _is_copy(target: Path, source: Path) -> bool:
    return target.is_file() and target.read_bytes() == source.read_bytes()
