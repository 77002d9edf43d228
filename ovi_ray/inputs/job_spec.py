"""A job: which clips to render, with which weights, on what and to where."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from ovi.attention import AttentionBackend
from ovi.attention.types import INEXACT
from ovi.config import MODEL_SPECS, SamplingParams, SolverName
from ovi.kernels import KernelMode
from ovi.quality import Quality
from ovi.weights.formats import FP8_MODEL, WeightFormat
from ovi_ray.errors import COMMAND_LINE
from ovi_ray.inputs.job_file import Given, load, merge, read_options, read_yaml
from ovi_ray.inputs.lists.delimited import DELIMITERS
from ovi_ray.inputs.params import DEFAULT_PARAMS, PARAM_FIELDS, parse_param
from ovi_ray.inputs.path_checks import (
    PathCheck,
    existing_folder,
    prompt_list_file,
    readable_file,
    usable_image,
    writable_folder,
)
from ovi_ray.inputs.prompt_lists import OPTION_SUFFIXES, READERS
from ovi_ray.inputs.sweep import DeclaredSweep, parse_sweep
from ovi_ray.storage.paths import Location, PathOrUri, to_location

LIST_SUFFIXES = ", ".join(READERS)
CHECKPOINT_S = 60.0
"""Seconds between two checkpoints of a denoise, where the job does not say otherwise."""
MAX_PRIORITY = 1000
NOT_LOSSY = "the job does not allow lossy clips (policies.allow_lossy is false)"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SET_BY_RAY = frozenset({"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})


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


class Weights(StrEnum):
    """Form of the transformer's weights that a job asks for."""

    DTYPE = "dtype"
    """The dtype of the job."""
    STREAMED = "streamed"
    """The dtype of the job, with the transformer's blocks in host memory."""
    QINT8 = "qint8"
    FP8 = "fp8"
    AUTO = "auto"
    """`qint8` where more of the devices can denoise with it than with `dtype`: decided when the job is prepared."""


def _to_location(value: object) -> Location:
    if isinstance(value, ValueError):  # raised when the path was resolved
        raise value
    if isinstance(value, Location | Path) or (isinstance(value, str) and value.strip()):
        return to_location(value)
    raise PydanticCustomError("path_type", "not a path")  # the message shown is the field's description


def _check_variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a name of letters, digits and underscores")
    if name in _SET_BY_RAY:
        raise ValueError("no such variable: each worker is given its own device; workers and device choose them")
    return name


