"""Connecting to Ray: a local instance or an existing cluster."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ovi_ray.devices.doctor import examine_node
from ovi_ray.devices.node_report import NodeReport
from ovi_ray.devices.probe import DeviceEdge, TorchEdge, faults_of_versions, gpu_environment, node_labels, probe
from ovi_ray.errors import ClusterError, HeadLost
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime.cluster_probe import cannot_join, named_cluster, users_cluster
from ovi_ray.runtime.session_folder import session_folder
from ovi_ray.runtime.visible_devices import choose_as_ray_does

logger = logging.getLogger(__name__)
_CLIENT_TIMEOUTS = {"RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "3", "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5"}
"""Seconds for each of the three tries of Ray's client, once something answers at the port."""
_ONLY_WORKERS_THAT_ARE_ASKED_FOR = {"prestart_worker_first_driver": False}
"""Else Ray starts a process for each CPU, which workers with an environment of their own do not take over."""
_SAME_PORT = "is trying to use a port number"
"""In Ray's refusal to start, before any process: each part takes a free port by itself, and two may take the same one."""
_STARTS = 3
_START_ERRORS = (OSError, RuntimeError, ValueError, RayError)


@contextmanager
def ray_session(job: JobSpec) -> Iterator[None]:
    """A connection to the Ray cluster at the job's address, or to a new local one, for the time of the block.

    Raises ClusterError when Ray cannot be started or joined.
    """
    choose_as_ray_does(rocm=TorchEdge().is_rocm())
    environment = {"runtime_env": {"env_vars": job.environment}} if job.environment else {}
    with _joined(job.address, **environment) if job.address else _started(**node_options(job), **environment):
        yield


def node_options(job: JobSpec, edge: DeviceEdge | None = None) -> dict[str, Any]:
    """The options of `ray.init` for this machine: its CPUs, the GPUs that torch can use, and the labels for placing workers.

    Ray's own count would miss AMD GPUs without the package amdsmi, and has GPUs that this build of torch cannot use.
    """
    probed = probe(edge)
    for fault in faults_of_versions(probed):
        logger.warning("%s", fault)
    gpus = probed.gpus
    num_cpus = max(os.cpu_count() or 1, job.workers or 1)
    return {"num_cpus": num_cpus, "num_gpus": len(gpus), "labels": node_labels(gpus[0]) if gpus else {}}


@contextmanager
def _joined(address: str, **options: Any) -> Iterator[None]:
    """Ray answers at this address, as `check_joinable` has found before anything heavy was imported."""
    if named := users_cluster(address):
        logger.warning("joining the Ray cluster at %s, which RAY_ADDRESS names", named)
    try:
        with _impatient_client():
            _init(address=named_cluster(address), **options)
    except _START_ERRORS as error:
        raise cannot_join(address, error) from error
    with _shut_down():
        yield


@contextmanager
def _started(**options: Any) -> Iterator[None]:
    if named := os.environ.get("RAY_ADDRESS"):
        logger.warning(
            "starting a local Ray; the cluster at %s, which RAY_ADDRESS names, is joined with --address auto", named
        )
    with session_folder() as folder:
        try:
            with _hang_up_held():
                _init_local(_temp_dir=folder, _system_config=_ONLY_WORKERS_THAT_ARE_ASKED_FOR, **options)
        except _START_ERRORS as error:
            raise ClusterError(f"a local Ray cannot be started: {error}") from error
        with _shut_down():
            yield


@contextmanager
def _shut_down() -> Iterator[None]:
    """Disconnect from Ray after the block: in the background where the head is lost, which Ray waits for in vain."""
    try:
        yield
    except HeadLost:
        threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True).start()
        raise
    except BaseException:
        ray.shutdown()
        raise
    else:
        ray.shutdown()


@contextmanager
def _impatient_client() -> Iterator[None]:
    """Ray's client gives up within a quarter of a minute, not a whole one, and leaves it to its exception to say so."""
    for name, seconds in _CLIENT_TIMEOUTS.items():
        os.environ.setdefault(name, seconds)  # read when Ray loads its client, which "ray://" makes it do
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ray Client connection timed out")
        yield


def _init_local(**options: Any) -> None:
    """Start a Ray of this process, which joins no cluster that happens to run on this machine."""
    for started in range(1, _STARTS + 1):
        try:
            _init(address="local", **options)
        except ValueError as error:
            if _SAME_PORT not in str(error) or started == _STARTS:
                raise
        else:
            break


def _init(**options: Any) -> None:
    ray.init(**options, include_dashboard=False, log_to_driver=False, logging_level="error")


@contextmanager
def _hang_up_held() -> Iterator[None]:
    """SIGHUP arrives after the block, and never at the processes that are started in it.

    A terminal that is closed sends it to all of them, and workers must live on to save what they do.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signal
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def examine_cluster(address: str, ckpt_dir: str, model_name: str, **options: bool) -> list[NodeReport]:
    """The report of `ovi-ray doctor` for every node of a cluster, made on that node; `options` are those of `examine_node`.

    Raises ClusterError, and what `examine_node` does.
    """
    with _joined(address):
        tasks = [
            ray.remote(examine_node)
            .options(
                num_cpus=0,
                num_gpus=node["Resources"].get("GPU", 0),  # all of the node's, since it sees no others
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": _environment_of(node)},
            )
            .remote(ckpt_dir, model_name, **options)
            for node in ray.nodes()
            if node["Alive"]
        ]
        try:
            reports: list[NodeReport] = ray.get(tasks)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
    return reports


def _environment_of(node: dict[str, Any]) -> dict[str, str]:
    return gpu_environment(node["Labels"].get("vendor", "")) if node["Resources"].get("GPU") else {}
