"""The manifests of a job on Kubernetes: a RayJob of KubeRay's, and ConfigMaps that hold the job's files in pieces.

An init container of every pod unpacks the files into JOB_DIR, so the driver and the workers read them under one path.
"""

import base64
import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.job_spec import DeviceKind
from ovi_ray.printing import counted
from ovi_ray.storage.paths import Location
from ovi_ray.submission.bundle import Bundle
from ovi_ray.submission.kuberay import (
    API_VERSION,
    MAX_JOB_NAME_CHARS,
    MIN_GRACE_S,
    AuthOptions,
    HeadGroup,
    Metadata,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    WorkerGroup,
)
from ovi_ray.submission.templates import render_script

START_FILE = "start.sh"
MAX_BUNDLE_BYTES = 20_000_000  # of all pieces, which lie in the database of the cluster
STOP_WAIT_S = 60  # before Ray kills a driver that was asked to end
JOB_LABEL = "ovi-ray.io/job"
OUTPUT, RESTARTS, STOPPED = "ovi-ray.io/output", "ovi-ray.io/restarts", "ovi-ray.io/stopped"  # annotations
MANAGED_BY = {"app.kubernetes.io/managed-by": "ovi-ray"}
GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_JOB_DIR, _PIECES_DIR = "/ovi-ray/job", "/ovi-ray/pieces"
_PIECE_BYTES = 900_000  # a ConfigMap takes 1 MiB
_UNPACK = f"cat {_PIECES_DIR}/* > {_JOB_DIR}/bundle.zip && python -m zipfile -e {_JOB_DIR}/bundle.zip {_JOB_DIR}"
_ADDED_NAME_CHARS = 11  # of a bundle's id: a hyphen and the digest
_RESTART_CHARS = 4  # "-123"

# Kubernetes ends a pod by SIGTERM to its first process, a shell that passes nothing on. The brackets keep pkill from
# finding the hook's own command line.
HEAD_PRE_STOP = (
    "pkill -TERM -f '[o]vi_ray render'; while pgrep -f '[o]vi_ray render' >/dev/null; do sleep 1; done; sleep 3"
)
WORKER_PRE_STOP = "pkill -TERM -f '[r]ay start'; while pgrep -x raylet >/dev/null; do sleep 1; done"

_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
_IMAGE = r"^[\w.:@/-]+$"


class VolumeConfig(BaseModel):
    """A volume that every pod has."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mount_path: str = Field(pattern=r"^/.+", description="an absolute path")
    claim: str | None = Field(None, pattern=_NAME, description="the name of a PersistentVolumeClaim")
    host_path: str | None = Field(None, pattern=r"^/.+", description="an absolute path on each node")


class GroupConfig(BaseModel):
    """Equal worker pods."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: str | None = Field(None, pattern=_IMAGE, description="an image with ovi-ray, and a tag or digest")
    nodes: int | None = Field(None, ge=1, description="a number of pods of at least 1")
    gpus_per_node: int | None = Field(None, ge=0, description="a number of GPUs of at least 0")
    cpus_per_node: int = Field(4, ge=1, description="a number of CPUs of at least 1")
    memory_gb: int | None = Field(None, ge=1, description="GB of memory of at least 1")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of nodes, each with its value")
    tolerations: tuple[str, ...] = Field((), strict=False, description="keys of taints that the pods tolerate")


