"""Which workers a job gets, and what each must reserve of the Ray cluster."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ovi_ray.devices.kernel_gpus import counts_in_words, gpus_by_vendor
from ovi_ray.devices.probe import gpu_environment, host_memory_gb
from ovi_ray.errors import ClusterError
from ovi_ray.inputs.cluster_profile import ClusterProfile, read_profile
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.workers.actor import WorkerConfig


@dataclass(kw_only=True, slots=True, frozen=True)
class Placement:
    """A worker's settings, and the resources that Ray reserves for it."""

    config: WorkerConfig
    num_cpus: float
    num_gpus: float
    labels: dict[str, str] = field(default_factory=dict)
    """Ray label selectors that its node must match."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables, set before the worker imports torch."""


logger = logging.getLogger(__name__)
_ANSWER_S = 30.0  # for a node to start a process and look
VENDORS = ("nvidia", "amd")  # values of the node label `vendor`


def placements(job: JobSpec) -> list[Placement]:
    """One worker per GPU, or workers on CPUs if there is no GPU; with a cluster profile, the workers that it declares.

    Raises ClusterError when the job asks for more than Ray has or would leave GPUs idle, and InputError for a bad profile.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if job.cluster is not None:
        return _as_declared(job, read_profile(job.cluster), cpus=int(resources.get("CPU", 1)), gpus=gpus)
    if job.device is DeviceKind.CPU:
        return _on_cpus(job, int(resources.get("CPU", 1)))
    for told in check_gpus(job, gpus, uncounted_gpus() if job.address else []):
        logger.warning("%s", told)
    if not gpus:
        return _on_cpus(job, int(resources.get("CPU", 1)))
    threads = max(1, int(resources.get("CPU", 1)) // gpus)
    config = _config(job, device="cuda", num_threads=threads, memory_gb=job.memory_gb, host_gb=_host_gb_per_gpu())
    return _on_gpus(config, _gpus_by_vendor(), _given(job))[: job.workers]


def check_gpus(job: JobSpec, gpus: int, uncounted: Sequence[str]) -> list[str]:
    """What the user of a job must know about its `gpus`. `uncounted` tells of GPUs that Ray does not count.

    Raises ClusterError where the job would run on CPUs in place of GPUs that were asked for, or that are there.
    """
    if not gpus and (uncounted or job.device is DeviceKind.GPU):
        reason = "; ".join(uncounted) or "Ray has found none, see `ray status`"
        raise ClusterError(f"no GPU can be used: {reason}; or render on the CPUs with --device cpu")
    return [*uncounted, *([] if gpus else ["rendering on the CPU, because there is no GPU"])]


def _as_declared(job: JobSpec, cluster: ClusterProfile, *, cpus: int, gpus: int) -> list[Placement]:
    """One worker per declared device, with its declared memory, stages and speeds."""
    wanted = sum(devices.count for devices in cluster.devices.values())
    on_gpus = sum(devices.count for devices in cluster.devices.values() if devices.vendor != "cpu")
    if wanted > cpus or on_gpus > gpus:
        there = f"Ray has {cpus} CPUs and {gpus} GPUs"
        raise ClusterError(f"{job.cluster} declares {wanted} workers, {on_gpus} of them on GPUs, and {there}")
    placed: list[Placement] = []
    for name, devices in cluster.devices.items():
        config = _config(
            job,
            device="cpu" if devices.vendor == "cpu" else "cuda",
            num_threads=max(1, cpus // wanted),
            memory_gb=devices.memory_gb,
            host_gb=_host_gb_per_gpu() or None,
            declared=devices.profile(name),
        )
        if devices.vendor == "cpu":
            placed += [Placement(config=config, num_cpus=1, num_gpus=0)] * devices.count
        else:
            vendor = devices.vendor if devices.vendor in _gpus_by_vendor() else ""
            placed += _on_gpus(config, {vendor: devices.count}, _given(job))
    return placed


def _on_cpus(job: JobSpec, cpus: int) -> list[Placement]:
    count = job.workers or 1
    if count > cpus:
        raise ClusterError(f"the job asks for {count} workers and Ray has {cpus} CPUs; use --workers {cpus} or fewer")
    # Workers on one machine share its memory; on a cluster each node holds about as many as it has CPUs.
    share = count / max(1, len(ray.nodes()))
    memory_gb = job.memory_gb or host_memory_gb() / max(1.0, share)
    config = _config(job, device="cpu", num_threads=max(1, cpus // count), memory_gb=memory_gb, host_gb=None)
    return [Placement(config=config, num_cpus=1, num_gpus=0)] * count


def _given(job: JobSpec) -> Mapping[str, str]:
    """The environment that the user chose for workers, which goes before the vendor's."""
    return job.environment if job.address else {**os.environ, **job.environment}


