"""A Ray cluster on this machine whose nodes can be lost as machines are: everything on one is dead at the same moment."""

import os
import signal
from contextlib import suppress
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.harness import ChaosJob
from tests.support.ray_start import start_patiently
from tests.support.waiting import PATIENCE_S
from tests.support.worker_hooks import parent

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
SYSTEM = {
    "max_direct_call_object_size": 600,  # bytes: embeddings lie on the node that made them, as real ones do
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,  # a killed node refuses connections and is dead within seconds
    "health_check_timeout_ms": 120_000,  # one that is only slow is not
}


class Nodes:
    """A head that has no room for workers, and nodes with room for one each."""

    def __init__(self, count: int) -> None:
        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM}
        self._cluster = start_patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """A new node, ready for workers."""
        node = start_patiently(lambda: self._cluster.add_node(wait=False, **NODE))
        self._cluster.wait_for_nodes(PATIENCE_S)
        return node

    def all(self) -> list[Any]:
        """The nodes that workers may be on."""
        return list(self._cluster.worker_nodes)

    def kill(self, node: Any, job: ChaosJob) -> None:
        """Kill every process on a node, the raylet first: it would report the deaths of the others."""
        for pid in (_raylet(node), *workers_on(node, job)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


def workers_on(node: Any, job: ChaosJob) -> set[int]:
    """A job's workers on a node: children of its raylet."""
    return {pid for pid in job.worker_pids() if parent(pid) == _raylet(node)}


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
