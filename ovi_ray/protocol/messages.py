"""What the driver tells a worker to do and what the worker tells back. Pure: these travel through Ray."""

from dataclasses import dataclass, field
from enum import StrEnum

from ovi.config import Component, SamplingParams
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.scheduling.task import FailureKind


@dataclass(kw_only=True, slots=True, frozen=True)
class EncodeTexts:
    """Encode a batch of texts; gives one embedding each."""

    texts: tuple[str, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class EncodeFirstFrame:
    """Encode an image; gives its latent."""

    image_path: str
    height: int
    """Pixels that the image is fitted to."""
    width: int
    image_sha256: str = ""
    """Of the file when the job was checked, which its clips' ids say; empty for any."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Denoise:
    """Denoise a clip from its three embeddings and, where it has one, its first frame's latent; gives its latents."""

    params: SamplingParams
    clip_id: str = ""
    latents_path: str = ""
    """A file to keep the latents in, and to take them from where they are there already; empty for none."""
    checkpoint_path: str = ""
    """A file to keep the half-denoised clip in, and to continue from; empty for none."""
    checkpoint_s: float = 60.0
    """Seconds between two of these."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Decode:
    """Decode a clip's latents into a video file; gives nothing."""

    clip_id: str = ""
    latents_path: str = ""
    """The file that the latents are kept in, for when they are not given."""
    video_path: str
    poster_path: str
    """A still of the middle of the clip, for reports."""
    num_frames: int
    title: str
    parameters: dict[str, object]
    """Kept in the file's metadata."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Preload:
    """Make the components resident and no more."""


Work = EncodeTexts | EncodeFirstFrame | Denoise | Decode | Preload


@dataclass(kw_only=True, slots=True, frozen=True)
class Order:
    """A task as a worker gets it."""

    number: int
    """Tells this order from every other of the job, so that a late stop stops nothing else."""
    work: Work
    model_name: str
    """Empty when any model will do."""
    components: frozenset[Component]
    """Resident during the task; all others are unloaded first."""


class Cause(StrEnum):
    """What made a task fail that is neither the clip's fault nor the worker's."""

    TASK = "task"
    """Nothing else: the failure's kind says it all."""
    STORAGE = "storage"
    """The output folder is full or out of reach."""
    LATENTS = "latents"
    """The clip's latents are gone or broken: they are made again."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Failure:
    """Why a task failed, as data: an exception of a library need not survive the journey."""

    kind: FailureKind
    message: str
    traceback: str = ""
    cause: Cause = Cause.TASK


@dataclass(kw_only=True, slots=True, frozen=True)
class Report:
    """How a task went."""

    seconds: float
    """Of the work, loads not included."""
    load_seconds: float = 0.0
    """Of unloading and loading components before it."""
    failure: Failure | None = None
    facts: dict[str, object] = field(default_factory=dict)
    """What a clip's row says of the task: attention_backend, video_bytes, ..."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    storage_error: str = ""
    """Why something that the task gives could not be kept, although the task went well."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Activity:
    """What a worker is doing now, for display."""

    done: int
    total: int


@dataclass(kw_only=True, slots=True, frozen=True)
class WorkerInfo:
    """A worker that is ready."""

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
    """GB that weights and activations may use together."""
    component_gb: dict[Component, float]
    """GB of each component's weights once loaded."""
    declared: DeviceProfile | None = None
    """What the cluster profile says of the device: its class, stages and speeds."""
