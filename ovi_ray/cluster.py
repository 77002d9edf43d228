"""Starting or joining Ray, and where workers go on what it has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ovi_ray.devices import host_memory_gb
from ovi_ray.errors import ClusterError
from ovi_ray.executor import Placement
from ovi_ray.job import DeviceKind, JobSpec
from ovi_ray.worker import WorkerConfig


@contextmanager
def ray_session(job: JobSpec) -> Iterator[None]:
    """A connection to Ray for the time of a job: the cluster at the job's address, or one on this machine alone.

    Raises ClusterError when Ray cannot be started or joined.
    """
    options = {"address": job.address} if job.address else {"num_cpus": max(os.cpu_count() or 1, job.workers or 1)}
    try:
        ray.init(**options, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(_why_no_ray(job.address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _why_no_ray(address: str | None, error: Exception) -> str:
    if not address:
        return f"a local Ray cannot be started: {error}"
    # Ray uses the token file by itself only with the address "auto"
    hint = "if it asks for a token, share its ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    return f"the Ray cluster at {address} cannot be joined: {error}; is it up? {hint}"


def placements(job: JobSpec) -> list[Placement]:
    """A worker on each GPU that Ray has, or on CPUs where it has none. Raises ClusterError when the job asks for more."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if job.device is DeviceKind.CPU or (job.device is DeviceKind.AUTO and not gpus):
        return _on_cpus(job, int(resources.get("CPU", 1)))
    if not gpus:
        raise ClusterError("the job asks for GPUs and Ray has found none; use --device cpu, or look at `ray status`")
    config = _config(job, device="cuda", num_threads=max(1, int(resources.get("CPU", 1)) // gpus), memory_gb=None)
    return [Placement(config=config, num_cpus=1, num_gpus=1)] * min(gpus, job.workers or gpus)


def _on_cpus(job: JobSpec, cpus: int) -> list[Placement]:
    count = job.workers or 1
    if count > cpus:
        raise ClusterError(f"the job asks for {count} workers and Ray has {cpus} CPUs; use --workers {cpus} or fewer")
    # Workers on one machine share its memory; on a cluster each node holds about as many as it has CPUs.
    share = count / max(1, len(ray.nodes()))
    config = _config(job, device="cpu", num_threads=max(1, cpus // count), memory_gb=host_memory_gb() / max(1.0, share))
    return [Placement(config=config, num_cpus=1, num_gpus=0)] * count


def _config(job: JobSpec, *, device: str, num_threads: int, memory_gb: float | None) -> WorkerConfig:
    return WorkerConfig(
        ckpt_dir=str(job.ckpt_dir.absolute()),
        model_name=job.model_name,
        dtype=job.dtype,
        device=device,
        num_threads=num_threads,
        memory_gb=memory_gb,
    )
