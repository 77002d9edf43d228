"""The lease of an output folder: what a driver writes there to claim it exclusively, and renews to show that it is alive.

FileLease    on a disk: a locked file whose time of change is the heartbeat, for machines that do not see the lock
ObjectLease  in an object store: one object, created if absent and renewed by compare-and-swap, so exactly one driver has it
ClaimLease   in HDFS and other stores that have neither: one file a driver, each written before the others are listed

Times are those of the storage, on both sides of every comparison: the clocks of two machines may differ by minutes.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

from ovi_ray.errors import OutputInUse, StorageUnavailable
from ovi_ray.output.owner import Owner
from ovi_ray.storage.file_locks import lock_exclusively
from ovi_ray.storage.local_store import named_errors
from ovi_ray.storage.paths import Location, list_files
from ovi_ray.storage.store import ConditionalStore, PreconditionFailed

LOCK = ".driver.lock"
"""Name of the lease file on a disk, and of the folder of the lease in a store."""
_LEASE = "lease.json"


@dataclass(kw_only=True, slots=True, frozen=True)
class LeaseConfig:
    """Times of a lease, in seconds."""

    heartbeat_s: float = 5.0
    """Between two renewals."""
    stale_s: float = 60.0
    """Without a renewal, after which a driver on another machine counts as dead."""
    watch_s: float = 1.0
    """Between two looks of a driver that waits for a lease whose owner may be dead."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Sighting:
    """Another driver's lease. Its owner may be dead."""

    owner: Owner
    version: str
    """Changes with every renewal."""
    silent_s: float
    """Seconds since the last renewal."""


class Lease(Protocol):
    """One driver's claim to an output folder. All methods raise OSError."""

    def acquire(self, *, dead: str = "") -> Sighting | None:
        """Take the lease; a sighting where another driver has it. Raises OutputInUse where that one is certainly alive.

        `dead` is the version of a lease that was watched for long enough, whatever the clock of the storage says.
        """

    def renew(self) -> bool:
        """Show that the owner is alive; false when another driver has the lease by now."""

    def release(self) -> None:
        """Give the lease up, unless another driver has it by now."""


def lease_of(folder: Location, config: LeaseConfig) -> Lease:
    """The kind of lease that suits the storage of a folder."""
    if (path := folder.local_path) is not None:
        return FileLease(path, config)
    store = folder.conditional_store
    if store is not None and _honours_conditions(folder, store):
        return ObjectLease(folder, store, config)
    return ClaimLease(folder, config)


def _honours_conditions(folder: Location, store: ConditionalStore) -> bool:
    """Whether the server has conditional writes, found by trying: some S3 servers refuse them, and others ignore them."""
    probe = folder / LOCK / f"probe-{uuid4().hex}"
    try:
        store.create(probe.key, b"1")
        store.create(probe.key, b"2")
        return False
    except PreconditionFailed:
        return True
    except StorageUnavailable as error:
        if "NotImplemented" in str(error.__cause__):
            return False
        raise
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def last_owner(folder: Location) -> tuple[Owner, float] | None:
    """The driver that has the lease of a folder, and when it renewed it, by the clock of the storage; None for a free one.

    Raises OSError.
    """
    lease = folder / LOCK if folder.is_local else folder / LOCK / _LEASE
    try:
        owner, renewed_at = _owner_in(lease.read_bytes()), lease.stat().st_mtime
    except (FileNotFoundError, IsADirectoryError):
        return None
    return None if owner is None else (owner, renewed_at)


