"""Job files and options read into a pydantic model, with the file and line, or the option, of every problem."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show, show_path
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.inputs.path_checks import PathCheck
from ovi_ray.inputs.prompt_or_path import Meaning, meaning_of
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.inputs.yaml_checks import check_yaml
from ovi_ray.storage.paths import Location, resolve_path, to_location

_Spec = TypeVar("_Spec", bound=BaseModel)

ALIASES = {"num_steps": "sample_steps", "prompt": "text_prompt"}
"""Other keys, and the field that each stands for: `num_steps` of published files, and `prompt`, which never names a list."""
_PROMPT_KEYS = frozenset({"prompts", "text_prompt", "prompt"})
_OPTION_NAMES = {"prompts": "PROMPTS", "output_dir": "--out"}
_KEYS_EXPECTED = "keys and values, such as ckpt_dir: ./ckpts"


@dataclass(kw_only=True, slots=True, frozen=True)
class Given:
    """A value as the user gave it, and where."""

    value: Any
    file: str
    """Path of the job file, or COMMAND_LINE."""
    folder: Location
    """The folder that a relative path starts from."""
    label: str
    """The key or option as the user wrote it."""
    line: int | None = None
    """Line of the job file, from 1."""

    def problem(self, expected: str, found: str | None = None) -> Problem:
        """A problem with this value; `found` replaces the value in the message."""
        value = show(self.value) if found is None else found
        return Problem(file=self.file, line=self.line, field=self.label, value=value, expected=expected)


def option_name(field: str) -> str:
    """The command line's name for a field of a job."""
    return _OPTION_NAMES.get(field, f"--{field.replace('_', '-')}")


def read_options(options: Mapping[str, Any]) -> dict[str, Given]:
    """Options by field; None stands for an option that was not given."""
    return {
        key: Given(value=value, file=COMMAND_LINE, folder=to_location(Path.cwd()), label=option_name(key))
        for key, value in options.items()
        if value is not None
    }


def read_yaml(path: Location) -> dict[str, Given]:
    """The keys of a job file with their lines; a key without a value counts as not given. Raises InputError."""
    text = "".join(read_lines(path))
    try:
        check_yaml(str(path), text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError([_yaml_problem(path, error)]) from None
    if content is None:
        raise InputError([Problem(file=str(path), value="an empty file", expected=_KEYS_EXPECTED)])
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError([Problem(file=str(path), value=f"a {type(content).__name__}", expected=_KEYS_EXPECTED)])
    line_of = _unique_lines(path, node)
    folder = path.absolute().parent
    return {
        str(key): Given(value=value, file=str(path), folder=folder, label=str(key), line=line_of.get(str(key)))
        for key, value in content.items()
        if value is not None
    }


def merge(file: dict[str, Given], options: dict[str, Given]) -> dict[str, Given]:
    """The values of a job file with the options over them."""
    replaced = set(options)
    if replaced & _PROMPT_KEYS:
        replaced |= _PROMPT_KEYS
    replaced |= {alias for alias, field in ALIASES.items() if field in replaced}
    return {key: item for key, item in file.items() if key not in replaced} | options


def load(
    spec: type[_Spec],
    given: Mapping[str, Given],
    *,
    source: str,
    checks: Mapping[str, PathCheck],
    ignored: Collection[str] = (),
) -> _Spec:
    """Validate the values, and the paths among them on the disk or in the store. Raises InputError with every problem.

    `source` is where a missing value would have been given, `checks` holds the fields that are paths, `ignored` the keys
    that a file may hold though the model has no such field.
    """
    settled, problems = _without_aliases(given)
    settled = {key: item for key, item in settled.items() if key not in ignored}
    values = {key: _resolve(item) if key in checks else item.value for key, item in settled.items()}
    job: _Spec | None = None
    try:
        job = spec(**values)
    except ValidationError as error:
        known = sorted([*spec.model_fields, *ignored, *ALIASES])
        problems += [_problem(spec, details, settled, source, known) for details in error.errors()]
    refused = {problem.field for problem in problems}
    problems += _path_problems(
        {key: item for key, item in settled.items() if item.label not in refused}, values, checks
    )
    if job is None or problems:
        raise InputError(sorted(problems, key=lambda problem: (problem.file, problem.line or 0)))
    return job


def _path_problems(
    given: Mapping[str, Given], values: Mapping[str, Any], checks: Mapping[str, PathCheck]
) -> Iterator[Problem]:
    """Problems on the disk or in the store with the paths that are valid in form."""
    for key, check in checks.items():
        item = given.get(key)
        if item is not None and (refusal := check(values[key])) is not None:
            found, expected = refusal
            yield item.problem(expected, f"{show_path(item.value)}{found}")


def _resolve(item: Given) -> Any:
    """The path that a value names. Other values, and the error of a path that cannot be used, are left to validation."""
    if not isinstance(item.value, str | Path | Location) or not str(item.value).strip():
        return item.value
    try:
        return resolve_path(item.value, item.folder)
    except ValueError as error:
        return error


# -- aliases -------------------------------------------------------------------------------------------------------


def _without_aliases(given: Mapping[str, Given]) -> tuple[dict[str, Given], list[Problem]]:
    """The values under the names of their fields; a `text_prompt` that names a list becomes `prompts`."""
    settled = {ALIASES.get(key, key): item for key, item in given.items() if ALIASES.get(key) not in given}
    problems = [
        given[alias].problem(f"{field} alone: both mean the same")
        for alias, field in ALIASES.items()
        if alias in given and field in given
    ]
    text = given.get("text_prompt")
    if text and "prompts" not in settled and _names_a_list(text):
        settled["prompts"] = settled.pop("text_prompt")
    return settled, problems


def _names_a_list(item: Given) -> bool:
    return isinstance(item.value, str) and meaning_of(item.value, item.folder) is Meaning.PATH


# -- problems ------------------------------------------------------------------------------------------------------


def _problem(
    spec: type[BaseModel], details: ErrorDetails, given: Mapping[str, Given], source: str, known: list[str]
) -> Problem:
    key = str(details["loc"][0])
    label = option_name(key) if source == COMMAND_LINE else key
    item = given.get(key) or Given(value=None, file=source, folder=to_location(Path()), label=label)
    if details["type"] == "extra_forbidden":
        hint = did_you_mean(key, known) or f"; the keys are {', '.join(known)}"
        return item.problem(f"a known key{hint}", "an unknown key")
    if details["type"] == "value_error":
        is_path = isinstance(details["input"], ValueError)  # raised when the path was resolved
        found = "missing" if key not in given else show_path(item.value) if is_path else None
        return item.problem(str(details["ctx"]["error"]), found)
    expected = str(spec.model_fields[key].description)
    return item.problem(expected, None if key in given else "missing")


def _yaml_problem(path: Location, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(file=str(path), value="not YAML", expected=f"YAML text ({error})")
    found = f"not YAML at column {mark.column + 1}: {getattr(error, 'problem', None) or error}"
    return Problem(file=str(path), line=mark.line + 1, value=found, expected="keys and values, a colon between them")


def _unique_lines(path: Location, node: yaml.MappingNode) -> dict[str, int]:
    """The line of each key, from 1. Raises InputError for every key that is given more than once."""
    line_of: dict[str, int] = {}
    problems = []
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in line_of:
            found = f"given again, after line {line_of[key]}"
            problems.append(Problem(file=str(path), line=line, field=key, value=found, expected="each key once"))
        line_of.setdefault(key, line)
    if problems:
        raise InputError(problems)
    return line_of
