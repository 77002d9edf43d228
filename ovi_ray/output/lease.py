"""What a driver writes where its output lies to have it alone: a locked file on a disk, an object in a store.

Times are the storage's own, on both sides of every comparison: the clocks of two machines may differ by minutes.
"""

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self
from uuid import uuid4

from ovi_ray.errors import OutputInUse
from ovi_ray.storage.object_store import RemotePath
from ovi_ray.storage.paths import list_files

LOCK = ".driver.lock"
STALE_S = 60.0  # of silence, after which a driver on another machine is taken for dead


@dataclass(kw_only=True, slots=True, frozen=True)
class Owner:
    """A driver, told from every other one there ever was."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=lambda: _machine())
    born: str = field(default_factory=lambda: _born(os.getpid()))
    token: str = field(default_factory=lambda: uuid4().hex)

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """None for what is no owner: a lock that was released, or is half written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine since that was started."""
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_here and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(kw_only=True, slots=True, frozen=True)
class Sighting:
    """Another driver's claim, which may be that of a dead one."""

    owner: Owner
    beat_at: float
    """When its owner last touched it."""
    silent_s: float
    """Seconds since then."""


class Claim(Protocol):
    """What one driver has, or wants, of an output location. All methods raise OSError."""

    def take(self) -> Sighting | None:
        """Have it, unless another driver may: gives that one. Raises OutputInUse where it is certain."""

    def beat(self) -> bool:
        """Show that the owner is alive; false when the location is another's by now."""

    def release(self) -> None:
        """Let the next driver in."""


class FileClaim:
    """A file that is locked, and touched for machines that do not see the lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = Owner()
        self._file: IO[str] = (folder / LOCK).open("a+", encoding="utf-8")

    def take(self) -> Sighting | None:
        """See Claim."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputInUse(refusal(str(self._folder), self._read())) from None
        except OSError:  # a file system without locks: the beats alone decide
            pass
        other = self._read()
        if other is not None and not other.is_dead:
            beat_at = os.fstat(self._file.fileno()).st_mtime
            sighting = _sighting(str(self._folder), other, beat_at, now=self._now())
            if sighting is not None:
                return sighting
        self._write(self._owner.to_json())
        return None

    def beat(self) -> bool:
        """See Claim."""
        if self._read() != self._owner:
            return False
        os.utime(self._file.fileno())
        return True

    def release(self) -> None:
        """See Claim."""
        with suppress(OSError):
            if self._read() == self._owner:
                self._write("")
        self._file.close()

    def _now(self) -> float:
        """The time by the clock of the file system, which need not be that of this machine."""
        probe = self._folder / f"{LOCK}.{self._owner.token}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _read(self) -> Owner | None:
        self._file.seek(0)
        return Owner.from_json(self._file.read())

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


class StoreClaim:
    """An object beside those of other drivers. Each is written before the others are listed, so of two that come at the
    same time one sees the other at least, and both may be refused, but never neither.
    """

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder
        self._owner = Owner()
        self._object = folder / LOCK / f"{self._owner.token}.json"

    def take(self) -> Sighting | None:
        """See Claim."""
        self._write()
        now = self._object.stat().st_mtime
        for name in list_files(self._folder / LOCK, ".json").column("name").to_pylist():
            other = self._folder / LOCK / name
            if other == self._object:
                continue
            sighting = self._judge(other, now)
            if sighting is not None:
                self._object.unlink(missing_ok=True)
                return sighting
            other.unlink(missing_ok=True)
        return None

    def beat(self) -> bool:
        """See Claim."""
        if not self._object.exists():
            return False
        self._write()
        return True

    def release(self) -> None:
        """See Claim."""
        self._object.unlink(missing_ok=True)

    def _judge(self, other: RemotePath, now: float) -> Sighting | None:
        """None for the claim of a driver that is dead, or that has gone meanwhile."""
        try:
            owner, beat_at = Owner.from_json(other.read_text()), other.stat().st_mtime
        except FileNotFoundError:
            return None
        if owner is None or owner.is_dead:
            return None
        return _sighting(str(self._folder), owner, beat_at, now=now)

    def _write(self) -> None:
        self._object.write_bytes(self._owner.to_json().encode())


def _sighting(output: str, owner: Owner, beat_at: float, *, now: float) -> Sighting | None:
    """A driver that is not known to be dead; None where it was silent for too long."""
    if now - beat_at >= STALE_S:
        return None
    if owner.is_here:
        raise OutputInUse(refusal(output, owner))
    return Sighting(owner=owner, beat_at=beat_at, silent_s=now - beat_at)


def refusal(output: str, owner: Owner | None) -> str:
    """What to tell the second driver."""
    return (
        f"{output} is in use: {owner or 'another driver'} renders into it now. Wait for it, stop it, or give another"
        f" --out. (Should its machine be gone, it is free after {STALE_S:.0f} s.)"
    )


def _machine() -> str:
    """This machine since it was started, and its process numbers: those of a container are its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  (no path)
    except OSError:  # not Linux
        return socket.gethostname()


def _born(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
