"""Job files and options read into a pydantic model, with the file and line, or the option, of every problem."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show, show_path
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.inputs.path_checks import PathCheck
from ovi_ray.inputs.prompt_or_path import Meaning, meaning_of
from ovi_ray.inputs.sweep import parse_sweep
from ovi_ray.inputs.yaml_files import read_yaml_file
from ovi_ray.storage.paths import Location, resolve_path, to_location

_Spec = TypeVar("_Spec", bound=BaseModel)
Sections = Mapping[str, Collection[str]]
"""The fields of a job that a file may group under a key, by that key. Each may stand at the top level as well."""

ALIASES = {"num_steps": "sample_steps", "prompt": "text_prompt"}
"""Other keys, and the field that each stands for: `num_steps` of published files, and `prompt`, which never names a list."""
_PROMPT_KEYS = frozenset({"prompts", "text_prompt", "prompt"})
_FORMAT_KEYS = frozenset({"delimiter", "sheet"})
"""Keys on the format of the file's own list."""
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
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each key of a value that is a mapping."""

    def part(self, key: object) -> "Given":
        """The value of one key of a value that is a mapping, with its own label and line."""
        value = self.value.get(key) if isinstance(self.value, Mapping) else self.value
        separator = " " if self.file == COMMAND_LINE else "."
        label, line = f"{self.label}{separator}{key}", self.lines.get(str(key), self.line)
        return Given(value=value, file=self.file, folder=self.folder, label=label, line=line)

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
        key: Given(value=_parted(key, value), file=COMMAND_LINE, folder=to_location(Path.cwd()), label=option_name(key))
        for key, value in options.items()
        if value is not None
    }


def _parted(key: str, value: Any) -> Any:
    """The texts of `--sweep` by parameter, so that a problem names its own; texts that are none are told later."""
    try:
        return parse_sweep(value) if key == "sweep" else value
    except ValueError:
        return value


def read_yaml(path: Location, sections: Sections | None = None, *, expected: str = _KEYS_EXPECTED) -> dict[str, Given]:
    """The keys of a job file with their lines; a key without a value counts as not given. Raises InputError.

    The keys of a section are returned as those of the file; one that does not belong there keeps its section's name, as in
    "resources.seed", and is refused by `load`.
    """
    document = read_yaml_file(path)
    node, content = document.root, document.content
    if content is None:
        raise InputError([Problem(file=str(path), value="an empty file", expected=expected)])
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(content, list) else f"the text {show(content)}"
        raise InputError([Problem(file=str(path), value=found, expected=expected)])
    line_of, lines_in = _key_lines(node)
    folder = path.absolute().parent
    given = {}
    for name, value in content.items():
        key = str(name)
        lines = lines_in.get(key, {})
        given[key] = Given(value=value, file=str(path), folder=folder, label=key, line=line_of.get(key), lines=lines)
    return {key: item for key, item in _flat(given, sections or {}).items() if item.value is not None}


def _flat(given: dict[str, Given], sections: Sections) -> dict[str, Given]:
    """The keys of a file with those of its sections among them."""
    flat = {key: item for key, item in given.items() if not (key in sections and isinstance(item.value, dict))}
    for section, item in given.items():
        if section in flat:
            continue
        for key in item.value:
            is_field = key in sections[section] and key not in flat
            flat[str(key) if is_field else f"{section}.{key}"] = item.part(key)
    return flat


def merge(file: dict[str, Given], options: dict[str, Given]) -> dict[str, Given]:
    """The values of a job file with the options over them."""
    replaced = set(options)
    if replaced & _PROMPT_KEYS:
        replaced |= _PROMPT_KEYS | _FORMAT_KEYS
    replaced |= {alias for alias, field in ALIASES.items() if field in replaced}
    return {key: item for key, item in file.items() if key not in replaced} | options


def load(
    spec: type[_Spec],
    given: Mapping[str, Given],
    *,
    source: str,
    checks: Mapping[str, PathCheck],
    ignored: Collection[str] = (),
    sections: Sections | None = None,
) -> _Spec:
    """Validate the values, and the paths among them on the disk or in the store. Raises InputError with every problem.

    `source` is where a missing value would have been given, `checks` holds the fields that are paths, `ignored` the keys
    that a file may hold though the model has no such field, `sections` the groups that `read_yaml` was given.
    """
    settled, problems = _without_aliases(given)
    settled = {key: item for key, item in settled.items() if key not in ignored}
    values = {key: _resolve(item) if key in checks else item.value for key, item in settled.items()}
    job: _Spec | None = None
    try:
        job = spec(**values)
    except ValidationError as error:
        known = _KnownKeys(spec, ignored, sections or {})
        problems += [_problem(known, details, settled, source) for details in error.errors()]
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
        return resolve_path(item.value, item.folder).simplified()
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


class _KnownKeys:
    """The keys of a job file, for messages on others."""

    def __init__(self, spec: type[BaseModel], ignored: Collection[str], sections: Sections) -> None:
        self.spec = spec
        self.sections = sections
        aliases = [alias for alias, field in ALIASES.items() if field in spec.model_fields]
        self.top = sorted([*spec.model_fields, *ignored, *sections, *aliases])

    def refusal(self, key: str) -> tuple[str, str]:
        """For a key that the model does not have: a description of it, and what is expected."""
        if key in self.sections:
            return "", f"keys and values, such as {next(iter(self.sections[key]))}: ..."
        section, dot, name = key.partition(".")
        if dot and section in self.sections:
            if name in self.sections[section]:
                return "given again", f"{name} once: here, or at the top level"
            return _unknown(name, sorted(self.sections[section]))
        return _unknown(key, self.top)

    def within(self, field: str) -> list[str]:
        """The keys of a field that is a mapping with fixed keys, or that holds such mappings."""
        return [key for model in _models(self.spec.model_fields[field]) for key in model.model_fields]

    def description(self, key: str, inner: Sequence[str]) -> str:
        """Of the key, or of the key within it that has one of its own."""
        field = self.spec.model_fields[key]
        for name in inner:
            fields = (model.model_fields.get(name) for model in _models(field))
            field = next((found for found in fields if found is not None), field)
        return str(field.description)


def _models(field: FieldInfo) -> list[type[BaseModel]]:
    """The models in the annotation of a field."""
    parts = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
    return [part for part in parts if issubclass(part, BaseModel)]


def _unknown(key: str, known: list[str]) -> tuple[str, str]:
    hint = did_you_mean(key, known) or f"; the keys are {', '.join(known)}"
    return "an unknown key", f"a known key{hint}"


def _problem(known: _KnownKeys, details: ErrorDetails, given: Mapping[str, Given], source: str) -> Problem:
    key, *inner = map(str, details["loc"])
    label = option_name(key) if source == COMMAND_LINE else key
    item = given.get(key) or Given(value=None, file=source, folder=to_location(Path()), label=label)
    part, followed = item, list[str]()
    for name in inner:
        if not isinstance(part.value, Mapping) or name not in map(str, part.value):
            break
        part, followed = part.part(name), [*followed, name]
    if details["type"] == "extra_forbidden":
        found, expected = _unknown(inner[-1], known.within(key)) if inner else known.refusal(key)
        return part.problem(expected, found or None)
    if details["type"] == "value_error":
        is_path = isinstance(details["input"], ValueError)  # raised when the path was resolved
        shown = "missing" if key not in given else show_path(part.value) if is_path else None
        return part.problem(str(details["ctx"]["error"]), shown)
    return part.problem(known.description(key, followed), None if key in given else "missing")


def _key_lines(node: yaml.MappingNode) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """The line of each key, from 1, and for values that are mappings those of their keys."""
    within = {str(key.value): _lines(value) for key, value in node.value if isinstance(value, yaml.MappingNode)}
    return _lines(node), within


def _lines(node: yaml.MappingNode) -> dict[str, int]:
    return {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
