"""The calls to a Kubernetes API server that a target makes, through the official client (`ovi-ray[kubernetes]`).

Resources travel as mappings, in Kubernetes' own words.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel

from ovi_ray.errors import ClusterError
from ovi_ray.submission.connections import cause_of
from ovi_ray.submission.kuberay import API_VERSION

TIMEOUT_S = (5.0, 15.0)  # to connect, and between two pieces of an answer
SILENCE_S = 3600.0  # of a log that is followed, after which it is opened again: the client takes no None
_GROUP, _VERSION = API_VERSION.split("/")
_KUEUE = "kueue.x-k8s.io"
_MERGE_PATCH = "application/merge-patch+json"


def _with_metadata(resource: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what is no resource."""
    if not isinstance(resource.get("metadata"), dict):
        raise ValueError("a resource has metadata")
    return resource


class _List(BaseModel):
    items: list[dict[str, Any]]


class _Resources(BaseModel):
    items: list[Annotated[dict[str, Any], AfterValidator(_with_metadata)]]


class KubernetesClient:
    """Calls to one namespace of one cluster. Raises ClusterError when it cannot be reached or refuses.

    A context and a namespace of None are those that kubectl would use; in a pod, the pod's own.
    """

    def __init__(self, *, context: str | None, namespace: str | None) -> None:
        self._api, own = _connect(context)
        self.namespace = namespace or own

    # -- jobs ------------------------------------------------------------------------------------------------------

    def ray_jobs(self, selector: str) -> list[dict[str, Any]]:
        """The RayJobs with these labels."""
        found = self._call(
            "list RayJobs",
            self._custom().list_namespaced_custom_object,
            *self._ray_jobs(),
            label_selector=selector,
            missing=f"there is no KubeRay in the cluster: install its operator (cluster/kubernetes/README.md), or is"
            f" {self.namespace!r} no namespace?",
        )
        return self._items(found)

    def create_ray_job(self, job: Mapping[str, Any], *, dry_run: bool = False) -> bool:
        """Create a RayJob; false where its name is used already. A dry run lets the cluster check it, and keeps nothing."""
        how: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        try:
            self._call(
                "create the RayJob",
                self._custom().create_namespaced_custom_object,
                *self._ray_jobs(),
                dict(job),
                field_validation="Strict",
                **how,
            )
        except _Conflict:
            return False
        return True

    def patch_ray_job(self, name: str, change: Mapping[str, Any]) -> None:
        """Merge a change into a RayJob."""
        self._call(
            f"change RayJob {name}",
            self._custom().patch_namespaced_custom_object,
            *self._ray_jobs(),
            name,
            dict(change),
            _content_type=_MERGE_PATCH,
        )

    def create_config_map(self, content: Mapping[str, Any]) -> None:
        """Create a ConfigMap, unless one of its name is there."""
        try:
            self._call(
                "create a ConfigMap", self._core().create_namespaced_config_map, self.namespace, body=dict(content)
            )
        except _Conflict:
            return

    # -- pods ------------------------------------------------------------------------------------------------------

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods with these labels, the oldest first."""
        answer = self._call(
            "list pods",
            self._core().list_namespaced_pod,
            self.namespace,
            label_selector=selector,
            _preload_content=False,
        )
        return sorted(self._items(answer.data), key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def log(self, pod: str, *, last_lines: int | None = None) -> bytes:
        """The log of a pod so far; empty where it has none yet."""
        limit = {} if last_lines is None else {"tail_lines": last_lines}
        return bytes(b"".join(self._log(pod, **limit)))

    def follow(self, pod: str) -> Iterator[bytes]:
        """The log of a pod from its start, in pieces, until the connection or the pod ends."""
        return self._log(pod, follow=True, _request_timeout=(TIMEOUT_S[0], SILENCE_S))

    def _log(self, pod: str, **options: Any) -> Iterator[bytes]:
        import urllib3

        try:
            answer = self._call(
                f"read the log of pod {pod}",
                self._core().read_namespaced_pod_log,
                pod,
                self.namespace,
                **options,
                _preload_content=False,
                passes=(400, 404),  # a container that has not started, and a pod that is gone
            )
        except _Passed:
            return
        try:
            yield from answer.stream(amt=None)
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(f"the connection to {self._host} was lost: {error}") from error
        finally:
            answer.release_conn()

    # -- what a job needs ------------------------------------------------------------------------------------------

    def has_claim(self, name: str) -> bool:
        """Whether there is a PersistentVolumeClaim of this name."""
        return self._exists(
            "read volume claims", self._core().read_namespaced_persistent_volume_claim, name, self.namespace
        )

    def has_queue(self, name: str) -> bool:
        """Whether there is a LocalQueue of Kueue's of this name."""
        return self._exists(
            "read Kueue's queues",
            self._custom().get_namespaced_custom_object,
            _KUEUE,
            self._kueue_version(),
            self.namespace,
            "localqueues",
            name,
        )

    def gpus(self, resources: tuple[str, ...]) -> dict[str, int] | None:
        """Total of each resource over all nodes; None where the user may not see nodes."""
        try:
            answer = self._call("list nodes", self._core().list_node, _preload_content=False, passes=(403,))
        except _Passed:
            return None
        there = [(node.get("status") or {}).get("allocatable") or {} for node in self._items(answer.data, _List)]
        return {resource: sum(int(node.get(resource, 0)) for node in there) for resource in resources}

    def set_active(self, ray_job: Mapping[str, Any], active: bool) -> None:
        """Let Kueue run a job, or end it and keep it from running."""
        where = (_KUEUE, self._kueue_version(), self.namespace, "workloads")
        found = self._items(self._call("list Kueue's workloads", self._custom().list_namespaced_custom_object, *where))
        own = [workload["metadata"]["name"] for workload in found if _is_of(workload, ray_job["metadata"]["uid"])]
        if not own:
            raise ClusterError(f"Kueue has not seen {ray_job['metadata']['name']} yet: try again in some seconds")
        for name in own:
            self._call(
                "change Kueue's workload",
                self._custom().patch_namespaced_custom_object,
                *where,
                name,
                {"spec": {"active": active}},
                _content_type=_MERGE_PATCH,
            )

    def _kueue_version(self) -> str:
        from kubernetes import client

        groups = self._call("list API groups", client.ApisApi(self._api).get_api_versions).groups
        version = next((group.preferred_version.version for group in groups if group.name == _KUEUE), None)
        if version is None:
            raise ClusterError(
                "the target names a queue, and there is no Kueue in the cluster: install it, or name none"
            )
        return str(version)

    # -- calls -----------------------------------------------------------------------------------------------------

    @property
    def _host(self) -> str:
        return str(self._api.configuration.host)

    def _ray_jobs(self) -> tuple[str, str, str, str]:
        return _GROUP, _VERSION, self.namespace, "rayjobs"

    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._api)

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._api)

    def _items(self, answer: object, kind: type[_List | _Resources] = _Resources) -> list[dict[str, Any]]:
        """The items of a list. Raises ClusterError for what is no list of them."""
        try:
            return (
                kind.model_validate_json(answer) if isinstance(answer, bytes) else kind.model_validate(answer)
            ).items
        except ValueError:
            raise ClusterError(
                f"{self._host} answers, but not as a Kubernetes API server does: is that its address in the kubeconfig file?"
            ) from None

    def _exists(self, what: str, call: Callable[..., Any], *arguments: Any) -> bool:
        try:
            self._call(what, call, *arguments, passes=(404,), _preload_content=False)
        except _Passed:
            return False
        return True

    def _call(
        self,
        what: str,
        call: Callable[..., Any],
        *arguments: Any,
        passes: tuple[int, ...] = (),
        missing: str | None = None,
        **options: Any,
    ) -> Any:
        """The answer to a call. Raises _Passed for a status of `passes`, _Conflict for a used name, else ClusterError."""
        import urllib3
        from kubernetes import client

        try:
            return call(*arguments, **{"_request_timeout": TIMEOUT_S, **options})
        except client.ApiException as error:
            if error.status in passes:
                raise _Passed from None
            if error.status == 409:
                raise _Conflict(_reason(error)) from None
            raise ClusterError(self._refusal(what, error, missing)) from None
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(
                f"the Kubernetes API server at {self._host} cannot be reached: {_why(error)};"
                " does `kubectl get rayjobs` work here?"
            ) from error

    def _refusal(self, what: str, error: Any, missing: str | None) -> str:
        match error.status:
            case 401:
                return f"{self._host} does not know you: log in again, so that `kubectl auth whoami` works"
            case 403:
                return f"you may not {what} in namespace {self.namespace!r}: {_reason(error)}; ask for that right"
            case 404 if missing:
                return missing
            case 422 | 400:
                return f"the cluster refuses to {what}: {_reason(error)}"
            case status:
                return f"{self._host} answered {status} when asked to {what}: {_reason(error)}"


