"""What fits on a device, and how long a stage takes there. Pure.

Operations are counted from the published modules; seconds are operations over an *achieved* rate. The rates of a
device class are a prior: `CostModel` corrects them with what is measured, per class, stage and kind of clip, and per
worker, so that a device that slows down is noticed alone.

Memory is in GB of 1e9 bytes, work in TFLOP (a multiply-add is two), times in seconds.
"""

import math

from ovi.config import Component
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.device_profile import COMPONENTS, DeviceProfile
from ovi_ray.scheduling.workload import ClipKind


class _Correction:
    """The logarithm of measured over expected, with how unsure it is: a Kalman filter of one number."""

    __slots__ = ("drift", "factor", "mean", "variance")

    def __init__(self, variance: float, drift: float) -> None:
        self.mean = 0.0
        self.factor = 1.0  # exp(mean)
        self.variance = variance
        self.drift = drift

    def move(self, residual: float, total_variance: float) -> None:
        """Take its share of a residual."""
        gain = self.variance / total_variance
        self.mean += gain * residual
        self.factor = math.exp(self.mean)
        self.variance *= 1 - gain


_MEASUREMENT_VARIANCE = 0.002  # runs of one clip differ by about 5%
_SURPRISE = 3.0  # standard deviations beyond which a measurement is taken for an outlier


class CostModel:
    """Stage times per device class: a prior, then learned.

    A measurement moves three corrections at once, each by its share of the uncertainty: (class, stage), which starts
    wide; (class, stage, kind), which starts narrow; and the worker, which drifts. One outlier moves little; the same
    surprise twice is taken for a change.
    """

    def __init__(self, kinds: tuple[ClipKind, ...], *, learn: bool = True) -> None:
        self.kinds = kinds
        self.learn = learn
        self.profiles: list[DeviceProfile] = []
        self._index: dict[DeviceProfile, int] = {}
        self._priors: list[dict[Stage, list[float]]] = []
        self._stage_corrections: list[dict[Stage, _Correction]] = []
        self._kind_corrections: dict[tuple[int, Stage, int], _Correction] = {}
        self._workers: dict[int, _Correction] = {}
        self._surprises: dict[int, int] = {}
        self._load_factor: list[float] = []
        self._loads_measured: set[int] = set()
        self._loads: dict[tuple[int, frozenset[Component]], float] = {}

    def register(self, profile: DeviceProfile) -> int:
        """The number of a device class, the same for equal profiles."""
        if profile not in self._index:
            self._index[profile] = len(self.profiles)
            self.profiles.append(profile)
            self._priors.append({stage: self._prior(profile, stage) for stage in STAGES})
            self._stage_corrections.append({stage: _Correction(25.0, 1e-4) for stage in STAGES})
            self._load_factor.append(1.0)
        return self._index[profile]

    def _prior(self, profile: DeviceProfile, stage: Stage) -> list[float]:
        spec, rate = STAGES[stage], profile.rates.of(stage) * profile.speed
        overhead_s = 0.0 if spec.batched else profile.task_overhead_s  # a batch has it once, not once a token
        return [spec.tflop(kind) / rate + overhead_s for kind in self.kinds]

    def seconds(self, device: int, stage: Stage, kind: int) -> float:
        """Expected seconds of one task on a typical device of a class; for texts, of one token in a batch."""
        if STAGES[stage].batched:
            kind = 0
        seconds = self._priors[device][stage][kind] * self._stage_corrections[device][stage].factor
        own = self._kind_corrections.get((device, stage, kind))
        return seconds if own is None else seconds * own.factor

    def worker_factor(self, worker: int) -> float:
        """How many times slower one worker is than its class."""
        correction = self._workers.get(worker)
        return 1.0 if correction is None else correction.factor

    def load_seconds(self, device: int, components: frozenset[Component]) -> float:
        """Expected seconds to bring in components."""
        if not components:
            return 0.0
        seconds = self._loads.get((device, components))
        if seconds is None:
            profile = self.profiles[device]
            seconds = sum(profile.load_seconds(c) for c in COMPONENTS if c in components)
            self._loads[device, components] = seconds
        return self._load_factor[device] * seconds

    def observe_load(self, device: int, expected: float, seconds: float) -> None:
        """Learn from a measured load: the first replaces the prior, later ones move it with caution."""
        if not self.learn or expected <= 0 or seconds <= 0:
            return
        if device in self._loads_measured:
            self._load_factor[device] *= min(max(seconds / expected, 0.25), 4.0) ** 0.3
        else:
            self._loads_measured.add(device)
            self._load_factor[device] *= seconds / expected

    def task_seconds(self, device: int, worker: int, stage: Stage, kind: int, units: float = 1.0) -> float:
        """Expected seconds of a task on one worker; `units` are tokens for texts."""
        seconds = self.seconds(device, stage, kind) * units
        if STAGES[stage].batched:
            seconds += self.profiles[device].task_overhead_s
        return seconds * self.worker_factor(worker)

    def observe(self, device: int, worker: int, stage: Stage, kind: int, units: float, seconds: float) -> None:
        """Learn from a task of so many units that took `seconds` on `worker`.

        The comparison is with what is expected now, not with what was when it began: else a hundred tasks that end
        together would all correct the same error.
        """
        expected = self.task_seconds(device, worker, stage, kind, units)
        if not self.learn or seconds <= 0 or expected <= 0:
            return
        if STAGES[stage].batched:
            kind = 0
        shared = self._stage_corrections[device][stage]
        own = self._kind_corrections.setdefault((device, stage, kind), _Correction(0.05, 1e-4))
        mine = self._workers.setdefault(worker, _Correction(0.01, 0.001))
        for correction in (shared, own, mine):
            correction.variance += correction.drift
        doubt = shared.variance + own.variance + mine.variance + _MEASUREMENT_VARIANCE
        residual = self._clipped(mine, worker, math.log(seconds / expected), _SURPRISE * math.sqrt(doubt))
        doubt = shared.variance + own.variance + mine.variance + _MEASUREMENT_VARIANCE
        for correction in (shared, own, mine):
            correction.move(residual, doubt)

    def _clipped(self, mine: _Correction, worker: int, residual: float, limit: float) -> float:
        """The residual, cut to `limit`; a second surprise in a row in the same direction widens the worker's doubt."""
        if abs(residual) <= limit:
            self._surprises[worker] = 0
            return residual
        sign = 1 if residual > 0 else -1
        if self._surprises.get(worker) == sign:
            mine.variance += residual * residual
        self._surprises[worker] = sign
        return sign * limit