FilePath = Annotated[
    Location,
    PlainValidator(_to_location),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A path on a disk or a URI; written as text in JSON."""


class Help(str):
    """One line for `--help`, as metadata of a field."""


class BatchSpec(BaseModel):
    """A job without its output folder, which is all that planning needs; its checkpoint folder need not exist.

    Keys and defaults are the published ones. A field's description lists the accepted values, as error messages name them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    ignored_keys: ClassVar[tuple[str, ...]] = ("output_dir",)
    """Keys of a job file that this model has no field for."""
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "resources": ("device", "workers", "memory_gb", "cpu_offload", "cluster", "elastic", "prices"),
        "policies": (
            "retries",
            "speculation",
            "pairing",
            "latency",
            "checkpoint_s",
            "keep_latents",
            "keep_seeds",
            "allow_inexact",
            "allow_lossy",
        ),
    }
    """Fields that a job file may group under a key; each may stand at the top level as well."""

    text_prompt: Annotated[str | None, Help("One prompt, or a prompt list, as in the published files.")] = Field(
        None, pattern=r"\S", description="a prompt, or the path of a prompt list"
    )
    prompts: Annotated[FilePath | None, Help("Prompt list, instead of text_prompt.")] = Field(
        None, validate_default=True, description=f"the path of a prompt list ({LIST_SUFFIXES})"
    )
    delimiter: Annotated[
        str | None,
        Help("Separator of the columns of a CSV or TSV: a character or its name. [default: found by looking]"),
    ] = Field(None, description=f"one character, or one of {', '.join(DELIMITERS)}")
    sheet: Annotated[str | None, Help("Sheet of a spreadsheet. [default: the first one]")] = Field(
        None, min_length=1, description="the name of a sheet of the spreadsheet"
    )
    ckpt_dir: Annotated[FilePath | None, Help("Checkpoint folder.")] = Field(
        None, description="the path of a checkpoint folder"
    )
    image_path: Annotated[FilePath | None, Help("First frame of rows without one. [default: none]")] = Field(
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

    allow_lossy: Annotated[bool, Help("Whether clips may have another quality than exact.")] = Field(
        True, description="true or false: rows and options may ask for another quality than exact"
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
    quality: Quality = DEFAULT_PARAMS.quality

    sweep: Annotated[
        DeclaredSweep | None,
        Help(
            "NAME=VALUES, such as seed=0-19 or shift=3,5: every combination of all sweeps, for every row. Repeatable."
            " [default: none]"
        ),
    ] = Field(None, description="parameters with their values, such as seed: 0-19 or shift: [3, 5]")

    workers: Annotated[
        int | None, Help("Number of workers. [default: one on each GPU, or one on each node if there is no GPU]")
    ] = Field(None, ge=1, description="a number of workers of at least 1")
    device: Annotated[DeviceKind, Help("What workers run on.")] = Field(
        DeviceKind.AUTO, strict=False, description=f"one of {', '.join(DeviceKind)}"
    )
    address: Annotated[
        str | None, Help("Ray cluster to join, such as auto. [default: Ray is started on this machine]")
    ] = Field(None, pattern=r"\S", description="the address of a Ray cluster, such as auto")
    cluster: Annotated[
        FilePath | None,
        Help(
            "Cluster profile: its workers, with the stages, memory and speed that it declares. [default: the devices found]"
        ),
    ] = Field(None, description="the path of a cluster profile")
    dtype: Annotated[Literal["bfloat16", "float32"], Help("Number format of the networks.")] = Field(
        "bfloat16", description="bfloat16 or float32"
    )

    sp_size: Annotated[int, Help("GPUs for one clip in the published program; not used.")] = Field(
        1, ge=1, description="an integer of at least 1"
    )
    fp8: Annotated[bool, Help("The published 8-bit float weights, which change pixels.")] = Field(
        False, description="true or false: the published 8-bit floats, which change pixels"
    )
    qint8: Annotated[bool, Help("8-bit integer weights: half the memory, and other pixels.")] = Field(
        False, description="true or false: 8-bit integer weights, which change pixels"
    )
    weights: Annotated[
        Weights,
        Help(
            "Form of the transformer's weights; streamed keeps them in host memory; auto takes streamed, and else qint8 and"
            " other pixels, where devices are too small else."
        ),
    ] = Field(Weights.DTYPE, strict=False, description=f"one of {', '.join(Weights)}")
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
    kernels: Annotated[
        KernelMode,
        Help(
            "Fused kernels of the transformer: auto takes those that round as plain torch does, fused also those that"
            " round less often, and other pixels, eager none."
        ),
    ] = Field(KernelMode.AUTO, strict=False, description=f"one of {', '.join(KernelMode)}")
    memory_gb: Annotated[float | None, Help("GB of its device that a worker may use. [default: all that is free]")] = (
        Field(None, gt=0, allow_inf_nan=False, description="a positive number of GB that a worker may use")
    )

    elastic: Annotated[
        bool,
        Help("Nodes are added for the job: ask Ray's autoscaler for its workers, and let idle nodes go at its end."),
    ] = Field(
        False,
        description="true or false, true only beside workers and device, or a cluster profile: nodes are added for the job",
    )

    prices: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None,
        Help("Price of a device an hour, by class of the cluster profile, instead of the profile's."),
    ] = Field(
        None, description="a price of at least 0 an hour, in the profile's currency, for classes of the cluster profile"
    )

    retries: Annotated[
        int | None, Help("Further attempts for a clip that failed, or whose workers died. [default: 2]")
    ] = Field(None, ge=0, le=1000, description="an integer from 0 to 1000")
    speculation: Annotated[
        bool, Help("Let idle devices run copies of the last denoises; turn it off where device time is billed.")
    ] = Field(True, description="true or false: devices that would be idle run copies of the last denoises")
    pairing: Annotated[
        bool,
        Help("Let an idle device compute half of each step of the last denoises, with one like it on its machine."),
    ] = Field(
        True, description="true or false: devices that would be idle share the last denoises with others like them"
    )
    latency: Annotated[
        bool,
        Help("Give each clip two like devices of a machine before the next one begins: every clip ends sooner."),
    ] = Field(
        False, description="true or false: each clip gets two like devices of a machine before the next one begins"
    )
    checkpoint_s: Annotated[
        float, Help("Seconds between two checkpoints of a denoise: the most that a lost worker costs.")
    ] = Field(CHECKPOINT_S, ge=0, allow_inf_nan=False, description="a number of seconds of at least 0")
    keep_latents: Annotated[
        bool | None,
        Help("Keep the latents of finished clips, or remove them. [default: as its last run did, at first off]"),
    ] = Field(None, description="true or false: the latents of finished clips stay in the output folder")
    keep_seeds: Annotated[
        bool | None,
        Help("Take the seeds of the clips that the output folder has, or derive all. [default: as its last run did]"),
    ] = Field(None, description="true or false: clips keep the seeds that they have in the output folder")
    priority: Annotated[int, Help("Share of a Ray cluster beside other jobs, and order in a Slurm queue.")] = Field(
        0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description=f"an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}; 0 is usual, less gives way to other jobs",
    )
    environment: Annotated[
        dict[Annotated[str, AfterValidator(_check_variable)], str],
        Help("Environment variables of the driver and of every worker."),
    ] = Field(default_factory=dict, description="text, in quotes where it looks like a number or like true or false")

    @classmethod
    def from_yaml(cls, path: PathOrUri, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a job file; `overrides`, by field, are options of the command line (None: not given).

        Paths in the file are relative to its folder. Raises InputError with every problem.
        """
        return cls._load(
            merge(read_yaml(to_location(path), cls.sections), read_options(overrides or {})), source=str(path)
        )

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """A job of options alone, by field (None: not given). Raises InputError with every problem."""
        return cls._load(read_options(options), source=COMMAND_LINE)

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of a clip whose row overrides none."""
        return SamplingParams(**{name: getattr(self, name) for name in PARAM_FIELDS})

    @property
    def weight_format(self) -> WeightFormat:
        """Storage of the transformer's weights; of `auto`, the dtype until `ovi_ray.preparation` has decided."""
        if self.fp8:
            return WeightFormat.FP8
        if self.qint8:
            return WeightFormat.QINT8
        return WeightFormat.DTYPE if self.weights in (Weights.AUTO, Weights.STREAMED) else WeightFormat(self.weights)

    @property
    def numerics(self) -> str:
        """Everything about the computation that changes pixels, such as "bfloat16+qint8": part of a clip's id and row."""
        parts = [str(self.dtype)]
        if self.weight_format is not WeightFormat.DTYPE:
            parts.append(str(self.weight_format))
        if self.allow_inexact or self.attention in INEXACT:
            parts.append("inexact_attention")
        if self.compile:
            parts.append("compiled")
        if self.kernels is KernelMode.FUSED:
            parts.append("fused")
        return "+".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Settings of the job that have no effect, for the user to know."""
        notes = []
        if self.sp_size != 1:
            notes.append(f"sp_size {self.sp_size} is not used: a batch is fastest with one clip on each GPU")
        if self.allow_inexact and self.attention is not AttentionBackend.AUTO:
            notes.append(f"allow_inexact is not used: it is for attention auto, and {self.attention} is asked for")
        for name in ("workers", "memory_gb"):
            if self.cluster is not None and (value := getattr(self, name)) is not None:
                notes.append(f"{name} {value} is not used: the cluster profile declares its own")
        return tuple(notes)

    @classmethod
    def _load(cls, given: Mapping[str, Given], *, source: str) -> Self:
        checks = cls.path_checks()
        if "mode" in given and given["mode"].value == Mode.T2V:
            checks["image_path"] = _unchecked
        return load(cls, given, source=source, checks=checks, ignored=cls.ignored_keys, sections=cls.sections)

    @classmethod
    def path_checks(cls) -> dict[str, PathCheck]:
        """The fields that are paths, each with its check."""
        return {
            "prompts": prompt_list_file,
            "cluster": readable_file("a cluster profile that can be read"),
            "image_path": usable_image,
            "ckpt_dir": _unchecked,
        }

    @field_validator(*PARAM_FIELDS, "model_name", mode="before")
    @classmethod
    def _check_param(cls, value: object, info: ValidationInfo) -> object:
        return parse_param(str(info.field_name), value)

    @field_validator("quality")
    @classmethod
    def _check_quality(cls, value: Quality, info: ValidationInfo) -> Quality:
        if value is not Quality.EXACT and not info.data.get("allow_lossy", True):
            raise ValueError(f"{Quality.EXACT}: {NOT_LOSSY}")
        return value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _check_delimiter(cls, value: object) -> object:
        character = DELIMITERS.get(value.lower(), value.replace(r"\t", "\t")) if isinstance(value, str) else value
        if value is not None and (not isinstance(character, str) or len(character) != 1 or character in '"\r\n '):
            raise PydanticCustomError("delimiter", "not a delimiter")  # the message shown is the field's description
        return character

    @field_validator("delimiter", "sheet")
    @classmethod
    def _check_format(cls, value: str | None, info: ValidationInfo) -> str | None:
        """An option on the format of the list belongs to a list of that format."""
        if value is None or not {"prompts", "text_prompt"} <= info.data.keys():
            return value
        prompts, name = info.data["prompts"], str(info.field_name)
        suffixes = OPTION_SUFFIXES[name]
        if prompts is None or prompts.suffix.lower() not in suffixes:
            source = "a prompt" if prompts is None else prompts.name
            raise ValueError(f"no {name} beside {source}: it is for lists in {' or '.join(suffixes)}")
        return value

    @field_validator("sweep", mode="before")
    @classmethod
    def _check_sweep(cls, value: object) -> object:
        return parse_sweep(value)

    @field_validator("prices")
    @classmethod
    def _check_prices(cls, value: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if value and info.data.get("cluster", "refused already") is None:
            raise ValueError(
                "a cluster profile as resources.cluster beside them: prices are those of its device classes"
            )
        return value

    @field_validator("elastic")
    @classmethod
    def _check_elastic(cls, value: bool, info: ValidationInfo) -> bool:
        is_counted = info.data.get("workers") is not None and info.data.get("device") is not DeviceKind.AUTO
        if value and not is_counted and info.data.get("cluster") is None:
            raise ValueError(
                "workers, the most that the job asks for, and device, gpu or cpu, beside it, or a cluster profile:"
                " what is there at the start does not tell what may be added"
            )
        return value

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

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: Weights, info: ValidationInfo) -> Weights:
        flag = next((name for name in ("fp8", "qint8") if info.data.get(name)), None)
        if flag is not None and value not in (Weights.DTYPE, flag):
            raise ValueError(f"{flag} beside {flag}: true, or no {flag}")
        if value is Weights.FP8 and info.data.get("model_name") != FP8_MODEL:
            raise ValueError(
                f"another form: only model {FP8_MODEL} is published in fp8; qint8 stores any model in 8 bits"
            )
        return value

    @field_validator("kernels")
    @classmethod
    def _check_kernels(cls, value: KernelMode, info: ValidationInfo) -> KernelMode:
        if value is KernelMode.FUSED and info.data.get("compile"):
            raise ValueError(f"{KernelMode.AUTO} or {KernelMode.EAGER} beside compile, which fuses in its own way")
        return value

    @field_validator("latency")
    @classmethod
    def _check_latency(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("pairing") is False:
            raise ValueError("false beside pairing: false, or pairing: true: each clip is to have two devices")
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
            raise ValueError(
                f"a prompt list ({LIST_SUFFIXES}), or one prompt: --prompt TEXT, or prompt: TEXT in a job file"
            )
        if prompts is not None and text_prompt is not None:
            raise ValueError("either a prompt list or a prompt, not both")
        return prompts


class PortableJob(BatchSpec):
    """A job that may run on another machine: its checkpoint and output folders are not looked for on this one."""

    ignored_keys: ClassVar[tuple[str, ...]] = ()

    output_dir: FilePath | None = Field(None, description="the path of a folder to write to")

    @classmethod
    def path_checks(cls) -> dict[str, PathCheck]:
        """As in BatchSpec; of the output folder, only the form of the path is checked."""
        return super().path_checks() | {"output_dir": _unchecked}


class JobSpec(BatchSpec):
    """Everything the user asked for: a batch with a checkpoint folder that exists and an output folder.

    `from_options` and `from_yaml` report problems as InputError and check paths, without creating anything; the constructor
    raises pydantic's ValidationError and checks no path.
    """

    ignored_keys: ClassVar[tuple[str, ...]] = ()

    ckpt_dir: Annotated[FilePath, Help("Checkpoint folder.")] = Field(description="the path of a checkpoint folder")
    output_dir: Annotated[FilePath, Help("Folder for videos, results and report.")] = Field(
        description="the path of a folder to write to"
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """See BatchSpec; a job that is submitted gets the address of its cluster there."""
        if self.elastic and self.address is None:
            return (*super().notes, "elastic is not used: without an address, Ray is started on this machine alone")
        return super().notes

    @classmethod
    def path_checks(cls) -> dict[str, PathCheck]:
        """As in BatchSpec, with the folders."""
        return super().path_checks() | {"ckpt_dir": existing_folder, "output_dir": writable_folder}


def _unchecked(path: Location) -> None:
    """The check of a path that need not exist."""
