"""Arrays over all workers, for sums, as arrays with one position per worker; positions of lost workers are reused."""

import numpy as np
import numpy.typing as npt

from ovi.config import Component
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.device_profile import COMPONENTS

_LATE_SHARE = 0.02  # least time left to a task that is late, as a share of its length


class WorkerArrays:
    """[workers] arrays. Queries cover the workers in service, in the order of their positions."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._number = np.zeros(0, np.int64)
        self._device_class = np.zeros(0, np.int64)
        self._in_service = np.zeros(0, bool)
        self._end = np.zeros(0)  # expected end of the task, -inf when idle
        self._length = np.zeros(0)  # expected seconds of the task
        self._factor = np.ones(0)
        self._lacks = np.zeros((0, len(COMPONENTS)))  # 1 for a component that is not resident

    # --- changes

    def add(self, number: int, device_class: int, resident: frozenset[Component]) -> int:
        """Give an idle worker a position."""
        if not self._free:
            self._grow()
        position = self._free.pop()
        self._number[position], self._device_class[position] = number, device_class
        self._in_service[position], self._factor[position] = True, 1.0
        self._end[position] = -np.inf
        self.set_resident(position, resident)
        return position

    def _grow(self) -> None:
        old = len(self._in_service)
        new = max(16, old)
        self._free.extend(range(old + new - 1, old - 1, -1))
        self._number = np.append(self._number, np.zeros(new, np.int64))
        self._device_class = np.append(self._device_class, np.zeros(new, np.int64))
        self._in_service = np.append(self._in_service, np.zeros(new, bool))
        self._end = np.append(self._end, np.full(new, -np.inf))
        self._length = np.append(self._length, np.zeros(new))
        self._factor = np.append(self._factor, np.ones(new))
        self._lacks = np.concatenate([self._lacks, np.ones((new, len(COMPONENTS)))])

    def free(self, position: int) -> None:
        """The worker is lost."""
        self._in_service[position] = False
        self._free.append(position)

    def set_class(self, position: int, device_class: int) -> None:
        """The stages that the worker may run have changed."""
        self._device_class[position] = device_class

    def set_resident(self, position: int, resident: frozenset[Component]) -> None:
        """Components resident on the worker."""
        self._lacks[position] = [component not in resident for component in COMPONENTS]

    def set_task(self, position: int, end_s: float, length_s: float) -> None:
        """The worker has a task that should end at `end_s` and take `length_s`."""
        self._end[position], self._length[position] = end_s, length_s

    def set_idle(self, position: int) -> None:
        """The worker has no task."""
        self._end[position] = -np.inf

    def set_factor(self, position: int, factor: float) -> None:
        """The worker's slowness relative to its class (1 is as fast)."""
        self._factor[position] = factor

    # --- queries

    def numbers(self) -> npt.NDArray[np.int64]:
        """[workers] number of each."""
        return self._number[self._in_service]

    def classes(self) -> npt.NDArray[np.int64]:
        """[workers] device class of each."""
        return self._device_class[self._in_service]

    def factors(self) -> FloatArray:
        """[workers] how many times slower than its class."""
        return self._factor[self._in_service]

    def idle(self) -> npt.NDArray[np.bool_]:
        """[workers] whether each has no task; one whose task should take no time is available at once, and not idle."""
        return np.isneginf(self._end[self._in_service])

    def available(self, now: float) -> FloatArray:
        """[workers] seconds until each should be free. A late task is expected to take as long again as it is late."""
        left = self._end[self._in_service] - now
        late = np.maximum(-left, _LATE_SHARE * self._length[self._in_service])
        return np.where(np.isneginf(left), 0.0, np.where(left > 0, left, late))

    def lacks(self, component: Component) -> FloatArray:
        """[workers] 1 where a component is not resident, else 0."""
        return self._lacks[self._in_service, COMPONENTS.index(component)]
