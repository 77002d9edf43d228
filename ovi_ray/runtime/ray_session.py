"""Connecting to Ray: a local instance or an existing cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ovi_ray.devices.doctor import examine_node
from ovi_ray.devices.node_report import NodeReport
from ovi_ray.devices.probe import vendor_environment
from ovi_ray.errors import ClusterError
from ovi_ray.inputs.job_spec import JobSpec


@contextmanager
def ray_session(job: JobSpec) -> Iterator[None]:
    """A connection to the Ray cluster at the job's address, or to a new local one, for the time of the block.

    Raises ClusterError when Ray cannot be started or joined.
    """
    # "local" never joins a cluster that happens to run on this machine
    local = {"address": "local", "num_cpus": max(os.cpu_count() or 1, job.workers or 1)}
    options = {"address": job.address} if job.address else local
    environment = {"runtime_env": {"env_vars": job.environment}} if job.environment else {}
    try:
        ray.init(**options, **environment, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(_why_no_ray(job.address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _why_no_ray(address: str | None, error: Exception) -> str:
    if not address:
        return f"a local Ray cannot be started: {error}"
    # Ray reads the token file on its own only for the address "auto"
    hint = "if it asks for a token, share its ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    return f"the Ray cluster at {address} cannot be joined: {error}; is it up? {hint}"


def examine_cluster(address: str, ckpt_dir: str, model_name: str, *, allow_inexact: bool) -> list[NodeReport]:
    """The report of `ovi-ray doctor` for every node of a cluster, made on that node. Raises ClusterError."""
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(_why_no_ray(address, error)) from error
    try:
        tasks = [
            ray.remote(examine_node)
            .options(
                num_cpus=0,
                num_gpus=node["Resources"].get("GPU", 0),  # all of the node's, since it sees no others
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": vendor_environment(node["Labels"].get("vendor", ""))},
            )
            .remote(ckpt_dir, model_name, allow_inexact=allow_inexact)
            for node in ray.nodes()
            if node["Alive"]
        ]
        reports: list[NodeReport] = ray.get(tasks)
    finally:
        ray.shutdown()
    return reports
