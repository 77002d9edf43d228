"""The times at which the scheduler asked to be called."""

import heapq


class WakeUps:
    """A set of pending times; all of them are kept until they pass."""

    def __init__(self) -> None:
        self._heap: list[float] = []
        self._pending: set[float] = set()

    def add(self, time: float) -> None:
        """Request a wake-up; a time that is pending already is kept once."""
        if time not in self._pending:
            self._pending.add(time)
            heapq.heappush(self._heap, time)

    def delay(self, now: float) -> float:
        """Seconds until the next wake-up: 0 if it is due, infinity if there is none."""
        return max(0.0, self._heap[0] - now) if self._heap else float("inf")

    def take_due(self, now: float) -> bool:
        """Remove every time that has passed. True if there was one."""
        is_due = bool(self._heap) and self._heap[0] <= now
        while self._heap and self._heap[0] <= now:
            self._pending.remove(heapq.heappop(self._heap))
        return is_due
