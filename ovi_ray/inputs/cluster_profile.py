"""Cluster profiles: the device classes of a cluster and their assumed speeds, from YAML.

profile = read_profile("cluster/profiles/b.yaml")
profile.check(workload.kinds)                 # raises InputError when a stage fits on no device class
simulate(workload, virtual_devices(profile))

The sections of a profile are derived from the dataclasses of `scheduling.device_profile`, which declare their fields.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ovi.quality import may_have_fp8_products
from ovi.stages import Stage, stages_of
from ovi_ray.errors import InputError, Problem, show
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.inputs.yaml_files import read_yaml_file
from ovi_ray.scheduling.device_profile import (
    ALL_STAGES,
    BF16_SIZES,
    INT8_SIZES,
    STREAMED_SIZES,
    ActivationSizes,
    ComponentSizes,
    DeviceProfile,
    StageRates,
)
from ovi_ray.scheduling.workload import ClipKind
from ovi_ray.storage.paths import PathOrUri, to_location

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SIZES = {"bf16": BF16_SIZES, "int8": INT8_SIZES, "streamed": STREAMED_SIZES}
_DEFAULTS = DeviceProfile(name="")
_KINDS = {
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "tuple": "a list",
    "float": "a number",
    "finite": "a finite number",
    "int": "a whole number",
    "string": "text",
    "too": "at least one entry",
}
"""Values that are expected, by the first word of the type of pydantic's error."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _section(declared: type, bound: Any, *, has_defaults: bool) -> type[_Section]:
    """A section with the fields of a dataclass of numbers; without defaults, every field must be given."""
    fields: dict[str, Any] = {
        field.name: (bound, field.default if has_defaults else ...) for field in dataclasses.fields(declared)
    }
    return create_model(declared.__name__, __base__=_Section, **fields)


Tflops = _section(StageRates, Positive, has_defaults=False)
"""TFLOP/s achieved in each stage."""
Sizes = _section(ComponentSizes, NotNegative, has_defaults=False)
"""GB of each component's weights."""
Activations = _section(ActivationSizes, NotNegative, has_defaults=True)
"""GB that each stage needs beside the weights."""


class DeviceClass(_Section):
    """The devices of one class. Fields with the name of one of `DeviceProfile` have its meaning and default."""

    count: Annotated[int, Field(ge=1, le=100_000)]
    """Number of devices."""
    vendor: Literal["nvidia", "amd", "cpu"]
    architecture: str = _DEFAULTS.architecture
    memory_gb: Positive
    """Usable GB (1e9 bytes)."""
    weights: Literal["bf16", "int8", "streamed"] = "bf16"
    """Published sizes of the weights on the device to assume; streamed: bf16, with the transformer's blocks in host memory."""
    sizes: Sizes | None = None  # type: ignore[valid-type]
    """Other sizes than the published ones, in GB."""
    stages: tuple[Stage, ...] = tuple(Stage)
    tflops: Tflops  # type: ignore[valid-type]
    activations: Activations = Activations()  # type: ignore[valid-type]
    load_gb_per_s: Positive
    unload_s: NotNegative = _DEFAULTS.unload_s
    task_overhead_s: NotNegative = _DEFAULTS.task_overhead_s
    speed: Positive = _DEFAULTS.speed
    price_per_hour: NotNegative | None = None
    """Price of one device, in the profile's currency."""

    def profile(self, name: str) -> DeviceProfile:
        """The class in the scheduler's terms."""
        return DeviceProfile(
            name=name,
            vendor=self.vendor,
            architecture=self.architecture,
            memory_gb=self.memory_gb,
            stages=ALL_STAGES & frozenset(self.stages),
            sizes=_SIZES[self.weights] if self.sizes is None else ComponentSizes(**dict(self.sizes)),
            activations=ActivationSizes(**dict(self.activations)),
            rates=StageRates(**dict(self.tflops)),
            load_gb_per_s=self.load_gb_per_s,
            unload_s=self.unload_s,
            task_overhead_s=self.task_overhead_s,
            speed=self.speed,
            has_fp8_products=self.weights != "int8" and may_have_fp8_products(self.architecture),
        )