class _Passed(Exception):
    """A status that the caller knows what to do with."""


class _Conflict(ClusterError):
    """The name is used already."""


def _connect(context: str | None) -> tuple[Any, str]:
    """A client, and the namespace that is meant where none is named. Raises ClusterError."""
    try:
        from kubernetes import client, config
    except ImportError:
        raise ClusterError(
            "Kubernetes is spoken to through its Python client: pip install 'ovi-ray[kubernetes]'"
        ) from None
    settings = client.Configuration()
    settings.retries = False
    own_account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    file = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        if context is None and own_account.exists() and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=settings)
            return client.ApiClient(settings), own_account.read_text(encoding="utf-8").strip()
        config.load_kube_config(file, context, client_configuration=settings, persist_config=False)
        contexts, current = config.list_kube_config_contexts(file)
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ClusterError(
            f"no cluster is set up in {file}: {error}; let KUBECONFIG name a file in which `kubectl get pods` works"
        ) from None
    chosen = next((entry for entry in contexts if entry["name"] == context), current) or {}
    return client.ApiClient(settings), str(chosen.get("context", {}).get("namespace") or "default")


def _is_of(resource: Mapping[str, Any], uid: str) -> bool:
    return uid in (owner["uid"] for owner in resource["metadata"].get("ownerReferences", ()))


def _reason(error: Any) -> str:
    """The message of the server, which answers in JSON."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or error.body or "no reason given")


def _why(error: Exception) -> str:
    import urllib3

    if isinstance(error, urllib3.exceptions.ProtocolError):
        return cause_of(error)
    reason = str(getattr(error, "reason", None) or error)
    return reason.rpartition(">: ")[2].rpartition("): ")[2] or reason
