"""Locations in every kind of store, and a store that can be made to fail."""

from pathlib import Path
from typing import Any

from obstore.store import MemoryStore
from pyarrow import fs

from ovi_ray.storage.hdfs_store import HdfsStore
from ovi_ray.storage.object_store import ObjectStore
from ovi_ray.storage.paths import Location
from ovi_ray.storage.store import Timeouts


def memory_folder(key: str = "folder") -> Location:
    """A folder of an object store in memory."""
    client = MemoryStore()
    return Location(ObjectStore("memory://bucket", lambda request_s: client), key)


def hdfs_folder(folder: Path, *, file_system: Any = None, timeouts: Timeouts | None = None) -> Location:
    """A folder that is reached as HDFS is, through pyarrow; `file_system` is pyarrow's for the local disk by default."""
    store = HdfsStore("hdfs://node", lambda: (file_system or fs.LocalFileSystem(), str(folder)), timeouts=timeouts)
    return Location(store, "folder")


class OverriddenStore:
    """A store whose methods given as keywords take the place of the real ones; they are called with the same arguments."""

    def __init__(self, store: Any, **methods: Any) -> None:
        self._store = store
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        methods = self.__dict__.get("_methods", {})
        return methods[name] if name in methods else getattr(self.__dict__["_store"], name)


def overridden(location: Location, **methods: Any) -> Location:
    """The same location in a store with other methods."""
    return Location(OverriddenStore(location.store, **methods), location.key)
