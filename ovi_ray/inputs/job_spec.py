"""A job: what to render, with what, to where. From a YAML file of the published form, from the command line, or both.

Everything that is wrong with it is told at once, each with its file and line or its option.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ovi.attention import AttentionBackend
from ovi.config import SamplingParams, SolverName
from ovi.files import UNFINISHED_PREFIX
from ovi.weights.formats import FP8_MODEL, WeightFormat
from ovi_ray.errors import InputError, Problem, show, show_path
from ovi_ray.inputs.first_frames import ImageRefusal, inspect_image
from ovi_ray.inputs.params import DEFAULT_PARAMS, PARAM_FIELDS, did_you_mean, parse_param
from ovi_ray.inputs.prompt_lists import READERS
from ovi_ray.inputs.text_files import read_lines, readable_problem
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location, PathOrUri, resolve_path, to_location
from ovi_ray.storage.uris import is_uri

COMMAND_LINE = "command line"
_PATHS = ("prompts", "image_path", "ckpt_dir", "output_dir", "cluster")
_ALIASES = {"num_steps": "sample_steps"}
_OPTIONS = {"prompts": "PROMPTS", "output_dir": "--out"}


class Mode(StrEnum):
    """What a clip starts from."""

    AUTO = "auto"
    """An image where its row has one, else the text alone."""
    T2V = "t2v"
    """The text alone: images are ignored."""
    I2V = "i2v"
    """An image in every row."""


class DeviceKind(StrEnum):
    """What the workers run on."""

    AUTO = "auto"
    """The GPUs, or the CPUs where there is none."""
    CPU = "cpu"
    GPU = "gpu"


def _to_location(value: object) -> Location:
    if isinstance(value, ValueError):  # what was found wrong when the path was made
        raise value
    if isinstance(value, Location | Path) or (isinstance(value, str) and value.strip()):
        return to_location(value)
    raise PydanticCustomError("path_type", "not a path")  # the field's description says what would be right


Place = Annotated[Location, PlainValidator(_to_location), PlainSerializer(str, when_used="json")]
"""A path on a disk or a URI; written as text in JSON."""


class JobSpec(BaseModel):
    """What the user asked for. Keys and defaults are the published ones; each description says what is right."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text_prompt: str | None = Field(None, pattern=r"\S", description="a prompt, or the path of a prompt list")
    prompts: Place | None = Field(
        None, validate_default=True, description=f"the path of a prompt list ({', '.join(READERS)})"
    )
    image_path: Place | None = Field(None, description="the path of an image")
    ckpt_dir: Place = Field(description="the path of a checkpoint folder")
    output_dir: Place = Field(description="the path of a folder to write to")
    mode: Mode = Field(Mode.AUTO, strict=False, description=f"one of {', '.join(Mode)}")
    model_name: str = Field("720x720_5s", description="the name of a model")
    each_example_n_times: int = Field(1, ge=1, description="an integer of at least 1")

    video_frame_height_width: tuple[int, int] = DEFAULT_PARAMS.video_frame_height_width
    seed: int = DEFAULT_PARAMS.seed
    sample_steps: int = DEFAULT_PARAMS.sample_steps
    solver_name: SolverName = DEFAULT_PARAMS.solver_name
    shift: float = DEFAULT_PARAMS.shift
    video_guidance_scale: float = DEFAULT_PARAMS.video_guidance_scale
    audio_guidance_scale: float = DEFAULT_PARAMS.audio_guidance_scale
    slg_layer: int = DEFAULT_PARAMS.slg_layer
    video_negative_prompt: str = DEFAULT_PARAMS.video_negative_prompt
    audio_negative_prompt: str = DEFAULT_PARAMS.audio_negative_prompt

    workers: int | None = Field(None, ge=1, description="a number of workers of at least 1")
    device: DeviceKind = Field(DeviceKind.AUTO, strict=False, description=f"one of {', '.join(DeviceKind)}")
    address: str | None = Field(None, description="the address of a Ray cluster, such as auto")
    cluster: Place | None = Field(None, description="the path of a cluster profile")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="bfloat16 or float32")

    sp_size: int = Field(1, ge=1, description="an integer of at least 1")
    fp8: bool = Field(False, description="true or false: the published 8-bit floats, which change pixels")
    qint8: bool = Field(False, description="true or false: 8-bit integer weights, which change pixels")
    cpu_offload: bool = Field(
        False, description="true or false: components that a device has no room for wait in its host's memory"
    )
    attention: AttentionBackend = Field(
        AttentionBackend.AUTO, strict=False, description=f"one of {', '.join(AttentionBackend)}"
    )
    allow_inexact: bool = Field(False, description="true or false: `auto` may take attention that changes pixels")
    memory_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="a positive number of GB that a worker may use"
    )

    @classmethod
    def from_yaml(cls, path: PathOrUri, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a job file; `overrides`, by field, are options of the command line (None: not given).

        Paths in the file are relative to its folder. Raises InputError with everything that is wrong.
        """
        given = _read_yaml(to_location(path))
        options = _from_options(overrides or {})
        if {"prompts", "text_prompt"} & options.keys():
            given.pop("prompts", None)
            given.pop("text_prompt", None)
        if "sample_steps" in options:
            given.pop("num_steps", None)
        return cls._build(given | options, source=str(path))

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """A job from the command line alone, by field (None: not given). Raises InputError with everything wrong."""
        return cls._build(_from_options(options), source=COMMAND_LINE)

    @property
    def params(self) -> SamplingParams:
        """The parameters of a clip whose row overrides none."""
        return SamplingParams(**{name: getattr(self, name) for name in PARAM_FIELDS})

    @property
    def weights(self) -> WeightFormat:
        """How the transformer's weights are stored."""
        if self.fp8:
            return WeightFormat.FP8
        return WeightFormat.QINT8 if self.qint8 else WeightFormat.DTYPE

    @property
    def numerics(self) -> str:
        """How clips are computed, as far as it changes pixels: part of a clip's id and row."""
        parts = [str(self.dtype)]
        if self.weights is not WeightFormat.DTYPE:
            parts.append(str(self.weights))
        if self.allow_inexact or self.attention is AttentionBackend.SAGE:
            parts.append("inexact_attention")
        return "+".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the job is read."""
        if self.sp_size == 1:
            return ()
        return (f"sp_size {self.sp_size} is not used: a batch is fastest with one clip on each GPU",)

    @classmethod
    def _build(cls, given: "dict[str, _Given]", source: str) -> Self:
        problems = list(_settle_aliases(given))
        values = {key: _resolve(key, item) for key, item in given.items()}
        try:
            job = cls(**values)
        except ValidationError as error:
            job = None
            problems += [_problem(details, given, source) for details in error.errors()]
        refused = {problem.field for problem in problems}
        problems += _path_problems({key: item for key, item in given.items() if item.label not in refused}, values)
        if job is None or problems:
            raise InputError(sorted(problems, key=lambda problem: (problem.file, problem.line or 0)))
        return job

    @field_validator(*PARAM_FIELDS, "model_name", mode="before")
    @classmethod
    def _check_param(cls, value: object, info: ValidationInfo) -> object:
        return parse_param(str(info.field_name), value)

    @field_validator("fp8")
    @classmethod
    def _check_fp8(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("model_name") != FP8_MODEL:
            raise ValueError(f"false: only model {FP8_MODEL} is published in fp8; qint8 stores any model in 8 bits")
        return value

    @field_validator("qint8")
    @classmethod
    def _check_qint8(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("fp8"):
            raise ValueError("false beside fp8: weights are stored in one form")
        return value

    @field_validator("mode", mode="before")
    @classmethod
    def _check_mode(cls, value: object) -> object:
        if value == "t2i2v":
            raise ValueError(f"one of {', '.join(Mode)}: drawing first frames from text (t2i2v) is not supported yet")
        return value

    @field_validator("prompts")
    @classmethod
    def _check_one_source(cls, prompts: Location | None, info: ValidationInfo) -> Location | None:
        text_prompt = info.data.get("text_prompt", "refused already")
        if prompts is None and text_prompt is None:
            raise ValueError(f"a prompt list ({', '.join(READERS)}), or one prompt as text_prompt")
        if prompts is not None and text_prompt is not None:
            raise ValueError("either prompts or text_prompt, not both")
        return prompts


@dataclass(kw_only=True, slots=True, frozen=True)
class _Given:
    """A value as the user gave it, and where."""

    value: Any
    file: str
    folder: Location
    """What a path is relative to."""
    label: str
    """The key or option as the user wrote it."""
    line: int | None = None

    def problem(self, expected: str, value: str | None = None) -> Problem:
        found = show(self.value) if value is None else value
        return Problem(file=self.file, line=self.line, field=self.label, value=found, expected=expected)


def _from_options(options: Mapping[str, Any]) -> dict[str, _Given]:
    return {
        key: _Given(value=value, file=COMMAND_LINE, folder=to_location(Path.cwd()), label=_option(key))
        for key, value in options.items()
        if value is not None
    }


def _option(key: str) -> str:
    return _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _read_yaml(path: Location) -> dict[str, _Given]:
    """The keys of a job file with their lines; keys without a value are left out, as not given."""
    text = "".join(read_lines(path))
    expected = "keys and values, such as ckpt_dir: ./ckpts"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError([_yaml_problem(path, error)]) from None
    if content is None:
        raise InputError([Problem(file=str(path), value="an empty file", expected=expected)])
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError([Problem(file=str(path), value=f"a {type(content).__name__}", expected=expected)])
    lines = [(str(key.value), key.start_mark.line + 1) for key, _ in node.value]
    _check_unique(path, lines)
    line_of = dict(lines)
    return {
        str(key): _Given(
            value=value, file=str(path), folder=path.absolute().parent, label=str(key), line=line_of.get(str(key))
        )
        for key, value in content.items()
        if value is not None
    }


def _yaml_problem(path: Location, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(file=str(path), value="not YAML", expected=f"YAML text ({error})")
    found = f"not YAML at column {mark.column + 1}: {getattr(error, 'problem', None) or error}"
    return Problem(file=str(path), line=mark.line + 1, value=found, expected="keys and values, a colon between them")


def _check_unique(path: Location, lines: list[tuple[str, int]]) -> None:
    first: dict[str, int] = {}
    problems = []
    for key, line in lines:
        if key in first:
            found = f"given again, after line {first[key]}"
            problems.append(Problem(file=str(path), line=line, field=key, value=found, expected="each key once"))
        first.setdefault(key, line)
    if problems:
        raise InputError(problems)


def _settle_aliases(given: dict[str, _Given]) -> Iterator[Problem]:
    """Move aliases to the fields they mean, and a `text_prompt` that names a list to `prompts`."""
    for alias, key in _ALIASES.items():
        if alias in given and key in given:
            yield given.pop(alias).problem(f"{key} alone: both mean the same")
        elif alias in given:
            given[key] = given.pop(alias)
    item = given.get("text_prompt")
    if item and "prompts" not in given and _names_a_list(item):
        given["prompts"] = given.pop("text_prompt")


def _names_a_list(item: _Given) -> bool:
    if not isinstance(item.value, str) or "\n" in item.value:
        return False
    if is_uri(item.value) or Path(item.value).suffix.lower() in READERS:
        return True
    try:
        return item.folder.is_local and (item.folder / item.value).is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a NUL
        return False


def _resolve(key: str, item: _Given) -> Any:
    if key not in _PATHS or not isinstance(item.value, str | Path | Location) or not str(item.value).strip():
        return item.value
    try:
        return resolve_path(item.value, item.folder)
    except ValueError as error:
        return error


def _problem(details: ErrorDetails, given: Mapping[str, _Given], source: str) -> Problem:
    key = str(details["loc"][0])
    label = _option(key) if source == COMMAND_LINE else key
    item = given.get(key) or _Given(value=None, file=source, folder=to_location(Path()), label=label)
    if details["type"] == "extra_forbidden":
        known = [*JobSpec.model_fields, *_ALIASES]
        hint = did_you_mean(key, known) or f"; the keys are {', '.join(sorted(known))}"
        return item.problem(f"a key that exists{hint}", "an unknown key")
    return item.problem(_expected(key, details), None if key in given else "missing")


def _expected(key: str, details: ErrorDetails) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return str(JobSpec.model_fields[key].description)


def _path_problems(given: Mapping[str, _Given], values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong on disk with paths that are right in form."""
    if (item := given.get("prompts")) and (found := readable_problem(values["prompts"])):
        yield item.problem("a prompt list that can be read", f"{show_path(item.value)}, {found}")
    if (item := given.get("cluster")) and (found := readable_problem(values["cluster"])):
        yield item.problem("a cluster profile that can be read", f"{show_path(item.value)}, {found}")
    if (item := given.get("ckpt_dir")) and (found := _not_a_folder(values["ckpt_dir"])):
        yield item.problem("a checkpoint folder that exists", f"{show_path(item.value)}, {found}")
    if (item := given.get("output_dir")) and (reason := _cannot_write(values["output_dir"])):
        yield item.problem("a folder that can be written to", f"{show_path(item.value)} ({reason})")
    if (item := given.get("image_path")) and values.get("mode") != Mode.T2V:
        facts = inspect_image(values["image_path"])
        if isinstance(facts, ImageRefusal):
            yield item.problem(facts.expected, f"{show_path(item.value)}, {facts.found}")


def _not_a_folder(folder: Location) -> str | None:
    try:
        return None if folder.is_dir() else "which is not a folder"
    except OSError as error:
        return f"which cannot be read ({plain_reason(error)})"


def _cannot_write(folder: Location) -> str | None:
    """Why no file can be written in `folder`, found by trying; the folder is made."""
    try:
        folder.mkdir()
        probe = folder / f"{UNFINISHED_PREFIX}{uuid4().hex[:8]}.probe"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        return plain_reason(error)
    except ValueError as error:  # a NUL in the path
        return str(error)
    return None