class KubernetesConfig(GroupConfig):
    """The entry of a Kubernetes cluster in targets.yaml."""

    groups: dict[str, GroupConfig] = Field(
        default_factory=dict, description="nvidia or amd, each with image, nodes, gpus_per_node, ..."
    )
    context: str | None = Field(None, pattern=r"\S", description="a context of the kubeconfig file")
    namespace: str | None = Field(None, pattern=_NAME, description="a namespace")
    queue: str | None = Field(None, pattern=_NAME, description="the name of a LocalQueue of Kueue's")
    volumes: tuple[VolumeConfig, ...] = Field(
        (), strict=False, description="volumes, each with mount_path, and claim or host_path"
    )
    secrets: tuple[str, ...] = Field((), strict=False, description="names of Secrets that hold environment variables")
    run_as_user: int | None = Field(None, ge=0, description="a numeric user id; by default that of the image")
    head_cpus: int = Field(2, ge=1, description="a number of CPUs of at least 1")
    head_memory_gb: int = Field(8, ge=1, description="GB of memory of at least 1")
    retries: int = Field(3, ge=0, description="a number of further clusters of at least 0")
    grace_s: int = Field(
        120, ge=MIN_GRACE_S, description=f"seconds in which a pod that must end saves; at least {MIN_GRACE_S}"
    )
    keep_s: int = Field(600, ge=0, description="seconds that the cluster of an ended job stays; at least 0")
    ray_version: str = Field(
        default_factory=lambda: version("ray"),
        pattern=r"^\d+\.\d+\.\d+$",
        description="the version of Ray in the images, such as 2.60.0",
    )
    scales_from_zero: bool = Field(
        False, description="true or false: the cluster adds GPU nodes when pods wait for them"
    )


@dataclass(kw_only=True, slots=True, frozen=True)
class Group:
    """The worker pods of one kind, as a job needs them."""

    name: str
    vendor: str
    """nvidia, amd, or "" for a group without GPUs."""
    pods: int
    gpus: int
    """Of each pod."""
    config: GroupConfig
    image: str

    def __str__(self) -> str:
        pods = counted(self.pods, "pod")
        return f"{pods} with {counted(self.gpus, f'{self.vendor} GPU')}" if self.gpus else pods


@dataclass(kw_only=True, slots=True, frozen=True)
class Manifests:
    """Objects of a job in the cluster."""

    job: dict[str, Any]
    """The RayJob."""
    files: tuple[dict[str, Any], ...]
    """The ConfigMaps. They must exist before its pods start."""
    groups: tuple[Group, ...]

    def text(self) -> str:
        """Everything, as `kubectl apply -f -` reads it."""
        return yaml.safe_dump_all([*self.files, self.job], sort_keys=False, allow_unicode=True, width=120)


def manifests_of(bundle: Bundle, config: KubernetesConfig, *, target: str, restarts: int = 0) -> Manifests:
    """The manifests of a job that was started `restarts` times before. Raises InputError with every problem."""
    groups = _groups(bundle, config, target)
    name = ray_job_name(bundle.job_id, restarts)
    files = config_maps(bundle, name)
    pods = _Pods(config=config, piece_names=[piece["metadata"]["name"] for piece in files])
    spec = RayJobSpec(
        entrypoint=f"sh {_JOB_DIR}/{START_FILE}",
        backoff_limit=config.retries,
        shutdown_after_job_finishes=True,
        ttl_seconds_after_finished=config.keep_s,
        runtime_env_yaml=f"env_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: '{STOP_WAIT_S}'\n",
        ray_cluster_spec=RayClusterSpec(
            ray_version=config.ray_version,
            auth_options=AuthOptions(mode="token"),
            head_group_spec=HeadGroup(ray_start_params={"num-cpus": "0"}, template=pods.head(groups[0].image)),
            worker_group_specs=[_worker_group(group, pods) for group in groups],
        ),
    )
    labels = {**MANAGED_BY, JOB_LABEL: bundle.job_id, **({QUEUE_LABEL: config.queue} if config.queue else {})}
    annotations = {OUTPUT: bundle.output_dir, RESTARTS: str(restarts)}
    job = RayJob(
        api_version=API_VERSION,
        kind="RayJob",
        metadata=Metadata(name=name, namespace=config.namespace, labels=labels, annotations=annotations),
        spec=spec,
    )
    return Manifests(
        job=job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"spec": {"suspend"}}),
        files=files,
        groups=groups,
    )


def ray_job_name(job_id: str, restarts: int) -> str:
    """The name of the RayJob: the job's id, which is shortened where the operator takes no name as long, and a number."""
    most = MAX_JOB_NAME_CHARS - _RESTART_CHARS
    name = job_id if job_id[0].isalpha() else f"job-{job_id}"
    if len(name) > most:
        name = name[: most - _ADDED_NAME_CHARS].rstrip("-") + name[-_ADDED_NAME_CHARS:]
    return name if restarts == 0 else f"{name}-{restarts + 1}"


# -- groups ----------------------------------------------------------------------------------------------------------------


