"""The workers of a job, and the resources that each reserves of the Ray cluster."""

import logging
import os
from collections.abc import Hashable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ovi_ray.devices.kernel_gpus import counts_in_words, gpus_by_vendor
from ovi_ray.devices.probe import gpu_environment, host_memory_gb
from ovi_ray.errors import ClusterError
from ovi_ray.inputs.cluster_profile import ClusterProfile, read_profile
from ovi_ray.inputs.job_spec import DeviceKind, JobSpec, Weights
from ovi_ray.printing import counted
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

    @property
    def kind(self) -> Hashable:
        """Equal for workers that can stand in for each other: their slots are counted together when nodes come and go."""
        declared = self.config.declared
        return (self.config.device, declared and declared.name, *sorted(self.labels.items()))

    @property
    def occupies(self) -> str:
        """The name of the devices that it takes one of, as in `devices`."""
        return _device_name(self.labels.get("vendor", "")) if self.num_gpus else "CPU"

    @property
    def resources(self) -> dict[str, float]:
        """The reserved resources, by Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: count for name, count in wanted.items() if count}


logger = logging.getLogger(__name__)
_ANSWER_S = 30.0  # for a node to start a process and look
VENDORS = ("nvidia", "amd")  # values of the node label `vendor`


def placements(job: JobSpec, without: Set[str] = frozenset()) -> list[Placement]:
    """One worker per GPU, or on each node if there is no GPU; with a cluster profile, the workers that it declares.

    Nodes whose ids are in `without` are left out. Raises ClusterError when the job asks for more than Ray has, unless nodes may
    be added for it, or would leave GPUs idle, and InputError for a bad profile.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
    cpus, gpus = _total(nodes, "CPU"), _total(nodes, "GPU")
    if job.cluster is not None:
        return _as_declared(job, read_profile(job.cluster), nodes, cpus=cpus, gpus=gpus)
    if job.device is DeviceKind.CPU:
        return _on_cpus(job, nodes, cpus)
    if not _may_grow(job):
        for told in check_gpus(job, gpus, uncounted_gpus(nodes) if job.address else []):
            logger.warning("%s", told)
        if not gpus:
            return _on_cpus(job, nodes, cpus)
    threads = max(1, cpus // max(1, gpus))
    config = _config(job, device="cuda", num_threads=threads, memory_gb=job.memory_gb, host_gb=_host_gb_per_gpu(nodes))
    by_vendor = _gpus_by_vendor(nodes)
    if _may_grow(job) and job.workers is not None:
        by_vendor = {next(iter(by_vendor)) if len(by_vendor) == 1 else "": job.workers}
    return _on_gpus(config, by_vendor, _given(job))[: job.workers]


def check_gpus(job: JobSpec, gpus: int, uncounted: Sequence[str]) -> list[str]:
    """Messages to the user about the `gpus` of a job. `uncounted` has a line for each node whose GPUs Ray does not count.

    Raises ClusterError where the job would run on CPUs in place of GPUs that were asked for, or that are there.
    """
    if not gpus and (uncounted or job.device is DeviceKind.GPU):
        reason = "; ".join(uncounted) or "Ray has found none, see `ray status`"
        raise ClusterError(f"no GPU can be used: {reason}; or render on the CPUs with --device cpu")
    return [*uncounted, *([] if gpus else ["rendering on the CPU, because there is no GPU"])]


def devices() -> dict[str, int]:
    """The devices of the cluster, busy ones included: CPUs, and GPUs by the vendor that their nodes are labelled with."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = {_device_name(vendor): count for vendor, count in _gpus_by_vendor(nodes).items()}
    return {"CPU": _total(nodes, "CPU"), **gpus}


def _device_name(vendor: str) -> str:
    return f"GPU of {vendor}" if vendor in VENDORS else "GPU"


def _total(nodes: Sequence[Mapping[str, Any]], resource: str) -> int:
    return int(sum(node["Resources"].get(resource, 0) for node in nodes))


def _may_grow(job: JobSpec) -> bool:
    """Whether nodes are added for the job; on a Ray of its own there are none to add."""
    return job.elastic and job.address is not None


def _as_declared(
    job: JobSpec, cluster: ClusterProfile, nodes: Sequence[Mapping[str, Any]], *, cpus: int, gpus: int
) -> list[Placement]:
    """One worker per declared device, with its declared memory, stages and speeds."""
    wanted = sum(devices.count for devices in cluster.devices.values())
    on_gpus = sum(devices.count for devices in cluster.devices.values() if devices.vendor != "cpu")
    if (wanted > cpus or on_gpus > gpus) and not _may_grow(job):
        there = f"Ray has {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
        raise ClusterError(
            f"{job.cluster} declares {counted(wanted, 'worker')}, {on_gpus} of them on GPUs, and {there}"
        )
    vendors = _gpus_by_vendor(nodes)
    placed: list[Placement] = []
    for name, devices in cluster.devices.items():
        config = _config(
            job,
            device="cpu" if devices.vendor == "cpu" else "cuda",
            num_threads=max(1, cpus // wanted),
            memory_gb=devices.memory_gb,
            host_gb=_host_gb_per_gpu(nodes),
            declared=devices.profile(name),
        )
        if devices.vendor == "cpu":
            placed += [Placement(config=config, num_cpus=1, num_gpus=0)] * devices.count
        else:
            vendor = devices.vendor if devices.vendor in vendors else ""
            placed += _on_gpus(config, {vendor: devices.count}, _given(job))
    return placed


def _on_cpus(job: JobSpec, nodes: Sequence[Mapping[str, Any]], cpus: int) -> list[Placement]:
    """As many workers as the job asks for, by default one on each node that has a CPU for it."""
    hosts = sum(node["Resources"].get("CPU", 0) >= 1 for node in nodes)
    count = job.workers or max(1, hosts)
    if not cpus and not _may_grow(job):
        raise ClusterError("the job needs CPUs and Ray has none for workers; start nodes, or see `ray status`")
    if count > cpus and not _may_grow(job):
        raise ClusterError(
            f"the job asks for {counted(count, 'worker')} and Ray has {counted(cpus, 'CPU')}; use --workers {cpus} or fewer"
        )
    # Workers on one machine share its memory; on a cluster each node holds about as many as it has CPUs.
    share = count / max(1, hosts)
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


def _gpus_by_vendor(nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Number of GPUs by the `vendor` label of their nodes; "" for nodes without one."""
    counts: dict[str, int] = {}
    for node in nodes:
        if gpus := int(node["Resources"].get("GPU", 0)):
            label = node["Labels"].get("vendor", "")
            vendor = label if label in VENDORS else ""
            counts[vendor] = counts.get(vendor, 0) + gpus
    return counts


def uncounted_gpus(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of these nodes that has GPUs and that Ray counts none on, as it says itself."""
    asked = {
        ray.remote(gpus_by_vendor)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(): node["NodeManagerHostname"]
        for node in nodes
        if not node["Resources"].get("GPU")
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


def _host_gb_per_gpu(nodes: Sequence[Mapping[str, Any]]) -> float | None:
    """GB of host memory per GPU, on the node that has the least; None while there is none with a GPU."""
    with_gpus = [node["Resources"] for node in nodes if node["Resources"].get("GPU")]
    return min((node.get("memory", 0.0) / node["GPU"] / 1e9 for node in with_gpus), default=None)


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
        stream_blocks=job.weights is Weights.STREAMED,
        compile=job.compile,
        kernels=job.kernels,
        cpu_offload=job.cpu_offload,
        host_gb=host_gb,
        quality=job.quality,
        declared=declared,
    )
