"""A Ray cluster as a target: the job's files travel through the head, and the driver runs as a job of Ray's.

A job that failed or was stopped is submitted again under the next of ID, ID-2, ID-3, ...: Ray uses a submission id only once.
"""

import hashlib
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ovi_ray.errors import ClusterError, InputError, Problem
from ovi_ray.inputs.job_spec import DeviceKind
from ovi_ray.printing import counted
from ovi_ray.submission.bundle import Bundle
from ovi_ray.submission.ray_client import RayClient, RayJob, checked_address
from ovi_ray.submission.states import JobState, JobStatus
from ovi_ray.submission.templates import render_script

STOP_WAIT_S = (
    60  # before Ray kills a driver that was asked to end; its own default, 3 s, is too short to save a denoise
)
START_FILE = "start.sh"
_ID, _OUTPUT, _ATTEMPT = "ovi_ray_job", "ovi_ray_output", "ovi_ray_attempt"  # keys of a job's metadata
_LOOK_S = 1.0  # between two looks at a job whose log is followed
_LOST_S = 60.0  # without an answer, after which a log is not followed any more


class RayConfig(BaseModel):
    """The entry of a Ray cluster in targets.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    address: Annotated[str, AfterValidator(checked_address)] = Field(
        description="the address of the head's dashboard, such as http://head:8265"
    )
    token_path: str | None = Field(None, description="the path of a file that holds the cluster's token")
    python: str = Field("python", pattern=r"\S", description="the Python on the cluster's head that has ovi-ray")


class RayTarget:
    """See the module. Methods are those of `targets.Target`."""

    def __init__(self, name: str, config: RayConfig) -> None:
        self._name = name
        self._config = config
        self._client = RayClient(config.address, token_path=Path(config.token_path) if config.token_path else None)

    def check(self, bundle: Bundle) -> list[str]:
        """See Target."""
        version = self._client.version()
        notes = [f"Ray {version} at {self._client.address}", *self._device_notes(bundle)]
        if self._client.is_open_to_all():
            notes.append(
                "the cluster asks for no token: whoever reaches this address may run programs there;"
                " start its head with RAY_AUTH_MODE=token (cluster/README.md)"
            )
        if bundle.job.priority:
            notes.append(
                f"priority {bundle.job.priority}: the jobs of a Ray cluster share it, 100 more are twice the share"
            )
        self._packed(bundle)
        return notes

    def submit(self, bundle: Bundle) -> JobStatus:
        """See Target."""
        content = self._packed(bundle)
        package = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:16]}.zip"
        while True:  # another round only where somebody else submits the same job at the same time
            latest = self._latest(bundle.job_id)
            if latest is not None and latest.state not in (JobState.FAILED, JobState.STOPPED):
                return self._status(latest)
            attempt = 1 if latest is None else _attempt_of(latest) + 1
            self._client.upload(package, content)
            if self._client.submit(_request(bundle, package, attempt)):
                return self.status(bundle.job_id)
            if latest == self._latest(bundle.job_id):  # a job that was deleted: its id cannot be used again
                raise ClusterError(
                    f"{_submission_id(bundle.job_id, attempt)} was deleted from the Ray cluster at {self._client.address},"
                    " which does not take its id again: restart the head, or change the job's name"
                )

    def script(self, bundle: Bundle) -> str:
        """See Target."""
        return render_script(
            "ray_job.sh.j2",
            python=self._config.python,
            version=bundle.version,
            job_id=bundle.job_id,
            options=bundle.render_options,
        )

    def jobs(self) -> list[JobStatus]:
        """See Target."""
        latest: dict[str, RayJob] = {}
        for job in sorted(self._client.jobs(), key=_attempt_of):
            if job_id := job.own.get(_ID):
                latest[str(job_id)] = job
        return [self._status(job) for job in sorted(latest.values(), key=lambda job: job.start_time or 0)]

    def status(self, job_id: str) -> JobStatus:
        """See Target."""
        return self._status(self._known(job_id))

    def logs(self, job_id: str, *, follow: bool) -> Iterator[bytes]:
        """See Target."""
        job = self._known(job_id)
        if follow:
            return self._follow(str(job.submission_id))
        return self._log(job)

    def stop(self, job_id: str) -> JobStatus:
        """See Target."""
        job = self._known(job_id)
        status = self._status(job)
        if status.state is JobState.PENDING:
            raise ClusterError(
                f"{job_id} is pending, and Ray cannot stop a pending job: wait until it runs, or see `ray status` for what it"
                " waits for"
            )
        if not status.state.is_over:
            self._client.stop(str(job.submission_id))
        return status

    # -- checks ----------------------------------------------------------------------------------------------------

    def _device_notes(self, bundle: Bundle) -> list[str]:
        """Notes on the devices of the cluster. Raises ClusterError where it lacks those that the job needs."""
        nodes = self._client.nodes()
        gpus, cpus = (sum(int((node.resources_total or {}).get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
        there = f"{counted(len(nodes), 'node')} with {counted(gpus, 'GPU')} and {counted(cpus, 'CPU')}"
        job = bundle.job
        if job.elastic:
            return [f"{there} now, and those that its autoscaler adds"]
        if job.device is DeviceKind.GPU and not gpus:
            raise ClusterError(
                f"the job needs GPUs, and {self._name} has {there}: start its nodes with --num-gpus, or set resources.device"
            )
        if job.device is DeviceKind.CPU and (job.workers or 1) > cpus:
            raise ClusterError(
                f"the job needs {counted(job.workers or 1, 'CPU')}, and {self._name} has {there}: ask for fewer workers"
            )
        return [f"{there} now"]

    def _packed(self, bundle: Bundle) -> bytes:
        return bundle.archive({START_FILE: self.script(bundle).encode()})

    # -- states ----------------------------------------------------------------------------------------------------

    def _latest(self, job_id: str) -> RayJob | None:
        own = [job for job in self._client.jobs() if job.own.get(_ID) == job_id]
        return max(own, key=_attempt_of, default=None)

    def _known(self, job_id: str) -> RayJob:
        job = self._latest(job_id)
        if job is None:
            expected = (
                f"a job that {self._name} knows (see `ovi-ray jobs`); a head that was restarted has forgotten its jobs"
            )
            raise InputError([Problem(file="command line", field="ID", value=repr(job_id), expected=expected)])
        return job

    def _status(self, job: RayJob) -> JobStatus:
        started = job.start_time
        return JobStatus(
            job_id=str(job.own[_ID]),
            state=job.state,
            target=self._name,
            native_id=str(job.submission_id),
            output_dir=str(job.own.get(_OUTPUT, "")),
            submitted_at=datetime.fromtimestamp(started / 1000, UTC).isoformat(timespec="seconds") if started else "",
            exit_code=0 if job.state is JobState.SUCCEEDED else job.driver_exit_code,
            message=_first_line(job.message or ""),
            restarts=_attempt_of(job) - 1,
        )

    # -- logs ------------------------------------------------------------------------------------------------------

    def _log(self, job: RayJob, *, skip: int = 0) -> Iterator[bytes]:
        """The log so far without its first bytes; empty for a job that has no driver yet."""
        if job.driver_node_id:
            yield from _after(self._client.log(str(job.submission_id), job.driver_node_id), skip)

    def _follow(self, submission_id: str) -> Iterator[bytes]:
        """The log until the job is over. A connection that ends is opened again, and what was shown is skipped."""
        shown, answered = 0, time.monotonic()
        while True:
            try:
                job = self._client.job(submission_id)
                if job is None:
                    raise ClusterError(f"{self._client.address} knows {submission_id} no more: its head was restarted")
                answered, node = time.monotonic(), job.driver_node_id
                is_over = job.state.is_over
                pieces = (
                    self._log(job, skip=shown) if is_over or not node else self._streamed(submission_id, node, shown)
                )
                for piece in pieces:
                    shown, answered = shown + len(piece), time.monotonic()
                    yield piece
                if is_over:
                    return
            except ClusterError:
                if time.monotonic() - answered > _LOST_S:
                    raise
            time.sleep(_LOOK_S)

    def _streamed(self, submission_id: str, node: str, skip: int) -> Iterator[bytes]:
        """The pieces of one connection, until it or the job ends."""
        pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def read() -> None:
            with suppress(ClusterError):
                for piece in self._client.follow(submission_id, node):
                    pieces.put(piece)
            pieces.put(None)

        def received() -> Iterator[bytes]:
            while True:
                try:
                    piece = pieces.get(timeout=_LOOK_S)
                except queue.Empty:
                    job = self._client.job(submission_id)
                    if job is None or job.state.is_over:
                        return
                    continue
                if piece is None:
                    return
                yield piece

        threading.Thread(target=read, name="log", daemon=True).start()
        return _after(received(), skip)


def _after(pieces: Iterable[bytes], skip: int) -> Iterator[bytes]:
    """The pieces without their first bytes."""
    for piece in pieces:
        if rest := piece[skip:]:
            yield rest
        skip = max(0, skip - len(piece))


def _request(bundle: Bundle, package: str, attempt: int) -> dict[str, Any]:
    """The body of the request. No entrypoint resources: the driver goes to the head, and never waits for a place."""
    return {
        "entrypoint": f"exec sh ./{START_FILE}",
        "submission_id": _submission_id(bundle.job_id, attempt),
        "runtime_env": {
            "working_dir": f"gcs://{package}",
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        },
        "metadata": {_ID: bundle.job_id, _OUTPUT: bundle.output_dir, _ATTEMPT: str(attempt)},
    }


def _submission_id(job_id: str, attempt: int) -> str:
    return job_id if attempt == 1 else f"{job_id}-{attempt}"


def _attempt_of(job: RayJob) -> int:
    number = str(job.own.get(_ATTEMPT, "1"))
    return int(number) if re.fullmatch(r"[0-9]{1,9}", number) else 1


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