def _groups(bundle: Bundle, config: KubernetesConfig, target: str) -> tuple[Group, ...]:
    """The groups of a job. Raises InputError."""
    wanted = bundle.devices_by_vendor()
    asked: dict[str, GroupConfig] = config.groups or {next(iter(wanted), ""): config}
    problems = [*_volume_problems(bundle, config, target)]

    def problem(key: str, value: str, expected: str) -> None:
        problems.append(Problem(file=f"target {target}", field=key, value=value, expected=expected))

    if unknown := [name for name in config.groups if name not in GPU_RESOURCES]:
        problem("groups", ", ".join(unknown), " and ".join(GPU_RESOURCES))
    for name in config.model_fields_set & GroupConfig.model_fields.keys() - {"image"} if config.groups else ():
        problem(name, repr(getattr(config, name)), "none beside groups: each of them has its own")
    if lacking := [vendor for vendor in wanted if vendor not in asked]:
        problem("groups", ", ".join(asked), f"a group for {' and '.join(lacking)} too, as in the job's cluster profile")
    groups = []
    for vendor, group in asked.items():
        if wanted and vendor not in wanted:
            continue
        image = group.image or config.image
        if image is None:
            where = f"groups.{vendor}.image" if config.groups else "image"
            problem(where, "missing", "an image with ovi-ray (cluster/containers), and a tag")
        elif ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
            problem("image", repr(image), "a tag other than latest, or a digest, so that all pods run the same")
        count = wanted.get(vendor) if wanted else (bundle.job.workers if len(asked) == 1 else None)
        groups.append(_group(bundle, vendor, group, count, image or ""))
        if bundle.job.device is DeviceKind.GPU and not groups[-1].gpus:
            problem("gpus_per_node", "0", "at least 1 for a job on GPUs")
    if problems:
        raise InputError(problems)
    return tuple(groups)


def _group(bundle: Bundle, vendor: str, config: GroupConfig, count: int | None, image: str) -> Group:
    on_cpus = bundle.job.device is DeviceKind.CPU
    gpus = 0 if on_cpus else 1 if config.gpus_per_node is None else config.gpus_per_node
    per_pod = gpus or config.cpus_per_node
    vendor = (vendor or "nvidia") if gpus else ""
    return Group(
        name=vendor or "cpu",
        vendor=vendor,
        pods=config.nodes or (math.ceil(count / per_pod) if count else 1),
        gpus=gpus,
        config=config,
        image=image,
    )


def _worker_group(group: Group, pods: "_Pods") -> WorkerGroup:
    return WorkerGroup(
        group_name=group.name,
        replicas=group.pods,
        min_replicas=group.pods,
        max_replicas=group.pods,
        labels={"vendor": group.vendor} if group.vendor else None,
        template=pods.worker(group),
    )


def _volume_problems(bundle: Bundle, config: KubernetesConfig, target: str) -> list[Problem]:
    """A volume without a source, and a folder of the job that is on none: it would end with its pod."""
    problems = [
        Problem(
            file=f"target {target}",
            field="volumes",
            value=f"{volume.mount_path} with {'both' if volume.claim else 'neither'}",
            expected="either claim or host_path for each",
        )
        for volume in config.volumes
        if (volume.claim is None) == (volume.host_path is None)
    ]
    mounts = [volume.mount_path.rstrip("/") for volume in config.volumes]
    for field, path in (("output_dir", bundle.job.output_dir), ("ckpt_dir", bundle.job.ckpt_dir)):
        if path is not None and path.is_local and not any(_is_in(path, mount) for mount in mounts):
            there = f"a folder under {' or '.join(mounts)}" if mounts else "volumes in the target's entry"
            problems.append(
                Problem(
                    file="the job",
                    field=field,
                    value=f"{str(path.absolute())!r}, on no volume of target {target}, so that it would end with its pod",
                    expected=f"{there}, or a URI such as s3://bucket/{field.removesuffix('_dir')}",
                )
            )
    return problems


def _is_in(path: Location, mount: str) -> bool:
    return f"{path.absolute()}/".startswith(f"{mount}/")


# -- files -----------------------------------------------------------------------------------------------------------------


