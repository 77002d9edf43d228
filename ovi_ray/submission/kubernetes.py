"""Kubernetes as a target, through KubeRay: a job is a RayJob, whose cluster lives for as long as the job runs.

The RayJob is the record of the job. A job that failed is submitted again under the next of ID, ID-2, ID-3, ...; one that was
stopped is suspended, and goes on when it is submitted again. The exit code of the driver is in a line of its log: codes 1 and 2
must not look like a failure to the operator, which would start another cluster.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from ovi_ray.errors import ClusterError, InputError, Problem
from ovi_ray.submission.bundle import Bundle
from ovi_ray.submission.kubernetes_client import KubernetesClient
from ovi_ray.submission.kubernetes_manifest import (
    GPU_RESOURCES,
    JOB_LABEL,
    MANAGED_BY,
    OUTPUT,
    QUEUE_LABEL,
    RESTARTS,
    STOPPED,
    KubernetesConfig,
    Manifests,
    config_maps,
    manifests_of,
)
from ovi_ray.submission.states import JobState, JobStatus

_LOOK_S = 1.0
_LOST_S = 60.0  # without an answer, after which a log is not followed any more
_TAIL_LINES = 50
_ENDED = re.compile(rb"^ovi-ray: the job ended with exit code (\d+)$", re.MULTILINE)
_STATES = {
    "": JobState.PENDING,
    "Initializing": JobState.PENDING,
    "Waiting": JobState.PENDING,
    "Retrying": JobState.PENDING,
    "Suspended": JobState.PENDING,  # by a queue; one that the user stopped has the annotation STOPPED
    "Running": JobState.RUNNING,
    "Suspending": JobState.RUNNING,
    "Failed": JobState.FAILED,
    "ValidationFailed": JobState.FAILED,
}
"""By the operator's jobDeploymentStatus; that of a job that is Complete is told by its jobStatus and its log."""


