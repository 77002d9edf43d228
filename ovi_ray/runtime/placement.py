"""Which workers a job gets, and what each must reserve of the Ray cluster."""

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import ray

from ovi_ray.devices.probe import host_memory_gb, vendor_environment
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
        """What Ray reserves, by Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: count for name, count in wanted.items() if count}


VENDORS = ("nvidia", "amd")  # values of the node label `vendor`


def placements(job: JobSpec, without: Set[str] = frozenset()) -> list[Placement]:
    """One worker per GPU, or on each node if Ray has no GPU; with a cluster profile, the workers that it declares.

    Nodes whose ids are in `without` are left out. Raises ClusterError when the job asks for more than Ray has, unless nodes may
    be added for it, and InputError for a bad profile.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
    cpus, gpus = _total(nodes, "CPU"), _total(nodes, "GPU")
    if job.cluster is not None:
        return _as_declared(job, read_profile(job.cluster), nodes, cpus=cpus, gpus=gpus)
    if job.device is DeviceKind.CPU or (job.device is DeviceKind.AUTO and not gpus):
        return _on_cpus(job, nodes, cpus)
    if not gpus and not _may_grow(job):
        raise ClusterError("the job asks for GPUs and Ray has found none; use --device cpu, or see `ray status`")
    threads = max(1, cpus // max(1, gpus))
    config = _config(job, device="cuda", num_threads=threads, memory_gb=job.memory_gb, host_gb=_host_gb_per_gpu(nodes))
    by_vendor = _gpus_by_vendor(nodes)
    if _may_grow(job) and job.workers is not None:
        by_vendor = {next(iter(by_vendor)) if len(by_vendor) == 1 else "": job.workers}
    return _on_gpus(config, by_vendor)[: job.workers]


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
        there = f"Ray has {cpus} CPUs and {gpus} GPUs"
        raise ClusterError(f"{job.cluster} declares {wanted} workers, {on_gpus} of them on GPUs, and {there}")
    vendors = _gpus_by_vendor(nodes)
    placed: list[Placement] = []
    for name, devices in cluster.devices.items():
        config = _config(
            job,
            device="cpu" if devices.vendor == "cpu" else "cuda",
            num_threads=max(1, cpus // wanted),
            memory_gb=devices.memory_gb,
            host_gb=None,
            declared=devices.profile(name),
        )
        if devices.vendor == "cpu":
            placed += [Placement(config=config, num_cpus=1, num_gpus=0)] * devices.count
        else:
            placed += _on_gpus(config, {devices.vendor if devices.vendor in vendors else "": devices.count})
    return placed


def _on_cpus(job: JobSpec, nodes: Sequence[Mapping[str, Any]], cpus: int) -> list[Placement]:
    """As many workers as the job asks for, by default one on each node that has a CPU for it."""
    hosts = sum(node["Resources"].get("CPU", 0) >= 1 for node in nodes)
    count = job.workers or max(1, hosts)
    if not cpus and not _may_grow(job):
        raise ClusterError("the job needs CPUs and Ray has none for workers; start nodes, or see `ray status`")
    if count > cpus and not _may_grow(job):
        raise ClusterError(f"the job asks for {count} workers and Ray has {cpus} CPUs; use --workers {cpus} or fewer")
    # Workers on one machine share its memory; on a cluster each node holds about as many as it has CPUs.
    share = count / max(1, hosts)
    memory_gb = job.memory_gb or host_memory_gb() / max(1.0, share)
    config = _config(job, device="cpu", num_threads=max(1, cpus // count), memory_gb=memory_gb, host_gb=None)
    return [Placement(config=config, num_cpus=1, num_gpus=0)] * count


def _on_gpus(config: WorkerConfig, gpus: dict[str, int]) -> list[Placement]:
    """One worker per GPU, alternating between vendors, each on a node of its vendor and in its vendor's environment."""
    by_vendor = [
        [
            Placement(
                config=config,
                num_cpus=1,
                num_gpus=1,
                labels=_selector(vendor, gpus),
                environment=vendor_environment(vendor),
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
        weights=job.weights,
        compile=job.compile,
        cpu_offload=job.cpu_offload,
        host_gb=host_gb,
        declared=declared,
    )
