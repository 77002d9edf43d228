"""Targets: where a job can be submitted to. A kind of target is a class with the protocol `Target` and an entry in `KINDS`.

A target is named by an entry of `targets.yaml`, by its kind where that needs no address, or by a Ray cluster's address:

    # ~/.config/ovi-ray/targets.yaml
    rack:
      kind: ray
      address: http://head.example:8265
    alps:
      kind: slurm
      account: video
      partitions:
        nvidia: {partition: gpu, gpus_per_node: 8}
    farm:
      kind: kubernetes
      image: registry.example/ovi-ray:0.1.0-cuda
      volumes: [{claim: shared, mount_path: /shared}]
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import platformdirs
from pydantic import BaseModel

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.inputs.job_file import Given, load, option_name, read_options, read_yaml
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.inputs.yaml_files import read_yaml_file
from ovi_ray.storage.paths import to_location
from ovi_ray.submission.bundle import Bundle
from ovi_ray.submission.kubernetes import KubernetesTarget
from ovi_ray.submission.kubernetes_manifest import KubernetesConfig
from ovi_ray.submission.ray_jobs import RayConfig, RayTarget
from ovi_ray.submission.slurm import SlurmConfig, SlurmTarget
from ovi_ray.submission.states import JobStatus

_ADDRESS = re.compile(r"(?i:https?)://\S+|\[[^][\s]+\]:[0-9]+|[\w.-]+:[0-9]+")


class Target(Protocol):
    """A cluster that runs jobs. All methods raise ClusterError where it cannot be used, and InputError for what the user gave.

    A job is named by its id (`Bundle.job_id`); one that is not known there raises InputError.
    """

    def check(self, bundle: Bundle) -> list[str]:
        """Check what can be checked from here. Notes for the user; problems are raised."""

    def submit(self, bundle: Bundle) -> JobStatus:
        """Start the job, or return the state of the same one if it is there already and has not failed or been stopped."""

    def script(self, bundle: Bundle) -> str:
        """The text that starts the job there."""

    def jobs(self) -> list[JobStatus]:
        """The jobs of ovi-ray there, the oldest first."""

    def status(self, job_id: str) -> JobStatus:
        """The state of a job."""

    def logs(self, job_id: str, *, follow: bool) -> Iterator[bytes]:
        """The output of the driver, in pieces; with `follow` until the job ends."""

    def stop(self, job_id: str) -> JobStatus:
        """Ask a job to save what runs and to end; returns without waiting for that."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Kind:
    """A kind of target."""

    config: type[BaseModel]
    """The keys of its entry in targets.yaml, beside `kind`."""
    open: Callable[[str, Any], Target]
    """The target of a name and a configuration."""
    needs_address: bool


KINDS: Mapping[str, Kind] = {
    "ray": Kind(config=RayConfig, open=RayTarget, needs_address=True),
    "slurm": Kind(config=SlurmConfig, open=SlurmTarget, needs_address=False),
    "kubernetes": Kind(config=KubernetesConfig, open=KubernetesTarget, needs_address=False),
}


PLACES = ("namespace",)
"""Options of a submission without which its job is not found again."""
_ENTRIES_EXPECTED = "names of targets, each with keys and values, such as rack: {kind: ray, address: http://head:8265}"


def targets_file() -> Path:
    """The user's targets.yaml: in $XDG_CONFIG_HOME/ovi-ray, or ~/.config/ovi-ray, on Linux."""
    return Path(platformdirs.user_config_path("ovi-ray", appauthor=False)) / "targets.yaml"


def find_target(
    name: str, options: Mapping[str, Any] | None = None, *, file: Path | None = None, given_by: str = "--to"
) -> Target:
    """The target that a name or address stands for. Raises InputError.

    `options`, by key of the kind's configuration (None: not given), go before those of targets.yaml. `given_by` is what
    named the target, for messages.
    """
    given = read_options(options or {})
    entries = _entries(file or targets_file())
    if name in entries:
        return _named(name, entries[name], given)
    if name in KINDS and not KINDS[name].needs_address:
        return _open(name, name, {}, given, COMMAND_LINE)
    if _ADDRESS.fullmatch(name):
        address = replace(read_options({"address": name})["address"], label=given_by)
        return _open(name, "ray", {"address": address}, given, COMMAND_LINE)
    known = [*entries, *(kind for kind, declared in KINDS.items() if not declared.needs_address)]
    expected = (
        f"one of {', '.join(known)}, or the address of a Ray cluster's dashboard such as 10.0.0.1:8265"
        f"{did_you_mean(name, known)} (names are entries of {file or targets_file()})"
    )
    raise InputError([Problem(file=COMMAND_LINE, field=given_by, value=show(name), expected=expected)])


def target_names(file: Path | None = None) -> list[str]:
    """The names in targets.yaml. Raises InputError for a file that cannot be read."""
    return list(_entries(file or targets_file()))


def _entries(file: Path) -> dict[str, Given]:
    location = to_location(file)
    if not file.exists() or read_yaml_file(location).content is None:
        return {}
    return read_yaml(location, expected=_ENTRIES_EXPECTED)


def _named(name: str, entry: Given, options: Mapping[str, Given]) -> Target:
    kinds = f"one of {', '.join(KINDS)}"
    if not isinstance(entry.value, dict):
        raise InputError([entry.problem(f"keys and values, among them kind: {kinds}")])
    kind = entry.part("kind")
    if kind.value not in list(KINDS):  # which may be anything, and not hashable
        raise InputError([kind.problem(kinds, None if "kind" in entry.value else "missing")])
    keys = {str(key): entry.part(key) for key in entry.value if key != "kind" and entry.value[key] is not None}
    return _open(name, kind.value, keys, options, entry.file)


def _open(name: str, kind: str, keys: Mapping[str, Given], options: Mapping[str, Given], source: str) -> Target:
    """The target of an entry's keys with the options over them. Raises InputError, also for options of other kinds."""
    config = KINDS[kind].config
    if others := [key for key in options if key not in config.model_fields]:
        raise InputError(options[key].problem(_expected_kind(key, name, kind)) for key in others)
    return KINDS[kind].open(name, load(config, {**keys, **options}, source=source, checks={}))


def _expected_kind(key: str, name: str, kind: str) -> str:
    kinds = [other for other, declared in KINDS.items() if key in declared.config.model_fields]
    return f"no {option_name(key)} beside --to {name}, a target of kind {kind}: it is for {' and '.join(kinds)}"