class KubernetesTarget:
    """See the module. Methods are those of `targets.Target`."""

    def __init__(self, name: str, config: KubernetesConfig) -> None:
        self._name = name
        self._config = config

    def check(self, bundle: Bundle) -> list[str]:
        """See Target."""
        manifests = self._manifests(bundle, 0)
        self._client.ray_jobs(_selector(bundle.job_id))
        self._check_names()
        notes = self._device_notes(manifests)
        self._client.create_ray_job(manifests.job, dry_run=True)
        if bundle.job.priority:
            notes.append("priority is not used: the queue decides which job comes first")
        return notes

    def submit(self, bundle: Bundle) -> JobStatus:
        """See Target."""
        while True:  # another round only where somebody else submits the same job at the same time
            latest = self._latest(bundle.job_id)
            restarts = 0
            if latest is not None:
                status = self._status(latest)
                if status.state not in (JobState.FAILED, JobState.STOPPED, JobState.UNKNOWN):
                    if not status.state.is_over:
                        self._ship(bundle, latest)  # what a submission that was cut off has left out
                    return status
                if status.state is JobState.STOPPED and _deployment(latest) != "Complete":
                    self._set_running(latest, True, {STOPPED: None, RESTARTS: str(_restarts(latest) + 1)})
                    return self.status(bundle.job_id)
                restarts = _restarts(latest) + 1
            if self._client.create_ray_job(self._manifests(bundle, restarts).job):
                self._ship(bundle, self._known(bundle.job_id))
                return self.status(bundle.job_id)

    def script(self, bundle: Bundle) -> str:
        """See Target. The manifests, as YAML."""
        return self._manifests(bundle, 0).text()

    def jobs(self) -> list[JobStatus]:
        """See Target."""
        latest: dict[str, dict[str, Any]] = {}
        for job in sorted(self._client.ray_jobs(_selector()), key=_restarts):
            latest[job["metadata"]["labels"][JOB_LABEL]] = job
        return sorted((self._status(job) for job in latest.values()), key=lambda status: status.submitted_at)

    def status(self, job_id: str) -> JobStatus:
        """See Target."""
        return self._status(self._known(job_id))

    def logs(self, job_id: str, *, follow: bool) -> Iterator[bytes]:
        """See Target. The log of the last cluster; `run.log` in the output folder is that of all."""
        job = self._known(job_id)
        if follow:
            return self._follow(job_id)
        pod = self._submitter(job)
        return iter([self._client.log(pod)] if pod else [])

    def stop(self, job_id: str) -> JobStatus:
        """See Target."""
        job = self._known(job_id)
        status = self._status(job)
        if not status.state.is_over:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._set_running(job, False, {STOPPED: now})
        return status

    # -- submission ------------------------------------------------------------------------------------------------

    @cached_property
    def _client(self) -> KubernetesClient:
        return KubernetesClient(context=self._config.context, namespace=self._config.namespace)

    def _manifests(self, bundle: Bundle, restarts: int) -> Manifests:
        return manifests_of(bundle, self._config, target=self._name, restarts=restarts)

    def _ship(self, bundle: Bundle, job: dict[str, Any]) -> None:
        """Create the ConfigMaps, which are deleted with the RayJob."""
        owner = {key: job[key] for key in ("apiVersion", "kind")} | {
            key: job["metadata"][key] for key in ("name", "uid")
        }
        for piece in config_maps(bundle, job["metadata"]["name"]):
            self._client.create_config_map({**piece, "metadata": {**piece["metadata"], "ownerReferences": [owner]}})

    def _set_running(self, job: dict[str, Any], running: bool, annotations: dict[str, str | None]) -> None:
        """Suspend a job, or let it go on. Kueue, which starts the jobs of its queues, would undo what it is not asked for."""
        change: dict[str, Any] = {"metadata": {"annotations": annotations}}
        if QUEUE_LABEL in job["metadata"]["labels"]:
            self._client.set_active(job, running)
        else:
            change["spec"] = {"suspend": not running}
        self._client.patch_ray_job(job["metadata"]["name"], change)

    # -- checks ----------------------------------------------------------------------------------------------------

    def _check_names(self) -> None:
        """Whether what the entry names is there: pods would wait for it for ever. Raises InputError."""
        namespace = self._client.namespace
        problems = [
            Problem(
                file=f"target {self._name}",
                field="volumes",
                value=f"claim {volume.claim!r}",
                expected=f"a PersistentVolumeClaim of namespace {namespace}: see `kubectl get pvc -n {namespace}`",
            )
            for volume in self._config.volumes
            if volume.claim is not None and not self._client.has_claim(volume.claim)
        ]
        if self._config.queue is not None and not self._client.has_queue(self._config.queue):
            expected = f"a LocalQueue of namespace {namespace}: see `kubectl get localqueues -n {namespace}`"
            problems.append(
                Problem(file=f"target {self._name}", field="queue", value=repr(self._config.queue), expected=expected)
            )
        if problems:
            raise InputError(problems)

    def _device_notes(self, manifests: Manifests) -> list[str]:
        """Notes on the pods. Raises ClusterError where no node has the GPUs that they ask for."""
        notes = []
        there = self._client.gpus(tuple(GPU_RESOURCES.values()))
        for group in manifests.groups:
            if not group.gpus or there is None:
                notes.append(str(group))
                continue
            resource = GPU_RESOURCES[group.vendor]
            if not there[resource] and not self._config.scales_from_zero:
                raise ClusterError(
                    f"the job needs {group}, and no node of the cluster has {resource}: install the vendor's device plugin, or"
                    f" set scales_from_zero: true for target {self._name} if nodes are added when pods wait"
                )
            notes.append(f"{group}; the cluster's nodes have {there[resource]}")
        return notes

    # -- states ----------------------------------------------------------------------------------------------------

    def _latest(self, job_id: str) -> dict[str, Any] | None:
        return max(self._client.ray_jobs(_selector(job_id)), key=_restarts, default=None)

    def _known(self, job_id: str) -> dict[str, Any]:
        job = self._latest(job_id)
        if job is None:
            expected = f"a job that {self._name} knows in namespace {self._client.namespace} (see `ovi-ray jobs`)"
            raise InputError([Problem(file="command line", field="ID", value=repr(job_id), expected=expected)])
        return job

    def _status(self, job: dict[str, Any]) -> JobStatus:
        metadata, reported = job["metadata"], job.get("status") or {}
        state, code = self._state(job)
        failures = int(reported.get("failed") or 0)
        return JobStatus(
            job_id=metadata["labels"][JOB_LABEL],
            state=state,
            target=self._name,
            native_id=metadata["name"],
            output_dir=metadata["annotations"].get(OUTPUT, ""),
            submitted_at=metadata.get("creationTimestamp", "").replace("Z", "+00:00"),
            exit_code=code,
            message=self._message(job, state),
            restarts=_restarts(job) + max(0, failures - (state is JobState.FAILED)),
        )

    def _state(self, job: dict[str, Any]) -> tuple[JobState, int | None]:
        """The state of a job, and the exit code of its driver once it is known."""
        reported = job.get("status") or {}
        deployment, ray_state = _deployment(job), reported.get("jobStatus", "")
        if STOPPED in job["metadata"]["annotations"] and deployment in ("", "Suspended", "Initializing", "Waiting"):
            return JobState.STOPPED, None
        if deployment == "Complete" and ray_state == "STOPPED":
            return JobState.STOPPED, None
        if deployment == "Running" and ray_state in ("", "PENDING"):
            return JobState.PENDING, None
        if deployment != "Complete":
            state = _STATES.get(deployment, JobState.UNKNOWN)
            return state, self._exit_code(job) if state is JobState.FAILED else None
        code = self._exit_code(job)
        if code is None:
            return JobState.UNKNOWN, None
        return (JobState.FAILED if code else JobState.SUCCEEDED), code

    def _exit_code(self, job: dict[str, Any]) -> int | None:
        pod = self._submitter(job)
        codes = _ENDED.findall(self._client.log(pod, last_lines=_TAIL_LINES)) if pod else []
        return int(codes[-1]) if codes else None

    def _message(self, job: dict[str, Any], state: JobState) -> str:
        reported = job.get("status") or {}
        if state is JobState.UNKNOWN:
            return "the driver has ended, and the log with its exit code is gone: see run.log in the output folder"
        if state is JobState.PENDING:
            return self._why_it_waits(reported)
        told = reported.get("message") or reported.get("reason") or ""
        return str(told) if state is JobState.FAILED else ""

    def _why_it_waits(self, reported: dict[str, Any]) -> str:
        """The first reason that one of its pods gives."""
        if reported.get("jobDeploymentStatus") == "Suspended":
            return "it waits in its queue"
        cluster = reported.get("rayClusterName")
        for pod in self._client.pods(f"ray.io/cluster={cluster}") if cluster else ():
            if why := _why_pod_waits(pod.get("status", {})):
                return f"pod {pod['metadata']['name']}: {why}"
        return ""

    # -- logs ------------------------------------------------------------------------------------------------------

    def _submitter(self, job: dict[str, Any]) -> str | None:
        """The pod that prints the driver's log; None before there is one."""
        pods = self._client.pods(f"job-name={job['metadata']['name']}")
        return str(pods[-1]["metadata"]["name"]) if pods else None

    def _follow(self, job_id: str) -> Iterator[bytes]:
        """The log until the job is over. A connection that ends is opened again, and what was shown of a pod is skipped."""
        shown: dict[str, int] = {}
        answered = time.monotonic()
        while True:
            try:
                job = self._known(job_id)
                is_over = self._state(job)[0].is_over
                if pod := self._submitter(job):
                    for piece in _after(self._client.follow(pod), shown.get(pod, 0)):
                        shown[pod] = shown.get(pod, 0) + len(piece)
                        yield piece
                answered = time.monotonic()
                if is_over:
                    return
            except ClusterError:
                if time.monotonic() - answered > _LOST_S:
                    raise
            time.sleep(_LOOK_S)


def _after(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """The pieces without their first bytes."""
    for piece in pieces:
        if rest := piece[skip:]:
            yield rest
        skip = max(0, skip - len(piece))


def _selector(job_id: str | None = None) -> str:
    labels = {**MANAGED_BY, **({JOB_LABEL: job_id} if job_id else {})}
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _restarts(job: dict[str, Any]) -> int:
    return int((job["metadata"].get("annotations") or {}).get(RESTARTS, 0))


def _deployment(job: dict[str, Any]) -> str:
    """The operator's state of a job; "" before it has seen it."""
    return str((job.get("status") or {}).get("jobDeploymentStatus", ""))


def _why_pod_waits(status: dict[str, Any]) -> str:
    """Why a pod does not run; "" for one that does, or that gives no reason."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node takes it")
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""
