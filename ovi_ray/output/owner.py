"""The identity of a driver: which process on which machine, and whether it still runs."""

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

import psutil

from ovi_ray.storage.scratch import process_namespace


@dataclass(kw_only=True, slots=True, frozen=True)
class Owner:
    """A driver process, distinct from every other one at any time."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=lambda: _machine())
    """The machine since its last boot, and the container on it; process ids are comparable within one."""
    born: str = field(default_factory=lambda: _start_time(os.getpid()))
    """When the process started, in the kernel's ticks or, off Linux, in seconds: process ids are used again."""
    token: str = field(default_factory=lambda: uuid4().hex)

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """The owner in a lease; None for a lease that was released or is half written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran since the last boot, on this machine."""
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended, which only its own machine can tell."""
        return self.is_here and _start_time(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return socket.gethostname()
    return f"{socket.gethostname()} {boot} pid:[{process_namespace()}]"


def _start_time(pid: int) -> str:
    """When a process started, as in `Owner.born`; "" where there is no such process, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if Path("/proc/self").exists() else _start_time_off_linux(pid)
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _start_time_off_linux(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else str(process.create_time())
    except psutil.Error:
        return ""
