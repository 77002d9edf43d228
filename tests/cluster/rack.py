"""A Ray cluster on three hosts: a head that asks for a token and has no room for workers, and two nodes with room for one."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Host, running_hosts
from tests.support.waiting import wait_until
from tests.support.worker_hooks import hooked_environment

PORT, DASHBOARD = 6399, 8265
OBJECT_STORE = 200_000_000
RAY = f"{sys.executable} -m ray.scripts.scripts"
PATIENT = "export RAY_health_check_failure_threshold=6 RAY_grpc_keepalive_timeout_ms=120000"
"""A node is dead after 78 s without an answer, and a connection after 130 s. After 62 s and 30 s, as by default, a node that
was off the network for 30 s may be dead although it is back: TCP waits for up to as long again before it sends."""
HEAD = f"""\
{PATIENT}
exec {RAY} start --head --block --node-ip-address {{address}} --port {PORT} --num-cpus 0 --include-dashboard true \\
  --dashboard-host {{address}} --dashboard-port {DASHBOARD} --object-store-memory {OBJECT_STORE} --disable-usage-stats
"""
NODE = f"""\
{PATIENT}
while :; do
  {RAY} start --address {{head}}:{PORT} --block --node-ip-address {{address}} --num-cpus 1 --labels vendor={{vendor}} \\
    --object-store-memory {OBJECT_STORE} --disable-usage-stats
  sleep 1
done
"""
"""A node that was declared dead ends, and comes back as another one."""


@dataclass(kw_only=True, slots=True)
class Rack:
    """The cluster."""

    head: Host
    nodes: Sequence[Host]
    environment: dict[str, str]
    """Variables with which a client is let in."""

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://{self.head.address}:{DASHBOARD}"

    @property
    def hosts(self) -> Sequence[Host]:
        return (self.head, *self.nodes)

    def start_head(self) -> None:
        """Start Ray on the head."""
        self._start(self.head, HEAD.format(address=self.head.address))

    def start_nodes(self) -> None:
        """Start Ray on the nodes, again whenever it ends."""
        for node, vendor in zip(self.nodes, ("nvidia", "amd"), strict=True):
            self._start(node, NODE.format(head=self.head.address, address=node.address, vendor=vendor))

    def wait_for_nodes(self) -> None:
        """Wait until the head and every node are there."""
        wait_until(lambda: self._count() == len(self.hosts), every_s=1.0)

    def _count(self) -> int:
        list_nodes = (
            "from ovi_ray.submission.ray_client import RayClient;"
            f"print(len(RayClient('{self.address}', token_path=None).nodes()))"
        )
        said = self.head.run(sys.executable, "-c", list_nodes, check=False).strip()
        return int(said) if said.isdecimal() else 0

    def _start(self, host: Host, script: str) -> None:
        path = host.folder / "start.sh"
        path.write_text(script)
        host.start("sh", path, log="ray.log")

    # -- workers' hooks --------------------------------------------------------------------------------------------

    def hooks(self, **settings: Any) -> dict[str, str]:
        """The environment of a job whose workers have the hooks; they log on their own host."""
        for host in self.hosts:
            for path in (host.folder / "log").iterdir():
                path.unlink()
        return {**hooked_environment(self.head.folder.parent / "log", **settings), "OMP_NUM_THREADS": "1"}

    def hold(self, stage: str) -> None:
        """From now on every worker waits at this stage."""
        for host in self.hosts:
            (host.folder / "log" / f"hold.{stage}").touch()

    def release(self, stage: str) -> None:
        """Let every worker go on."""
        for host in self.hosts:
            (host.folder / "log" / f"hold.{stage}").unlink()


def held(host: Host) -> set[Path]:
    """The marks of workers on a host that wait."""
    return set((host.folder / "log").glob("*.held"))


def steps(*hosts: Host) -> int:
    """Denoising steps made on these hosts."""
    return sum(path.stat().st_size for host in hosts for path in (host.folder / "log").glob("*.steps"))


@contextmanager
def running_rack(folder: Path) -> Iterator[Rack]:
    """A rack for the time of the block."""
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef")
    token.chmod(0o600)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with running_hosts(folder, 3, access) as hosts:
        rack = Rack(head=hosts[0], nodes=hosts[1:], environment=access)
        rack.start_head()
        rack.start_nodes()
        rack.wait_for_nodes()
        yield rack