class FileLease:
    """See the module. A lock is on a file, not on its name: each renewal looks whether the name is still that of the file."""

    def __init__(self, folder: Path, config: LeaseConfig) -> None:
        self._folder = folder
        self._config = config
        self._owner = Owner()
        self._folder_identity = _identity(folder)
        self._file: IO[str] = self._opened()

    def acquire(self, *, dead: str = "") -> Sighting | None:
        """See Lease."""
        self._lock()
        while not self._is_in_place():  # removed or replaced between its opening and its lock
            self._file.close()
            self._file = self._opened()
            self._lock()
        return self._claim(dead)

    def _opened(self) -> IO[str]:
        return (self._folder / LOCK).open("a+", encoding="utf-8", errors="replace")

    def _lock(self) -> None:
        try:
            lock_exclusively(self._file)
        except BlockingIOError:
            raise OutputInUse(in_use_message(str(self._folder), self._read(), self._config)) from None
        except OSError:  # a system without locks: the heartbeat alone decides
            pass

    def _claim(self, dead: str = "") -> Sighting | None:
        """Write the owner, unless another one may be alive."""
        other = self._read()
        if other == self._owner:
            return None
        if other is not None and not other.is_dead:
            renewed_at = os.fstat(self._file.fileno()).st_mtime
            silent_s = self._now() - renewed_at
            sighting = _sighting(str(self._folder), other, str(renewed_at), silent_s, self._config)
            if sighting is not None and sighting.version != dead:
                return sighting
        self._write(self._owner.to_json())
        return None

    def renew(self) -> bool:
        """See Lease."""
        if not self._is_in_place():
            return self._take_back()
        if self._read() != self._owner:
            return False
        os.utime(self._file.fileno() if os.utime in os.supports_fd else self._folder / LOCK)
        return True

    def _is_in_place(self) -> bool:
        """Whether the lock file is still the one that is open here. Raises OSError."""
        try:
            return os.path.samestat((self._folder / LOCK).stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            if _identity(self._folder) != self._folder_identity:
                raise  # the folder is away, and perhaps comes back
            return False

    def _take_back(self) -> bool:
        """Lock the file that has the name now, or a new one, unless another driver was faster."""
        held, self._file = self._file, self._opened()
        try:
            self._lock()
            is_taken = self._claim() is not None
        except OutputInUse:
            is_taken = True
        except OSError:
            self._file.close()
            self._file = held
            raise
        if is_taken:
            held, self._file = self._file, held
        held.close()
        return not is_taken

    def release(self) -> None:
        """See Lease."""
        with suppress(OSError):
            if self._is_in_place() and self._read() == self._owner:
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
        with named_errors(self._folder / LOCK):
            self._file.seek(0)
            return Owner.from_json(self._file.read())

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


class ObjectLease:
    """See the module. A released lease stays as an empty object: removing it could remove the next driver's."""

    def __init__(self, folder: Location, store: ConditionalStore, config: LeaseConfig) -> None:
        self._folder = folder
        self._store = store
        self._config = config
        self._owner = Owner()
        self._lease = folder / LOCK / _LEASE
        self._version = ""
        """Of the lease while this driver has it."""

    def acquire(self, *, dead: str = "") -> Sighting | None:
        """See Lease."""
        while True:  # each further round, another driver has changed the lease since it was read
            with suppress(PreconditionFailed):
                self._version = self._store.create(self._lease.key, self._content())
                return None
            with suppress(FileNotFoundError, PreconditionFailed):
                content, version = self._store.read_version(self._lease.key)
                sighting = self._examine(content, version)
                if sighting is not None and sighting.version == dead:
                    sighting = None
                if sighting is None:
                    self._version = self._store.replace(self._lease.key, self._content(), version)
                return sighting

    def renew(self) -> bool:
        """See Lease."""
        try:
            self._version = self._store.replace(self._lease.key, self._content(), self._version)
            return True
        except (PreconditionFailed, FileNotFoundError):
            return self._recover_version()

    def release(self) -> None:
        """See Lease."""
        if self._version:
            with suppress(PreconditionFailed, FileNotFoundError):
                self._store.replace(self._lease.key, b"", self._version)

    def _examine(self, content: bytes, version: str) -> Sighting | None:
        owner = _owner_in(content)
        if owner is None or owner == self._owner or owner.is_dead:
            return None
        silent_s = self._now() - self._lease.stat().st_mtime
        return _sighting(str(self._folder), owner, version, silent_s, self._config)

    def _recover_version(self) -> bool:
        """Find the version of the lease if it is this driver's after all: the answer to an earlier renewal was lost.

        One that was removed is written again, unless another driver was faster.
        """
        try:
            content, version = self._store.read_version(self._lease.key)
        except FileNotFoundError:
            with suppress(PreconditionFailed):
                self._version = self._store.create(self._lease.key, self._content())
                return True
            return False
        if _owner_in(content) != self._owner:
            return False
        self._version = version
        return True

    def _content(self) -> bytes:
        """The owner, and a text that makes each renewal another version: S3 derives versions from the content."""
        return f"{self._owner.to_json()}\n{uuid4().hex}\n".encode()

    def _now(self) -> float:
        """The time by the clock of the store."""
        probe = self._folder / LOCK / f"clock-{self._owner.token}"
        try:
            probe.write_bytes(b"")
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


class ClaimLease:
    """See the module. Of two drivers that start together one sees the other at least: both may be refused, never neither."""

    def __init__(self, folder: Location, config: LeaseConfig) -> None:
        self._folder = folder
        self._config = config
        self._owner = Owner()
        self._claim = folder / LOCK / f"{self._owner.token}.json"

    def acquire(self, *, dead: str = "") -> Sighting | None:
        """See Lease."""
        (self._folder / LOCK).mkdir()
        self._write()
        now = self._claim.stat().st_mtime
        for name in list_files(self._folder / LOCK, ".json").column("name").to_pylist():
            other = self._folder / LOCK / name
            if other == self._claim:
                continue
            sighting = self._examine(other, now)
            if sighting is not None and sighting.version != dead:
                self._claim.unlink(missing_ok=True)
                return sighting
            other.unlink(missing_ok=True)
        return None

    def renew(self) -> bool:
        """See Lease."""
        if not self._claim.exists():
            return False
        self._write()
        return True

    def release(self) -> None:
        """See Lease."""
        self._claim.unlink(missing_ok=True)

    def _examine(self, other: Location, now: float) -> Sighting | None:
        try:
            owner, renewed_at = _owner_in(other.read_bytes()), other.stat().st_mtime
        except FileNotFoundError:
            return None
        if owner is None or owner.is_dead:
            return None
        return _sighting(str(self._folder), owner, str(renewed_at), now - renewed_at, self._config)

    def _write(self) -> None:
        self._claim.write_bytes(self._owner.to_json().encode())


def in_use_message(output: str, owner: Owner | None, config: LeaseConfig) -> str:
    """Message for the user of a driver that is refused."""
    return (
        f"{output} is in use: {owner or 'another driver'} renders into it now. Wait for it, stop it, or give another"
        f" --out. (If its machine is gone, the folder is free after {config.stale_s:.0f} s.)"
    )


def _identity(folder: Path) -> tuple[int, int]:
    """Device and inode, which differ for another folder under the same name."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _owner_in(content: bytes) -> Owner | None:
    """The owner in the first line of a lease; None for a released one."""
    return Owner.from_json(content.decode(errors="replace").partition("\n")[0])


def _sighting(output: str, owner: Owner, version: str, silent_s: float, config: LeaseConfig) -> Sighting | None:
    """A driver that is not known to be dead; None where the lease is stale. Raises OutputInUse for one on this machine."""
    if silent_s >= config.stale_s:
        return None
    if owner.is_here:
        raise OutputInUse(in_use_message(output, owner, config))
    return Sighting(owner=owner, version=version, silent_s=silent_s)
