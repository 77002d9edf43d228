"""The time in which a task has not gone on, which tells a device that hangs from one that works: its process answers."""

import math
import time
from collections.abc import Callable


class QuietTime:
    """The time since the last sign of progress of a task's work. It is read on another thread than it is written on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = math.inf
        self.longest_s = 0.0
        """Longest time between two signs of progress of this task; 0 before the first."""

    def begins(self) -> None:
        """The work of a task begins."""
        self._since, self.longest_s = self._clock(), 0.0

    def goes_on(self) -> None:
        """A step or some frames are done; no effect while no work is watched."""
        if self._since < math.inf:
            now = self._clock()
            self.longest_s, self._since = max(self.longest_s, now - self._since), now

    def ends(self) -> None:
        """No work is watched any more."""
        self._since = math.inf

    @property
    def seconds(self) -> float:
        """Since the last sign of progress; 0 while no work is watched."""
        return max(0.0, self._clock() - self._since)
