"""The names of files in stores that are reached over a network."""

import posixpath

from ovi_ray.storage.store import Timeouts


class KeyedStore:
    """Base of such stores: files have keys, and URIs below a root."""

    def __init__(self, root: str, *, options: str = "", timeouts: Timeouts | None = None) -> None:
        """`options` follow a URI's question mark."""
        self._root = root
        self._options = options
        self._timeouts = timeouts or Timeouts()

    def uri(self, key: str) -> str:
        """See Store."""
        return f"{self._root}/{key}{'?' if self._options else ''}{self._options}"

    def join(self, key: str, name: str) -> str:
        """See Store."""
        joined = posixpath.normpath(posixpath.join(key, name)).lstrip("/")
        if joined.startswith(".."):
            raise ValueError("a path that stays in the bucket")
        return "" if joined == "." else joined

    def bucket(self) -> str:
        """See Store."""
        return self.uri("")

    def local_path(self, key: str) -> None:
        """See Store."""
        return
