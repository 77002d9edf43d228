"""Writing files while the device works on: the threads that write, and the frames on their way to them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Queue
from threading import BoundedSemaphore, Event
from typing import Final, TypeVar

from torch import Tensor

T = TypeVar("T")


class DecodeEnded(Exception):
    """A decode ended before its last frame, for a reason that its caller has."""


class WriteThreads:
    """At most `limit` writes at a time, each on a thread of its own, so that one that waits for storage holds up no other."""

    def __init__(self, limit: int) -> None:
        self._room = BoundedSemaphore(limit)
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="write")

    def submit(self, write: Callable[[], T]) -> Future[T]:
        """Start a write, as soon as there is room for it."""
        self._room.acquire()
        future = self._threads.submit(write)
        future.add_done_callback(lambda _: self._room.release())
        return future


class FrameQueue:
    """Frames [t, H, W, 3] on their way from a device to the writer of a clip; at most `limit` pieces wait.

    The device's thread calls `put`, and `end` or `abort`; the writer iterates, and calls `close` however it ends.
    """

    _END: Final = object()
    _ABORT: Final = object()

    def __init__(self, limit: int) -> None:
        self._queue: Queue[object] = Queue(limit)
        self._is_closed = Event()

    def put(self, frames: Tensor) -> bool:
        """Hand over frames, once there is room; false when the writer takes no more."""
        self._put(frames)
        return not self._is_closed.is_set()

    def end(self) -> None:
        """There are no more frames."""
        self._put(self._END)

    def abort(self) -> None:
        """The clip will not be complete: the writer's iteration raises DecodeEnded."""
        self._put(self._ABORT)

    def _put(self, item: object) -> None:
        if not self._is_closed.is_set():
            self._queue.put(item)  # if `close` is called just now, it makes room

    def __iter__(self) -> Iterator[Tensor]:
        while (item := self._queue.get()) is not self._END:
            if not isinstance(item, Tensor):
                raise DecodeEnded
            yield item

    def close(self) -> None:
        """Take no more frames, and let a device go on that waits for room."""
        self._is_closed.set()
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return
