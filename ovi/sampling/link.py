"""A link for tensors between two processes of one machine: gloo over the loopback device.

The two find each other through a folder that only they know of. No name is looked up, and nothing listens on a network. A
process that ends closes its end, which the other one is told at once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ovi.errors import PartnerUnavailable

_LOOPBACK = "127.0.0.1"
_CONNECT = timedelta(seconds=30)
_ANSWER = timedelta(minutes=10)  # the two compute the same amount at a time: only one that hangs takes longer
_POLL_S = 0.02


def links_work() -> bool:
    """Whether this build of torch can link processes."""
    return dist.is_available() and dist.is_gloo_available()


class Meeting:
    """The folder in which two processes meet: the caller goes there first, and waits; the host looks whether it is there.

    Who is there says so with a file: torch's store in a file waits for minutes where the other one has removed the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._caller = folder / "caller"
        self._host = folder / "host"

    def call(self, should_stop: Callable[[], bool]) -> "Link | None":
        """Wait for the host, and link to it; None once `should_stop()` returns true or the host has removed the folder.

        Raises PartnerUnavailable.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._caller.touch()
        while not self._host.exists():
            if should_stop() or not self._caller.exists():
                return None
            time.sleep(_POLL_S)
        return Link(self._folder / "store", rank=1)

    def answer(self) -> "Link | None":
        """Link to the caller; None while it is not there. Raises PartnerUnavailable."""
        if not self._caller.exists():
            return None
        try:
            self._host.touch()
        except FileNotFoundError:  # it has just left
            return None
        return Link(self._folder / "store", rank=0)


class Link:
    """Messages of bytes to and from the other process. Every method raises PartnerUnavailable where that one is gone."""

    def __init__(self, path: Path, *, rank: int) -> None:
        """Connect, once both are there. The host has rank 0; `path` is the file in which they exchange their addresses."""
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = _CONNECT
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
        self._peer = 1 - rank
        self.patience = _ANSWER
        """The longest that the other process may take to send or to receive."""
        with _partner_errors():
            store = dist.FileStore(str(path), 2)  # type: ignore[attr-defined]
            store.set_timeout(_CONNECT)
            self._group: Any = dist.ProcessGroupGloo(store, rank, 2, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the other process is told when it next sends or receives."""
        self._group = None

    def send(self, message: Tensor) -> None:
        """Send bytes [N] from the CPU."""
        with _partner_errors():
            self._group.send([message], self._peer, 0).wait(self.patience)

    def receive(self, size: int) -> Tensor:
        """The next `size` bytes, on the CPU. The other process must send them in one message."""
        return self.expect(size)()

    def expect(self, size: int) -> Callable[[], Tensor]:
        """As `receive`, in two parts: the bytes may come from now on, and the result waits for them."""
        message = torch.empty(size, dtype=torch.uint8)
        with _partner_errors():
            work = self._group.recv([message], self._peer, 0)

        def wait() -> Tensor:
            with _partner_errors():
                work.wait(self.patience)
            return message

        return wait

    def send_text(self, text: str) -> None:
        """Send a text of any length."""
        content = bytearray(text.encode())
        self.send(as_bytes(torch.tensor([len(content)])))
        if content:
            self.send(torch.frombuffer(content, dtype=torch.uint8))

    def receive_text(self) -> str:
        """The text that the other process sends."""
        (length,) = self.receive(8).view(torch.int64).tolist()
        return bytes(self.receive(length).tolist()).decode() if length else ""


def as_bytes(tensor: Tensor) -> Tensor:
    """The numbers of a tensor on any device as bytes [N] on the CPU."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8)


@contextmanager
def _partner_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no class for a peer that is gone
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PartnerUnavailable(f"the other device is gone, or does not answer: {reason}") from error