def config_maps(bundle: Bundle, name: str) -> tuple[dict[str, Any], ...]:
    """The files of a job, packed and cut into pieces; `name` is that of its RayJob. Raises InputError for too much."""
    script = render_script(
        "kubernetes_job.sh.j2", version=bundle.version, job_id=bundle.job_id, options=bundle.render_options
    )
    content = bundle.archive({START_FILE: script.encode()}, max_bytes=MAX_BUNDLE_BYTES)
    pieces = [content[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES)]
    return tuple(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{name}-files-{number}", "labels": {**MANAGED_BY, JOB_LABEL: bundle.job_id}},
            "immutable": True,
            "binaryData": {f"piece-{number:03}": base64.b64encode(piece).decode()},
        }
        for number, piece in enumerate(pieces)
    )


# -- pods ------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class _Pods:
    """Pod templates."""

    config: KubernetesConfig
    piece_names: list[str]

    def head(self, image: str) -> dict[str, Any]:
        """The driver's pod. Any node will do."""
        size = _size(cpus=self.config.head_cpus, memory_gb=self.config.head_memory_gb)
        return self._template("ray-head", image, size, HEAD_PRE_STOP, {})

    def worker(self, group: Group) -> dict[str, Any]:
        """A pod of a group."""
        memory_gb = group.config.memory_gb or (64 * group.gpus or 16)
        size = _size(cpus=group.config.cpus_per_node, memory_gb=memory_gb)
        taints = list(group.config.tolerations)
        if group.vendor:
            size[GPU_RESOURCES[group.vendor]] = str(group.gpus)
            taints.insert(0, GPU_RESOURCES[group.vendor])
        placement = {
            "nodeSelector": dict(group.config.node_selector),
            "tolerations": [{"key": key, "operator": "Exists"} for key in taints],
        }
        return self._template("ray-worker", group.image, size, WORKER_PRE_STOP, placement)

    def _template(
        self, name: str, image: str, size: dict[str, str], pre_stop: str, placement: dict[str, Any]
    ) -> dict[str, Any]:
        mounts = [
            {"name": "job", "mountPath": _JOB_DIR},
            *(
                {"name": f"volume-{number}", "mountPath": volume.mount_path}
                for number, volume in enumerate(self.config.volumes)
            ),
        ]
        container = {
            "name": name,
            "image": image,
            "env": [
                # Ray's own, so that a call that runs may end in peace while its node is drained.
                {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(self.config.grace_s - 30)},
                {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            ],
            "envFrom": [{"secretRef": {"name": secret}} for secret in self.config.secrets],
            "resources": {"requests": size, "limits": size},
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", pre_stop]}}},
            "volumeMounts": mounts,
        }
        unpack = {
            "name": "unpack",
            "image": image,
            "command": ["sh", "-c", _UNPACK],
            "volumeMounts": [mounts[0], {"name": "pieces", "mountPath": _PIECES_DIR, "readOnly": True}],
        }
        spec = {
            "terminationGracePeriodSeconds": self.config.grace_s,
            "automountServiceAccountToken": False,
            "securityContext": _user(self.config.run_as_user),
            "initContainers": [_without_empty(unpack)],
            "containers": [_without_empty(container)],
            "volumes": [
                {"name": "pieces", "projected": {"sources": [{"configMap": {"name": n}} for n in self.piece_names]}},
                {"name": "job", "emptyDir": {}},
                *(_volume(number, volume) for number, volume in enumerate(self.config.volumes)),
            ],
            **placement,
        }
        return {"spec": _without_empty(spec)}


def _volume(number: int, config: VolumeConfig) -> dict[str, Any]:
    if config.claim is not None:
        return {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": config.claim}}
    return {"name": f"volume-{number}", "hostPath": {"path": config.host_path, "type": "DirectoryOrCreate"}}


def _size(*, cpus: int, memory_gb: int) -> dict[str, str]:
    return {"cpu": str(cpus), "memory": f"{memory_gb}G"}


def _user(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"runAsUser": user, "fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch"}


def _without_empty(part: dict[str, Any]) -> dict[str, Any]:
    """Without keys that have nothing to say; an empty emptyDir lies deeper."""
    return {key: value for key, value in part.items() if value not in ({}, [])}
