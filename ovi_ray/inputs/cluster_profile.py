"""Cluster profiles: which devices there are and how fast they are assumed to be, from YAML. Pure.

profile = read_profile("cluster/profiles/b.yaml")
profile.check(workload.kinds)                 # raises InputError when something fits nowhere
simulate(workload, virtual_devices(profile))
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ovi.stages import Stage
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.scheduling.device_profile import (
    ALL_STAGES,
    BF16_SIZES,
    INT8_SIZES,
    ActivationSizes,
    ComponentSizes,
    DeviceProfile,
    StageRates,
)
from ovi_ray.scheduling.workload import ClipKind
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import PathOrUri, to_location

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SIZES = {"bf16": BF16_SIZES, "int8": INT8_SIZES}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tflops(_Strict):
    """TFLOP/s achieved in each stage."""

    encode_text: Positive
    encode_first_frame: Positive
    denoise: Positive
    decode: Positive


class Sizes(_Strict):
    """GB of each component's weights, for other than the published models."""

    text_encoder: NotNegative
    transformer: NotNegative
    video_vae: NotNegative
    audio_vae: NotNegative
    vocoder: NotNegative


class Activations(_Strict):
    """GB beside the weights."""

    encode_text: NotNegative = ActivationSizes().encode_text
    denoise_per_thousand_tokens: NotNegative = ActivationSizes().denoise_per_thousand_tokens
    vae_per_thousand_tokens: NotNegative = ActivationSizes().vae_per_thousand_tokens


class Devices(_Strict):
    """Devices of one class."""

    count: Annotated[int, Field(ge=1, le=100_000)]
    vendor: Literal["nvidia", "amd", "cpu"]
    architecture: str = ""
    memory_gb: Positive
    """Usable GB (1e9 bytes)."""
    weights: Literal["bf16", "int8"] = "bf16"
    sizes: Sizes | None = None
    """Instead of the published models' at `weights`."""
    stages: tuple[Stage, ...] = tuple(Stage)
    tflops: Tflops
    activations: Activations = Activations()
    load_gb_per_s: Positive
    unload_s: NotNegative = 0.3
    task_overhead_s: NotNegative = 0.05
    speed: Positive = 1.0
    price_per_hour: NotNegative | None = None
    """Of one device, in the profile's currency."""

    def profile(self, name: str) -> DeviceProfile:
        """The class as the scheduler knows it."""
        sizes = _SIZES[self.weights] if self.sizes is None else ComponentSizes(**self.sizes.model_dump())
        return DeviceProfile(
            name=name,
            vendor=self.vendor,
            architecture=self.architecture,
            memory_gb=self.memory_gb,
            stages=ALL_STAGES & frozenset(self.stages),
            sizes=sizes,
            activations=ActivationSizes(**self.activations.model_dump()),
            rates=StageRates(**self.tflops.model_dump()),
            load_gb_per_s=self.load_gb_per_s,
            unload_s=self.unload_s,
            task_overhead_s=self.task_overhead_s,
            speed=self.speed,
        )


class ClusterProfile(_Strict):
    """A cluster: its devices by class."""

    name: str
    description: str = ""
    currency: str = "USD"
    devices: Annotated[dict[str, Devices], Field(min_length=1)]

    @property
    def device_profiles(self) -> dict[str, DeviceProfile]:
        """Each class as the scheduler knows it."""
        return {name: devices.profile(name) for name, devices in self.devices.items()}

    def check(self, kinds: Iterable[ClipKind], *, source: str = "cluster profile") -> None:
        """Raise InputError for every stage of every kind that fits on none of the devices, saying why not on each."""
        profiles = self.device_profiles.values()
        problems = [
            _fits_nowhere(stage, kind, profiles, source)
            for kind in kinds
            for stage in Stage
            if (stage is not Stage.ENCODE_FIRST_FRAME or kind.has_image)
            and not any(profile.fits(stage, kind) for profile in profiles)
        ]
        if problems:
            raise InputError(problems)


def _fits_nowhere(stage: Stage, kind: ClipKind, profiles: Iterable[DeviceProfile], source: str) -> Problem:
    elsewhere = [
        f"{profile.name} can run {', '.join(s for s in Stage if profile.fits(s, kind)) or 'nothing of it'}"
        for profile in profiles
    ]
    why = [profile.why_not(stage, kind) for profile in profiles]
    return Problem(
        file=source,
        field=f"{stage} of {kind}",
        value=f"possible nowhere ({'; '.join(why)})",
        expected=f"a device that it fits on; as it is, {'; '.join(elsewhere)}",
    )


def read_profile(path: PathOrUri) -> ClusterProfile:
    """The profile in a YAML file. Raises InputError with everything that is wrong with it."""
    try:
        raw = yaml.safe_load(to_location(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a URI that cannot be used
        found = plain_reason(error) if isinstance(error, StorageUnavailable) else _one_line(error)
        problem = Problem(file=str(path), value=found, expected="a readable YAML file of a cluster profile")
        raise InputError([problem]) from error
    return parse_profile(raw, source=str(path))


def parse_profile(raw: object, *, source: str = "cluster profile") -> ClusterProfile:
    """The profile in a mapping as YAML gives it. Raises InputError with everything that is wrong with it."""
    try:
        return ClusterProfile.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise InputError([_problem(detail, source) for detail in details]) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _problem(detail: Any, source: str) -> Problem:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return Problem(file=source, field=place, value="missing", expected=_expected(detail, place))
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"])
        hint = did_you_mean(detail["loc"][-1], known)
        return Problem(file=source, field=place, value="an unknown key", expected=f"one of {', '.join(known)}{hint}")
    return Problem(file=source, field=place or None, value=repr(detail["input"]), expected=_expected(detail, place))


def _expected(detail: Any, place: str) -> str:
    context = detail.get("ctx", {})
    if "gt" in context:
        return f"a number greater than {context['gt']:g}"
    if "ge" in context:
        return f"a number of at least {context['ge']:g}"
    if detail["type"] == "missing":
        return "a value"
    return str(context.get("expected", detail["msg"]))


_PARTS: dict[str, type[BaseModel]] = {"tflops": Tflops, "sizes": Sizes, "activations": Activations}


def _known_keys(place: tuple[Any, ...]) -> list[str]:
    """The keys that are possible where `place` is."""
    if len(place) == 1:
        return list(ClusterProfile.model_fields)
    return list(_PARTS.get(str(place[-2]), Devices).model_fields)
