"""Several hosts on one machine: each has its own processes, network, mounts and name, and all are on one bridge.

The files of this machine are the same on all of them, but for /tmp/ray, /dev/shm and the folder `log`. A host ends with all of
its processes.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cli import ROOT
from tests.support.waiting import wait_until

PROGRAMS = ("ip", "ss", "unshare", "nsenter", "mount", "pgrep")
NAMESPACES = ("--pid", "--fork", "--mount-proc", "--mount", "--net", "--uts", "--ipc", "--kill-child")
TRIAL = """\
set -e; hostname trial; mount -t tmpfs tmpfs /mnt
ip link add br0 type bridge; ip link add name v0 type veth peer name v1; ip addr add 10.77.0.1/24 dev v0
"""
"""The needs of a host from the kernel, tried in namespaces that end with it."""
SUBNETS = 250
BOOT = """\
ip link set lo up; hostname {name}
mkdir -p /tmp/ray && mount --bind {folder}/ray /tmp/ray; mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind {folder}/log {folder}/../log
trap : TERM; sleep infinity & while :; do wait; done
"""
"""Process 1 of a host: bash, which also waits for processes that have lost their parents."""


def why_not() -> str:
    """Why hosts cannot be made here; "" if they can."""
    if os.geteuid() != 0:
        return "only root can make hosts"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(["unshare", *NAMESPACES, "sh", "-c", TRIAL], capture_output=True, text=True, check=False)
    return f"this machine allows no hosts of their own: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(kw_only=True, slots=True)
class Host:
    """One host. Its processes end with it."""

    name: str
    address: str
    folder: Path
    pid: int
    """Of its process 1, on this machine."""
    switch: str
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: object) -> list[str]:
        """The command that runs another one on this host."""
        inside = ["nsenter", "-t", str(self.pid), "--pid", "--mount", "--net", "--uts", "--ipc", f"--wd={ROOT}"]
        return [*inside, *map(str, arguments)]

    def run(self, *arguments: object, check: bool = True) -> str:
        """The output of a command on this host."""
        return subprocess.run(
            self.command(*arguments), env=self._environment(), capture_output=True, text=True, check=check, timeout=120
        ).stdout

    def start(self, *arguments: object, log: str) -> subprocess.Popen[bytes]:
        """Start a command on this host."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                self.command(*arguments), env=self._environment(), stdout=file, stderr=file, start_new_session=True
            )
        self.started.append(process)
        return process

    def cut(self) -> None:
        """Take the host off the network."""
        _ip("-n", self.switch, "link", "set", self.name, "down")

    def connect(self) -> None:
        """Put it back."""
        _ip("-n", self.switch, "link", "set", self.name, "up")

    def signal(self, pattern: str, number: signal.Signals) -> int:
        """Send a signal to the processes of this host whose command line matches. Returns how many there are."""
        found = self.run("pgrep", "-f", pattern, check=False).split()
        if found:
            self.run("kill", f"-{number.value}", *found, check=False)
        return len(found)

    def crash(self) -> None:
        """Kill every process that was started on this host."""
        self.run("sh", "-c", "kill -9 -1", check=False)

    def remove(self) -> None:
        """End the host."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for process in self.started:
            process.wait()

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(self.folder / "home"), "TMPDIR": "/tmp"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HOOKS_"))}
        return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **home, **self.environment}


@contextmanager
def running_hosts(folder: Path, count: int, environment: dict[str, str]) -> Iterator[Sequence[Host]]:
    """Hosts h1, h2, ... with the addresses 10.77.N.1, ... for the time of the block; this machine is 10.77.N.254.

    N is the first number that nobody uses, so that several processes may have hosts at the same time.
    """
    switch, subnet = _new_switch()
    hosts: list[Host] = []
    try:
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        _ip("link", "add", switch, "type", "veth", "peer", "name", "here", "netns", switch)
        _ip("-n", switch, "link", "set", "here", "master", "br0", "up")
        _ip("addr", "add", f"{subnet}.254/24", "dev", switch)
        _ip("link", "set", switch, "up")
        for number in range(1, count + 1):
            hosts.append(_booted(folder, number, switch, subnet, environment))
        yield hosts
    finally:
        for host in hosts:
            host.remove()
        _ip("netns", "del", switch, check=False)
        _ip("link", "del", switch, check=False)


def _new_switch() -> tuple[str, str]:
    """A network namespace for the bridge, whose name nobody else has, and its subnet."""
    for number in range(SUBNETS):
        with suppress(subprocess.CalledProcessError):  # somebody has it
            _ip("netns", "add", f"ovi{number}")
            return f"ovi{number}", f"10.77.{number}"
    raise RuntimeError(f"no free network namespace: see `ip netns` ({SUBNETS} are in use)")


def _booted(folder: Path, number: int, switch: str, subnet: str, environment: dict[str, str]) -> Host:
    name = f"h{number}"
    own = folder / name
    for part in ("ray", "home", "log", "../log"):
        (own / part).mkdir(parents=True, exist_ok=True)
    boot = BOOT.format(name=name, folder=own)
    parent = subprocess.Popen(
        ["unshare", *NAMESPACES, "bash", "-c", boot], start_new_session=True, stderr=subprocess.DEVNULL
    )
    pid = int(wait_until(lambda: _child_of(parent.pid)))
    address = f"{subnet}.{number}"
    _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("-n", switch, "link", "set", name, "master", "br0", "up")
    host = Host(
        name=name, address=address, folder=own, pid=pid, switch=switch, environment=environment, started=[parent]
    )
    wait_until(lambda: host.run("hostname").strip() == name)
    for command in (
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        "route add default dev eth0",  # it makes Ray find the address; nothing leaves the bridge
    ):
        host.run("ip", *command.split())
    return host


def _child_of(pid: int) -> str:
    return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.strip()


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