class ClusterProfile(_Section):
    """A cluster: its devices by class."""

    name: str
    description: str = ""
    currency: str = "USD"
    devices: Annotated[dict[str, DeviceClass], Field(min_length=1)]
    """Device classes by name."""

    @property
    def device_profiles(self) -> dict[str, DeviceProfile]:
        """Each class in the scheduler's terms."""
        return {name: device_class.profile(name) for name, device_class in self.devices.items()}

    def priced(self, prices: Mapping[str, float] | None) -> Self:
        """The cluster with other prices for some of its classes. Raises InputError for a class that it does not have."""
        problems = [
            Problem(
                file=self.name,
                field=f"prices.{name}",
                value="no device class of the cluster profile",
                expected=f"one of {', '.join(self.devices)}{did_you_mean(name, self.devices)}",
            )
            for name in prices or {}
            if name not in self.devices
        ]
        if problems:
            raise InputError(problems)
        priced = {
            name: devices.model_copy(update={"price_per_hour": (prices or {}).get(name, devices.price_per_hour)})
            for name, devices in self.devices.items()
        }
        return self.model_copy(update={"devices": priced})

    def check(self, kinds: Iterable[ClipKind], *, source: str = "cluster profile") -> None:
        """Raise InputError for every stage of every kind of clip that fits on no device class, with the reason for each."""
        profiles = self.device_profiles.values()
        problems = [
            _fits_nowhere(stage, kind, profiles, source)
            for kind in kinds
            for stage in stages_of(has_image=kind.has_image)
            if not any(profile.fits(stage, kind) for profile in profiles)
        ]
        if problems:
            raise InputError(problems)


def _fits_nowhere(stage: Stage, kind: ClipKind, profiles: Iterable[DeviceProfile], source: str) -> Problem:
    possible = [
        f"{profile.name} can run {', '.join(s for s in Stage if profile.fits(s, kind)) or 'no stage'}"
        for profile in profiles
    ]
    why = [profile.why_not(stage, kind) for profile in profiles]
    return Problem(
        file=source,
        field=f"{stage} of {kind}",
        value=f"impossible on every device class ({'; '.join(why)})",
        expected=f"a device class that can run it; of these, {'; '.join(possible)}",
    )


def read_profile(path: PathOrUri) -> ClusterProfile:
    """Read a profile from a YAML file. Raises InputError with every problem."""
    try:
        location = to_location(path)
    except ValueError as error:  # a URI that cannot be used
        problem = Problem(file=str(path), value=str(error), expected="the path of a cluster profile")
        raise InputError([problem]) from error
    document = read_yaml_file(location)
    return parse_profile(document.content, source=str(path), line_of=document.line_of)


def parse_profile(
    raw: object, *, source: str = "cluster profile", line_of: Callable[[Sequence[object]], int | None] = lambda _: None
) -> ClusterProfile:
    """Validate a mapping as YAML gives it; `line_of` tells the line of a key. Raises InputError with every problem."""
    if not isinstance(raw, dict):
        expected = f"a cluster profile: a mapping with the keys {', '.join(ClusterProfile.model_fields)}"
        found = "nothing" if raw is None else "a list" if isinstance(raw, list) else show(raw)
        raise InputError([Problem(file=source, value=found, expected=expected)])
    try:
        return ClusterProfile.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise InputError([_problem(detail, source, line_of(detail["loc"])) for detail in details]) from error


def _problem(detail: Any, source: str, line: int | None) -> Problem:
    place = ".".join(str(part) for part in detail["loc"])
    found, expected = show(detail["input"]), _expected(detail)
    if detail["type"] == "missing":
        found, expected = "missing", "a value"
    elif detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"])
        found = "an unknown key"
        expected = f"one of {', '.join(known)}{did_you_mean(detail['loc'][-1], known)}"
    return Problem(file=source, line=line, field=place or None, value=found, expected=expected)


def _expected(detail: Any) -> str:
    context = detail.get("ctx", {})
    if "gt" in context:
        return f"a number greater than {context['gt']:g}"
    if "ge" in context:
        return f"a number of at least {context['ge']:g}"
    if "le" in context:
        return f"a number of at most {context['le']:g}"
    if "expected" in context:
        return str(context["expected"])
    kind = detail["type"].partition("_")[0]
    return _KINDS.get(kind, "another value")


def _known_keys(place: tuple[str | int, ...]) -> list[str]:
    """The keys of the section that `place` lies in: the cluster, devices.CLASS or devices.CLASS.SECTION."""
    if len(place) == 1:
        return list(ClusterProfile.model_fields)
    section = DeviceClass.model_fields.get(str(place[-2]))
    if section is None:  # the name of a device class
        return list(DeviceClass.model_fields)
    types = (section.annotation, *get_args(section.annotation))
    return next(list(t.model_fields) for t in types if isinstance(t, type) and issubclass(t, BaseModel))
