"""Starting Ray on a machine that is busy, with the processes that it needs.

A raylet (Ray 2.60) aborts when its two agents have not written their ports to files within 15 s, which no setting changes. On a
loaded machine their imports alone take longer. It does not wait for ports that it is given, so here it is given all of them.

Beside them every head starts three more Python programs, which nothing here uses: the monitor of its autoscaler, the one that
forwards logs, and a dashboard that has been declined. Together they take as long as a small job, so they are left out.
"""

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from tests.support.s3 import free_port
from tests.support.waiting import PATIENCE_S

ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # the default, 15, leaves workers a hundredth of the CPUs beside eight busy processes
    "RAY_prestart_worker_first_driver": "0",  # as in the program: no worker that nobody asks for
    "RAY_worker_register_timeout_seconds": f"{PATIENCE_S:.0f}",  # of a worker process; else 60
    "RAY_raylet_start_wait_time_s": f"{PATIENCE_S / 3:.0f}",
    "RAY_gcs_server_port_wait_time_s": f"{PATIENCE_S / 3:.0f}",
}
"""Settings for Ray's processes in tests."""
START_ATTEMPTS = 5
T = TypeVar("T")
UNUSED = {"no_monitor": True, "include_log_monitor": False}
"""Parameters of a node."""
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def start_patiently(start: Callable[[], T]) -> T:
    """The result of `start`; it starts a node, and is called again where the raylet aborts all the same."""
    be_patient()
    for _ in range(START_ATTEMPTS - 1):
        with suppress(Exception):
            return start()
    return start()


def be_patient(runtime_env: Any = None) -> Any:
    """Prepare every node that this process starts. As RAY_RUNTIME_ENV_HOOK it runs in each `ray.init`."""
    from ray._private import services
    from ray._private.parameter import RayParams

    if not hasattr(RayParams.__init__, "__wrapped__"):
        RayParams.__init__ = _with_parameters(RayParams.__init__)
        services.start_api_server = _only_if_asked_for(services.start_api_server)
        services.start_ray_process = _with_listen_port(services.start_ray_process)
    return runtime_env


def _with_parameters(initialize: Any) -> Any:
    @functools.wraps(initialize)
    def patient_initialize(self: Any, *args: Any, **given: Any) -> None:
        ports = {name: free_port() for name in AGENT_PORTS if not given.get(name)}
        initialize(self, *args, **{**UNUSED, **given, **ports})

    return patient_initialize


def _only_if_asked_for(start_dashboard: Any) -> Any:
    """A declined dashboard loads no page, but `ray.init` waits until it runs."""

    @functools.wraps(start_dashboard)
    def started(include_dashboard: bool | None, *args: Any, **options: Any) -> Any:
        return start_dashboard(include_dashboard, *args, **options) if include_dashboard else (None, None)

    return started


def _with_listen_port(start_process: Any) -> Any:
    """Ray tells this port to the agent alone."""

    @functools.wraps(start_process)
    def patient_start(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == "raylet":
            (port,) = re.findall(r"--listen-port=(\d+)", " ".join(command))
            command = [*command, f"--dashboard_agent_listen_port={port}"]
        return start_process(command, process_type, *args, **options)

    return patient_start
