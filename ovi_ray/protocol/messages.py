"""Requests from the driver to a worker, and the worker's reports. All of them are pickled and travel through Ray."""

from dataclasses import dataclass, field
from enum import StrEnum

from ovi.config import Component, SamplingParams
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.task import FailureKind


@dataclass(kw_only=True, slots=True, frozen=True)
class EncodeTexts:
    """Encode a batch of texts. Output: one embedding per text, in order."""

    texts: tuple[str, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class EncodeFirstFrame:
    """Encode an image. Output: its latent."""

    image_path: str
    """Path or URI."""
    height: int
    """Pixels; the image is scaled and cropped to this size."""
    width: int
    image_sha256: str = ""
    """Hash of the file when the job was checked; the task fails for another file. Empty accepts any."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Denoise:
    """Denoise a clip. Inputs: three text embeddings and, for image-to-video, a first-frame latent. Output: its latents."""

    params: SamplingParams
    clip_id: str = ""
    latents_path: str = ""
    """File for the finished latents; if it exists already, the task returns its content. Empty writes none."""
    checkpoint_path: str = ""
    """File for the solver state of the unfinished clip; if it exists already, the task resumes from it. Empty writes none."""
    checkpoint_s: float = 60.0
    """Seconds between two checkpoints."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Assist:
    """Compute the negative passes of a denoise that another worker of the node runs. Inputs as for Denoise; no output data."""

    params: SamplingParams
    meeting: str = ""
    """Name of the folder in which the two workers meet, a secret of theirs; the executor gives it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decode:
    """Decode a clip's latents into a video file. No output data."""

    clip_id: str = ""
    latents_path: str = ""
    """File to read the latents from when they are not passed as an input."""
    video_path: str
    poster_path: str
    """A still from the middle of the clip, shown in the report."""
    num_frames: int
    title: str
    parameters: dict[str, object]
    """Stored in the video file's metadata."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Preload:
    """Load the requested components and do nothing else."""


Work = EncodeTexts | EncodeFirstFrame | Denoise | Assist | Decode | Preload


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskRequest:
    """One task as it is sent to a worker."""

    number: int
    """Unique within a run, so that a late stop message cannot stop a later task."""
    work: Work
    model_name: str
    """Empty when the task does not depend on the model."""
    components: frozenset[Component]
    """Resident during the task; all others are unloaded first."""


class FailureCause(StrEnum):
    """Tells failures of the environment from failures of the task itself."""

    TASK = "task"
    """The task itself; `Failure.kind` says more."""
    STORAGE = "storage"
    """The output folder cannot be used now, or the storage of an input is away as a whole (`Failure.input_path`)."""
    LATENTS = "latents"
    """The clip's latents are missing or corrupt and have to be computed again."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Failure:
    """Why a task failed, as plain data: exceptions of third-party libraries may not unpickle on the driver."""

    kind: FailureKind
    message: str
    traceback: str = ""
    cause: FailureCause = FailureCause.TASK
    ends_worker: bool = False
    """The worker's process can do nothing more on its device: it is to be replaced."""
    input_path: str = ""
    """Of a failure of STORAGE: the input whose storage is away; empty for the output folder."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaskReport:
    """The outcome of a task."""

    seconds: float
    """Time of the work itself on the device, without loading components and without a write that went on meanwhile."""
    load_seconds: float = 0.0
    """Time spent on unloading and loading components before the work."""
    failure: Failure | None = None
    writes: bool = False
    """The device is free, and the file is still being written: `Worker.written` returns the report of its end."""
    facts: dict[str, object] = field(default_factory=dict)
    """Measured columns of the clip's result row: attention_backend, video_bytes, ..."""
    notes: tuple[str, ...] = ()
    """Messages for the user."""
    storage_error: str = ""
    """Why an intermediate file could not be written although the task succeeded."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Activity:
    """Progress within the running task."""

    done: int
    """Denoising steps or video frames."""
    total: int
    memory_gb: float | None = None
    """GB that the worker holds now: on its device, or of the host's memory for a CPU."""
    attention_backend: str = ""
    """That the last denoise ran with; empty before it."""
    step_s: float = 0.0
    """Seconds of a step of the running denoise, measured at its first ones; 0 before that, and where steps differ."""
    quiet_s: float = 0.0
    """Seconds since the work of the task last went on by a step or some frames, or began; 0 while components are loaded."""
    longest_quiet_s: float = 0.0
    """The longest such time in this task so far; 0 before it first went on."""


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerInfo:
    """A started worker and its device."""

    node: str
    """Host name."""
    pid: int
    device: str
    """Such as "cpu" or "NVIDIA H200"."""
    vendor: str
    """nvidia, amd or cpu."""
    architecture: str
    """Such as sm90 or gfx942; empty for a CPU."""
    memory_gb: float
    """GB available for weights and activations together."""
    component_gb: dict[Component, float]
    """GB of each component's weights on the device once loaded."""
    streamed_gb: float = 0.0
    """GB of the transformer's weights that stay in host memory and pass through the device's buffers."""
    declared: DeviceProfile | None = None
    """The device's entry in the cluster profile, if the job has one."""
    node_id: str = ""
    """The id of its Ray node; empty outside Ray."""
    has_fp8_products: bool = False
    """It may compute in 8-bit floats where the quality of a clip asks for it."""
    shares_denoises: bool = False
    """It can compute a denoise together with another worker of its node."""
    log: str = ""
    """The file on its node to which its process writes errors; empty where that is none."""

    @property
    def log_place(self) -> str:
        """The file with its node, in words; empty where there is none."""
        return f"{self.log} on {self.node}" if self.log else ""
