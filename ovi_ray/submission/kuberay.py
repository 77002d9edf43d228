"""The custom resources of KubeRay 1.7, as far as ovi-ray and `cluster/kubernetes` use them, with the rules of the operator.

The operator's schema accepts much that the operator itself refuses later, when nobody looks; what these models accept, it runs.
A pod template is a mapping: Kubernetes' own schema is the one to check it with.

Source: github.com/ray-project/kuberay 1.7.0, ray-operator/controllers/ray/utils/validation.go and common/job.go.
"""

import re
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

API_VERSION: Final = "ray.io/v1"
MAX_JOB_NAME_CHARS = 47  # the operator appends to it for the names of clusters and pods
MAX_CLUSTER_NAME_CHARS = 53
MIN_GRACE_S = 60
"""Of a pod, so that a denoise can be saved. Kubernetes' own 30 s are too short, and the operator sets none."""
_DNS_LABEL = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
_FIRST_WITH_TOKENS = (2, 52)

GroupName = Annotated[str, StringConstraints(pattern=_DNS_LABEL, max_length=63)]


def _key(name: str) -> str:
    """The key of a field: runtimeEnvYAML for runtime_env_yaml."""
    return to_camel(name).replace("Yaml", "YAML")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=_key, populate_by_name=True)


class Metadata(_Part):
    """Name and labels of a resource."""

    name: Annotated[str, StringConstraints(pattern=_DNS_LABEL)]
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class AuthOptions(_Part):
    """Without it the cluster has no token. Without a secret's name the operator makes a token."""

    mode: Literal["token", "disabled"]
    secret_name: str | None = None


class SecretKey(_Part):
    """One key of a Secret."""

    name: str
    key: str


class ValueFrom(_Part):
    """Source of a variable's value: a key of a Secret."""

    secret_key_ref: SecretKey


class Password(_Part):
    """A value, or where it is."""

    value: str | None = None
    value_from: ValueFrom | None = None


class GcsFaultToleranceOptions(_Part):
    """A Redis that keeps the state of the head, so that a restarted head finds its workers again."""

    redis_address: str
    redis_password: Password | None = None
    external_storage_namespace: str | None = None


class AutoscalerOptions(_Part):
    """The autoscaler, a container beside the head."""

    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: Annotated[int, Field(ge=0)] | None = None


class HeadGroup(_Part):
    """The head pod."""

    labels: dict[str, str] | None = None
    resources: dict[str, str] | None = None
    ray_start_params: dict[str, str] = Field(default_factory=dict)
    template: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_group("the head", self.ray_start_params, self.template)
        return self


class WorkerGroup(_Part):
    """Equal worker pods."""

    group_name: GroupName
    replicas: Annotated[int, Field(ge=0)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Annotated[int, Field(ge=1)]
    idle_timeout_seconds: Annotated[int, Field(ge=0)] | None = None
    labels: dict[str, str] | None = None
    resources: dict[str, str] | None = None
    ray_start_params: dict[str, str] = Field(default_factory=dict)
    template: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_group(f"group {self.group_name}", self.ray_start_params, self.template)
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(f"group {self.group_name}: minReplicas <= replicas <= maxReplicas must hold")
        return self


class RayClusterSpec(_Part):
    """A Ray cluster."""

    ray_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    auth_options: AuthOptions | None = None
    gcs_fault_tolerance_options: GcsFaultToleranceOptions | None = None
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"two worker groups have the same groupName: {', '.join(sorted(names))}")
        version = tuple(int(part) for part in self.ray_version.split(".")[:2])
        if self.auth_options and self.auth_options.mode == "token" and version < _FIRST_WITH_TOKENS:
            raise ValueError(f"rayVersion {self.ray_version} knows no tokens; 2.52 is the first that does")
        if self.autoscaler_options and not self.enable_in_tree_autoscaling:
            raise ValueError("autoscalerOptions have no effect without enableInTreeAutoscaling: true")
        if self.enable_in_tree_autoscaling and self.autoscaler_options and self.autoscaler_options.version == "v2":
            for template in [self.head_group_spec.template, *(group.template for group in self.worker_group_specs)]:
                if template["spec"].get("restartPolicy", "Never") != "Never":
                    raise ValueError("the v2 autoscaler needs restartPolicy Never, or none, in every pod template")
        return self


class RayCluster(_Part):
    """A Ray cluster that jobs are submitted to."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _with_short_name(self, self.metadata.name, MAX_CLUSTER_NAME_CHARS)


class RayJobSpec(_Part):
    """A job, and the cluster that lives for as long as it runs."""

    entrypoint: Annotated[str, StringConstraints(pattern=r"^[\w./ -]+$")]
    """Words alone: the operator puts it into a shell's command line."""
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    """A pod of its own submits the job, and prints the driver's log."""
    backoff_limit: Annotated[int, Field(ge=0)] = 0
    """Number of further clusters that a failed job gets."""
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = 0
    suspend: bool = False
    runtime_env_yaml: str | None = None
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true")
        if self.suspend and not self.shutdown_after_job_finishes:
            raise ValueError("suspend needs shutdownAfterJobFinishes: true")
        if self.runtime_env_yaml is not None and not isinstance(yaml.safe_load(self.runtime_env_yaml), dict):
            raise ValueError("runtimeEnvYAML must be a mapping in YAML")
        return self


class RayJob(_Part):
    """A job of the operator's."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _with_short_name(self, self.metadata.name, MAX_JOB_NAME_CHARS)


def _with_short_name(resource: Any, name: str, most: int) -> Any:
    if len(name) > most:
        raise ValueError(f"metadata.name {name!r} has {len(name)} characters; the operator takes {most}")
    return resource


def _check_group(group: str, parameters: dict[str, str], template: dict[str, Any]) -> None:
    """The rules for one group of pods. Raises ValueError."""
    if doubled := sorted({"labels", "resources"} & set(parameters)):
        raise ValueError(f"{group}: {' and '.join(doubled)} belong beside rayStartParams, not into them")
    spec = template.get("spec")
    if not isinstance(spec, dict) or not spec.get("containers"):
        raise ValueError(f"{group}: template.spec.containers is empty; the first container runs Ray")
    grace = spec.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < MIN_GRACE_S:
        raise ValueError(f"{group}: terminationGracePeriodSeconds is {grace}; at least {MIN_GRACE_S} s save a denoise")
    if "preStop" not in (spec["containers"][0].get("lifecycle") or {}):
        raise ValueError(
            f"{group}: its first container has no preStop hook: `ray start` behind a shell gets no SIGTERM"
        )
    image = str(spec["containers"][0].get("image", ""))
    if not re.search(r"(:[^/]+|@sha256:[0-9a-f]{64})$", image) or image.endswith(":latest"):
        raise ValueError(f"{group}: image {image!r} has no fixed tag, so its pods could differ")
