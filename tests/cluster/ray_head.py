"""A real Ray head with its dashboard and a token, on loopback, in a process group of its own."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ovi_ray.errors import ClusterError
from ovi_ray.submission.ray_client import RayClient
from tests.support.cli import ROOT
from tests.support.s3 import free_port
from tests.support.waiting import wait_until

DASHBOARD = ("aiohttp", "aiohttp_cors", "opencensus")
"""Packages that ray[default] brings."""
PATIENT_RAY = (
    "from tests.support.ray_start import be_patient; be_patient(); from ray.scripts.scripts import main; main()"
)
"""The command `ray`, on a machine that is busy."""


def why_not() -> str:
    """Why a head with a dashboard cannot be started here; "" if it can."""
    missing = [name for name in DASHBOARD if importlib.util.find_spec(name) is None]
    return f"ray[default] is not installed: see `make test-cluster` ({', '.join(missing)})" if missing else ""


@dataclass(kw_only=True, slots=True, frozen=True)
class RayHead:
    """A head that runs."""

    address: str
    """Of its dashboard."""
    environment: dict[str, str]
    """Variables with which a client is let in."""
    gcs: str
    """The address at which drivers join."""
    pid: int
    """Of the process that started it."""

    def kill(self, *, with_node: bool) -> None:
        """Kill Ray's control store alone, as if other nodes went on, or all that runs here.

        `ray start --block` would end the node as well, and is kept from it.
        """
        start = psutil.Process(self.pid)
        programs = start.children(recursive=True)
        start.suspend()
        for program in programs:
            if with_node or program.name() == "gcs_server":
                with suppress(psutil.NoSuchProcess):
                    program.kill()


@contextmanager
def running_head(folder: Path, *, cpus: int = 2, host: str = "127.0.0.1") -> Iterator[RayHead]:
    """A head for the time of the block, whose jobs find this Python as `python`.

    Drivers on this machine can join it at its own address alone, because Ray takes that for 127.0.0.1.
    """
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef")
    token.chmod(0o600)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(
        prefix="ovi-", ignore_cleanup_errors=True
    ) as temporary:  # sockets need a short path
        options = {
            "--port": port,
            "--dashboard-port": dashboard,
            "--dashboard-host": "127.0.0.1",
            "--node-ip-address": host,
            "--include-dashboard": "true",
            "--num-cpus": cpus,
            "--object-store-memory": 200_000_000,
            "--temp-dir": temporary,
            "--ray-client-server-port": free_port(),
            "--dashboard-agent-listen-port": free_port(),
            "--dashboard-agent-grpc-port": free_port(),
            "--runtime-env-agent-port": free_port(),
            "--metrics-export-port": free_port(),
            "--min-worker-port": 0,
            "--max-worker-port": 0,
        }
        flat = [str(part) for option in options.items() for part in option]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **access, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (folder / "head.log").open("w") as log:
            head = subprocess.Popen(
                [sys.executable, "-c", PATIENT_RAY, "start", "--head", "--block", *flat],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        running = RayHead(address=f"127.0.0.1:{dashboard}", environment=access, gcs=f"{host}:{port}", pid=head.pid)
        try:
            wait_until(
                lambda: _has_nodes(dashboard, token),
                give_up=lambda: "" if head.poll() is None else (folder / "head.log").read_text(),
                every_s=0.5,
            )
            yield running
        finally:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(head.pid).resume()
            head.terminate()
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


def _has_nodes(dashboard: int, token: Path) -> bool:
    """Whether the head answers, and its own node has joined."""
    try:
        return bool(RayClient(f"127.0.0.1:{dashboard}", token_path=token).nodes())
    except ClusterError:
        return False
