"""Options generated from declarations: those of a job from the fields of `JobSpec`, and those that every command has.

A command that is decorated takes the generated options as one parameter:

    @with_job_options({"Where": ("workers", "device")})
    @with_display_options
    def render(job_options: JobOptions, display: DisplayOptions) -> None: ...
"""

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from ovi.config import MODEL_SPECS
from ovi_ray.inputs.job_file import option_name
from ovi_ray.inputs.job_schema import help_of
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.params import PARAM_FIELDS

Command = Callable[..., None]
JobOptions = dict[str, Any]
"""Options by field of `JobSpec`; None for one that was not given."""

LOCATION = "PATH|URI"
PROMPT_OPTION = typer.Option(
    metavar="TEXT",
    help="One prompt. Unlike PROMPTS, the text is never taken for the name of a file. [default: none]",
    rich_help_panel="What to render",
)
LIST_FIELDS = ("model_name", "mode", "image_path", "each_example_n_times", "delimiter", "sheet", "sweep")
"""Options on what is rendered, the same in every command that reads a prompt list."""
SAMPLING_PANEL = {"Sampling, for rows that do not set their own": PARAM_FIELDS}
RUNTIME_FIELDS = (
    "workers",
    "device",
    "dtype",
    "attention",
    "allow_inexact",
    "compile",
    "kernels",
    "qint8",
    "fp8",
    "weights",
    "cpu_offload",
    "memory_gb",
    "cluster",
    "elastic",
    "retries",
    "speculation",
    "pairing",
    "latency",
)
"""Options on where and how a job runs, on this machine or another one."""
KEPT_FIELDS = ("keep_seeds", "keep_latents", "checkpoint_s")
DISPLAY_PANEL = "What is shown"
_METAVARS: dict[type, str] = {int: "INTEGER", float: "NUMBER", tuple: "HEIGHTxWIDTH", str: "TEXT"}
_MAX_METAVAR_CHARS = 30


class LogLevel(StrEnum):
    """Log levels by name."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(kw_only=True, slots=True, frozen=True)
class DisplayOptions:
    """Verbosity options of a command."""

    verbose: int = 0
    """1 logs what happens, 2 also details."""
    quiet: bool = False
    """No progress, and only errors are logged."""
    log_level: LogLevel | None = None
    """Replaces the level that `verbose` and `quiet` stand for."""

    @property
    def level(self) -> int:
        """The level of `logging` from which records are printed."""
        if self.log_level is not None:
            return logging.getLevelNamesMapping()[self.log_level.upper()]
        if self.verbose:
            return logging.INFO if self.verbose == 1 else logging.DEBUG
        return logging.ERROR if self.quiet else logging.WARNING


def with_display_options(command: Command) -> Command:
    """Replace a command's parameter `display` by -v, -q and --log-level."""
    declared = {
        "verbose": Annotated[
            int,
            typer.Option(
                "--verbose",
                "-v",
                count=True,
                show_default=False,
                help="Log what happens; -vv: details too. [default: warnings]",
                rich_help_panel=DISPLAY_PANEL,
            ),
        ],
        "quiet": Annotated[
            bool,
            typer.Option(
                "--quiet",
                "-q",
                help="No progress display, and only errors are logged; notes and the summary stay. [default: off]",
                rich_help_panel=DISPLAY_PANEL,
            ),
        ],
        "log_level": Annotated[
            LogLevel | None,
            typer.Option(
                help="Level to log from, in place of -v and -q. [default: warning]", rich_help_panel=DISPLAY_PANEL
            ),
        ],
    }
    defaults = {"verbose": 0, "quiet": False, "log_level": None}
    parameters = [_parameter(name, annotation, defaults[name]) for name, annotation in declared.items()]
    return _expand(command, "display", parameters, DisplayOptions)


def with_job_options(panels: Mapping[str, Sequence[str]], *, default: str = "") -> Callable[[Command], Command]:
    """Replace a command's parameter `job_options` by an option for each named field of `JobSpec`, by help panel.

    `default` is shown as the default of every option, where that is not the field's.
    """
    parameters = [
        _parameter(name, _annotation(name, panel, default=default), None)
        for panel, names in panels.items()
        for name in names
    ]

    def decorate(command: Command) -> Command:
        return _expand(command, "job_options", parameters, dict)

    return decorate


def _expand(
    command: Command, name: str, parameters: Iterable[inspect.Parameter], collect: Callable[..., object]
) -> Command:
    """The command with several parameters in place of one, which it gets as `collect(**their_values)`."""
    added = {parameter.name: parameter for parameter in parameters}
    expanded: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        expanded.extend(added.values() if parameter.name == name else [parameter])
    signature = inspect.Signature([parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in expanded])

    def run(**given: Any) -> None:
        collected = collect(**{key: given.pop(key) for key in added})
        command(**given, **{name: collected})

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded} | {"return": None}
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_DEFAULT_IN_HELP = re.compile(r" \[default: [^]]*\]")

# -- the fields of a job -------------------------------------------------------------------------------------------


def _annotation(name: str, panel: str, *, default: str) -> Any:
    choices = _choices(name)
    value_type, metavar = _type_and_metavar(name, choices)
    parts = [_DEFAULT_IN_HELP.sub("", help_of(name)) if default else help_of(name)]
    if choices and metavar == _METAVARS[str]:
        parts.append(f"One of {', '.join(choices)}.")
    if default := default or _default(name):
        parts.append(f"[default: {default}]")
    declaration = option_name(name)
    if value_type is bool:  # the job file may have chosen the other one
        declaration += declaration.replace("--", "/--no-")
    option = typer.Option(
        declaration,
        help=" ".join(parts),
        metavar=metavar,
        autocompletion=(lambda: list(choices)) if choices else None,
        rich_help_panel=panel,
    )
    return Annotated[value_type | None, option]


def _type_and_metavar(name: str, choices: Sequence[str]) -> tuple[Any, str | None]:
    """The type that typer parses, and its name in the help. Where `JobSpec` parses text, the type is text."""
    field = JobSpec.model_fields[name]
    if name in JobSpec.path_checks():
        return str, LOCATION
    if name == "sweep":
        return list[str], "NAME=VALUES"
    if choices:
        metavar = "|".join(choices)
        return str, metavar if len(metavar) <= _MAX_METAVAR_CHARS else _METAVARS[str]
    types = get_args(field.annotation) or (field.annotation,)
    if bool in types:
        return bool, None
    if name in PARAM_FIELDS:
        return str, _METAVARS[type(field.default)]
    numeric = next((numeric for numeric in (int, float) if numeric in types), str)
    return numeric, _METAVARS[numeric]


def _choices(name: str) -> Sequence[str]:
    """The values of a field that accepts a few names only."""
    annotation = JobSpec.model_fields[name].annotation
    if name == "model_name":
        return tuple(MODEL_SPECS)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(annotation) if isinstance(annotation, type) and issubclass(annotation, StrEnum) else ()


def _default(name: str) -> str:
    """The default as text; empty where the option has none, or its help tells it."""
    field = JobSpec.model_fields[name]
    default = field.default
    if field.is_required():
        return "the job file's"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return "x".join(map(str, default))
    return str(default) if isinstance(default, str | int | float) else ""