def _on_gpus(
    config: WorkerConfig, gpus: dict[str, int], given: Mapping[str, str] = MappingProxyType({})
) -> list[Placement]:
    """One worker per GPU, alternating between vendors, each on a node of its vendor and in its vendor's environment."""
    by_vendor = [
        [
            Placement(
                config=config,
                num_cpus=1,
                num_gpus=1,
                labels=_selector(vendor, gpus),
                environment={name: given.get(name, value) for name, value in gpu_environment(vendor).items()},
            )
        ]
        * count
        for vendor, count in gpus.items()
    ]
    return [placement for turn in zip_longest(*by_vendor) for placement in turn if placement is not None]


def _selector(vendor: str, gpus: dict[str, int]) -> dict[str, str]:
    """Label selector for a vendor's nodes; "" stands for nodes without a label, and selects all if none is labelled."""
    if vendor:
        return {"vendor": vendor}
    return {"vendor": f"!in({','.join(VENDORS)})"} if len(gpus) > 1 else {}


def _gpus_by_vendor() -> dict[str, int]:
    """Number of GPUs by the `vendor` label of their nodes; "" for nodes without one."""
    counts: dict[str, int] = {}
    for node in ray.nodes():
        if node["Alive"] and (gpus := int(node["Resources"].get("GPU", 0))):
            label = node["Labels"].get("vendor", "")
            vendor = label if label in VENDORS else ""
            counts[vendor] = counts.get(vendor, 0) + gpus
    return counts


def uncounted_gpus() -> list[str]:
    """A line for each node of the cluster that has GPUs and that Ray counts none on, as it says itself."""
    nodes = [node for node in ray.nodes() if node["Alive"] and not node["Resources"].get("GPU")]
    asked = {
        ray.remote(gpus_by_vendor)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(): node["NodeManagerHostname"]
        for node in nodes
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    found: dict[str, dict[str, int]] = {}
    for ref in answered:
        with suppress(RayError):  # of a node that is lost meanwhile, or has no ovi-ray: workers there will tell
            found[asked[ref]] = ray.get(ref)
    return [
        f"{host} has {counts_in_words(counts)} that Ray does not count: start Ray there with --num-gpus"
        f" {max(counts.values())}"
        for host, counts in found.items()
        if counts
    ]


def _host_gb_per_gpu() -> float:
    """GB of host memory per GPU, on the node that has the least."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return min((node.get("memory", 0.0) / node["GPU"] for node in nodes), default=0.0) / 1e9


def _config(
    job: JobSpec,
    *,
    device: str,
    num_threads: int,
    memory_gb: float | None,
    host_gb: float | None,
    declared: DeviceProfile | None = None,
) -> WorkerConfig:
    return WorkerConfig(
        ckpt_dir=str(job.ckpt_dir.absolute()),
        model_name=job.model_name,
        dtype=job.dtype,
        device=device,
        num_threads=num_threads,
        memory_gb=memory_gb,
        attention=job.attention,
        allow_inexact=job.allow_inexact,
        weights=job.weight_format,
        compile=job.compile,
        cpu_offload=job.cpu_offload,
        host_gb=host_gb,
        declared=declared,
    )
