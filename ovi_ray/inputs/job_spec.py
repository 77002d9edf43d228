"""A job: which clips to render, with which weights, on what and to where."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ovi.attention import AttentionBackend
from ovi.config import MODEL_SPECS, SamplingParams, SolverName
from ovi.weights.formats import FP8_MODEL, WeightFormat
from ovi_ray.errors import COMMAND_LINE
from ovi_ray.inputs.job_file import Given, load, merge, read_options, read_yaml
from ovi_ray.inputs.params import DEFAULT_PARAMS, PARAM_FIELDS, parse_param
from ovi_ray.inputs.path_checks import PathCheck, existing_folder, readable_file, usable_image, writable_folder
from ovi_ray.inputs.prompt_lists import READERS
from ovi_ray.storage.paths import Location, PathOrUri, to_location

LIST_SUFFIXES = ", ".join(READERS)


class Mode(StrEnum):
    """Conditioning of a clip: text alone, or text and a first frame."""

    AUTO = "auto"
    """An image where its row has one, else the text alone."""
    T2V = "t2v"
    """The text alone: images are ignored."""
    I2V = "i2v"
    """An image in every row."""


class DeviceKind(StrEnum):
    """Kind of device that workers use."""

    AUTO = "auto"
    """The GPUs, or the CPUs where there is none."""
    CPU = "cpu"
    GPU = "gpu"


def _to_location(value: object) -> Location:
    if isinstance(value, ValueError):  # raised when the path was resolved
        raise value
    if isinstance(value, Location | Path) or (isinstance(value, str) and value.strip()):
        return to_location(value)
    raise PydanticCustomError("path_type", "not a path")  # the message shown is the field's description


FilePath = Annotated[Location, PlainValidator(_to_location), PlainSerializer(str, when_used="json")]
"""A path on a disk or a URI; written as text in JSON."""


class Help(str):
    """One line for `--help`, as metadata of a field."""


class BatchSpec(BaseModel):
    """A job without its checkpoint and output folders, which is all that planning needs.

    Keys and defaults are the published ones. A field's description lists the accepted values, as error messages name them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    ignored_keys: ClassVar[tuple[str, ...]] = ("ckpt_dir", "output_dir")
    """Keys of a job file that this model has no field for."""

    text_prompt: str | None = Field(None, pattern=r"\S", description="a prompt, or the path of a prompt list")
    prompts: FilePath | None = Field(
        None, validate_default=True, description=f"the path of a prompt list ({LIST_SUFFIXES})"
    )
    image_path: Annotated[FilePath | None, Help("First frame of rows without one.")] = Field(
        None, description="the path of an image"
    )
    mode: Annotated[Mode, Help("t2v: text alone. i2v: an image in every row. auto: an image where a row has one.")] = (
        Field(Mode.AUTO, strict=False, description=f"one of {', '.join(Mode)}")
    )
    model_name: Annotated[str, Help("Model, by its area and length.")] = Field(
        "720x720_5s", description=f"one of {', '.join(MODEL_SPECS)}"
    )
    each_example_n_times: Annotated[int, Help("Clips of each row, with consecutive seeds.")] = Field(
        1, ge=1, description="an integer of at least 1"
    )

    # The fields of ovi.config.SamplingParams, which declares their types, defaults, ranges and help.
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

    workers: Annotated[int | None, Help("Number of workers; by default one on each GPU, or one.")] = Field(
        None, ge=1, description="a number of workers of at least 1"
    )
    device: Annotated[DeviceKind, Help("What workers run on.")] = Field(
        DeviceKind.AUTO, strict=False, description=f"one of {', '.join(DeviceKind)}"
    )
    address: Annotated[
        str | None, Help("Ray cluster to join, such as auto; by default Ray is started on this machine.")
    ] = Field(None, description="the address of a Ray cluster, such as auto")
    cluster: Annotated[
        FilePath | None, Help("Cluster profile: its workers, with the stages, memory and speed that it declares.")
    ] = Field(None, description="the path of a cluster profile")
    dtype: Annotated[Literal["bfloat16", "float32"], Help("Number format of the networks.")] = Field(
        "bfloat16", description="bfloat16 or float32"
    )

    sp_size: int = Field(1, ge=1, description="an integer of at least 1")
    fp8: Annotated[bool, Help("The published 8-bit float weights, which change pixels.")] = Field(
        False, description="true or false: the published 8-bit floats, which change pixels"
    )
    qint8: Annotated[bool, Help("8-bit integer weights: half the memory, and other pixels.")] = Field(
        False, description="true or false: 8-bit integer weights, which change pixels"
    )
    cpu_offload: Annotated[bool, Help("Keep components that a device has no room for in its host's memory.")] = Field(
        False, description="true or false: components that a device has no room for wait in its host's memory"
    )
    attention: Annotated[AttentionBackend, Help("Attention backend; auto measures them.")] = Field(
        AttentionBackend.AUTO, strict=False, description=f"one of {', '.join(AttentionBackend)}"
    )
    allow_inexact: Annotated[bool, Help("Let auto choose attention that changes pixels.")] = Field(
        False, description="true or false: `auto` may take attention that changes pixels"
    )
    compile: Annotated[
        bool,
        Help("Fuse the transformer's blocks with torch.compile: faster after a slow first clip, and other pixels."),
    ] = Field(False, description="true or false: torch.compile fuses the transformer's blocks, which changes pixels")
    memory_gb: Annotated[float | None, Help("GB of its device that a worker may use.")] = Field(
        None, gt=0, allow_inf_nan=False, description="a positive number of GB that a worker may use"
    )

    @classmethod
    def from_yaml(cls, path: PathOrUri, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a job file; `overrides`, by field, are options of the command line (None: not given).

        Paths in the file are relative to its folder. Raises InputError with every problem.
        """
        return cls._load(merge(read_yaml(to_location(path)), read_options(overrides or {})), source=str(path))

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """A job of options alone, by field (None: not given). Raises InputError with every problem."""
        return cls._load(read_options(options), source=COMMAND_LINE)

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of a clip whose row overrides none."""
        return SamplingParams(**{name: getattr(self, name) for name in PARAM_FIELDS})

    @property
    def weights(self) -> WeightFormat:
        """How the transformer's weights are stored."""
        if self.fp8:
            return WeightFormat.FP8
        return WeightFormat.QINT8 if self.qint8 else WeightFormat.DTYPE

    @property
    def numerics(self) -> str:
        """Everything about the computation that changes pixels, such as "bfloat16+qint8": part of a clip's id and row."""
        parts = [str(self.dtype)]
        if self.weights is not WeightFormat.DTYPE:
            parts.append(str(self.weights))
        if self.allow_inexact or self.attention is AttentionBackend.SAGE:
            parts.append("inexact_attention")
        if self.compile:
            parts.append("compiled")
        return "+".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Settings of the job that have no effect, for the user to know."""
        if self.sp_size == 1:
            return ()
        return (f"sp_size {self.sp_size} is not used: a batch is fastest with one clip on each GPU",)

    @classmethod
    def _load(cls, given: Mapping[str, Given], *, source: str) -> Self:
        checks = cls.path_checks()
        if "mode" in given and given["mode"].value == Mode.T2V:
            checks["image_path"] = _unchecked
        return load(cls, given, source=source, checks=checks, ignored=cls.ignored_keys)

    @classmethod
    def path_checks(cls) -> dict[str, PathCheck]:
        """The fields that are paths, each with its check."""
        return {
            "prompts": readable_file("a prompt list that can be read"),
            "cluster": readable_file("a cluster profile that can be read"),
            "image_path": usable_image,
        }

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
            raise ValueError(f"one of {', '.join(Mode)}: first frames drawn from text (t2i2v) are not supported yet")
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


class JobSpec(BatchSpec):
    """Everything the user asked for: a batch with its checkpoint folder and its output folder.

    `from_options` and `from_yaml` report problems as InputError and check paths, without creating anything; the constructor
    raises pydantic's ValidationError and checks no path.
    """

    ignored_keys: ClassVar[tuple[str, ...]] = ()

    ckpt_dir: Annotated[FilePath, Help("Checkpoint folder.")] = Field(description="the path of a checkpoint folder")
    output_dir: Annotated[FilePath, Help("Folder for videos, results and report.")] = Field(
        description="the path of a folder to write to"
    )

    @classmethod
    def path_checks(cls) -> dict[str, PathCheck]:
        """As in BatchSpec, with the folders."""
        return super().path_checks() | {"ckpt_dir": existing_folder, "output_dir": writable_folder}


def _unchecked(path: Location) -> None:
    """The check of a path that the job does not use."""
