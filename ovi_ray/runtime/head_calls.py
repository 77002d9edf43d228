"""Calls to Ray's head that end: Ray itself waits for a head that does not answer until it ends the process."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class HeadCalls:
    """Makes calls on a thread of its own, one at a time. While one has not come back, no other is begun."""

    def __init__(self, *, patience_s: float = 10.0) -> None:
        self._patience_s = patience_s
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._last: Future[Any] | None = None
        threading.Thread(target=self._run, name="head-calls", daemon=True).start()

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of a call, or what it raises; TimeoutError when it or the one before has not come back in time."""
        if self._last is not None and not self._last.done():
            raise TimeoutError("Ray's head has not answered the call before")
        answer: Future[T] = Future()
        self._last = answer
        self._work.put((answer, call))
        return answer.result(self._patience_s)

    def _run(self) -> None:
        while True:
            answer, call = self._work.get()
            try:
                answer.set_result(call())
            except Exception as error:
                answer.set_exception(error)
