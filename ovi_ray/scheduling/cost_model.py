"""Expected seconds of tasks and loads, per device class: declared rates, corrected by what is measured.

Operations are counted from the published modules; seconds are operations over an *achieved* rate. The rates of a device class
are a prior. Measurements correct them per (class, stage), per (class, stage, kind of clip), and per worker, so that a single
device that slows down is noticed without changing what is expected of its class.

Work is in TFLOP (a multiply-add is two), times in seconds.
"""

import dataclasses
import math

from ovi.config import Component
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.config import CorrectionConfig, CostModelConfig
from ovi_ray.scheduling.device_profile import ALL_STAGES, COMPONENTS, DeviceProfile
from ovi_ray.scheduling.workload import ClipKind

_AS_EXPECTED = 1.2  # times longer or shorter than expected that is no surprise


def _is_off(factor: float) -> bool:
    return max(factor, 1 / factor) >= _AS_EXPECTED


class _Correction:
    """Log of measured over expected seconds, with its variance: a scalar Kalman filter."""

    __slots__ = ("drift", "factor", "is_measured", "mean", "variance")

    def __init__(self, config: CorrectionConfig) -> None:
        self.mean = 0.0
        self.factor = 1.0  # exp(mean)
        self.is_measured = False
        self.variance = config.variance
        self.drift = config.drift

    def update(self, residual: float, total_variance: float) -> None:
        """Absorb the part of a residual that its share of the variance explains."""
        self.is_measured = True
        gain = self.variance / total_variance
        self.mean += gain * residual
        self.factor = math.exp(self.mean)
        self.variance *= 1 - gain


class CostModel:
    """Expected times per device class, stage and kind of clip.

    A measurement moves three corrections at once, each by its share of the uncertainty: (class, stage), which starts
    wide; (class, stage, kind), which starts narrow; and the worker, which drifts. A single outlier is clipped; a second
    one in the same direction widens the worker's variance, because its speed has changed.
    """

    def __init__(self, kinds: tuple[ClipKind, ...], config: CostModelConfig | None = None) -> None:
        self.kinds = kinds
        self.config = config or CostModelConfig()
        self.profiles: list[DeviceProfile] = []
        """[classes] in the order in which they were registered."""
        self._index: dict[DeviceProfile, int] = {}
        self._learns_as: list[int] = []  # class -> the first one that differs in no more than the stages it may run
        self._first_with: dict[DeviceProfile, int] = {}
        self._priors: list[dict[Stage, list[float]]] = []
        self._stage_corrections: list[dict[Stage, _Correction]] = []
        self._kind_corrections: dict[tuple[int, Stage, int], _Correction] = {}
        self._worker_corrections: dict[int, _Correction] = {}
        self._outlier_signs: dict[int, int] = {}  # worker -> direction of its last measurement if that was clipped
        self._measured_stages: set[Stage] = set()
        self._is_off = False  # some class turned out to differ from what was declared
        self._load_factor: list[float] = []
        self._loads_measured: set[int] = set()
        self._load_priors: dict[tuple[int, frozenset[Component]], float] = {}

    def register(self, profile: DeviceProfile) -> int:
        """Number of the device class; the same for equal profiles."""
        if profile not in self._index:
            self._index[profile] = len(self.profiles)
            speeds = dataclasses.replace(profile, stages=ALL_STAGES)
            self._learns_as.append(self._first_with.setdefault(speeds, len(self.profiles)))
            self.profiles.append(profile)
            self._priors.append({stage: self._prior_seconds(profile, stage) for stage in Stage})
            self._stage_corrections.append({stage: _Correction(self.config.stage) for stage in Stage})
            self._load_factor.append(1.0)
        return self._index[profile]

    def _prior_seconds(self, profile: DeviceProfile, stage: Stage) -> list[float]:
        """[kinds] A batched stage pays the overhead once per task, so it is not in the seconds of a token."""
        spec, rate = STAGES[stage], profile.rates.of(stage) * profile.speed
        overhead_s = 0.0 if spec.batched else profile.task_overhead_s
        return [spec.tflop(kind) / rate + overhead_s for kind in self.kinds]

    # --- expected times

    def seconds(self, device_class: int, stage: Stage, kind: int) -> float:
        """Of one task, or of one token when the stage is batched, on a typical device of a class."""
        device_class = self._learns_as[device_class]
        if STAGES[stage].batched:
            kind = 0
        seconds = self._priors[device_class][stage][kind] * self._stage_corrections[device_class][stage].factor
        correction = self._kind_corrections.get((device_class, stage, kind))
        return seconds if correction is None else seconds * correction.factor

    def worker_factor(self, worker: int) -> float:
        """Slowness of one worker relative to its class (1 is as fast)."""
        correction = self._worker_corrections.get(worker)
        return 1.0 if correction is None else correction.factor

    def task_seconds(self, device_class: int, worker: int, stage: Stage, kind: int, units: float = 1.0) -> float:
        """Of a task on one worker; `units` are tokens when the stage is batched."""
        seconds = self.seconds(device_class, stage, kind) * units
        if STAGES[stage].batched:
            seconds += self.profiles[device_class].task_overhead_s
        return seconds * self.worker_factor(worker)

    def load_seconds(self, device_class: int, components: frozenset[Component]) -> float:
        """To load components."""
        if not components:
            return 0.0
        device_class = self._learns_as[device_class]
        seconds = self._load_priors.get((device_class, components))
        if seconds is None:
            profile = self.profiles[device_class]
            seconds = sum(profile.load_seconds(c) for c in COMPONENTS if c in components)
            self._load_priors[device_class, components] = seconds
        return self._load_factor[device_class] * seconds

    def is_measured(self, device_class: int, stage: Stage) -> bool:
        """Whether a task of a stage has ended on a device of a class."""
        return self._stage_corrections[self._learns_as[device_class]][stage].is_measured

    def doubt(self, device_class: int, stage: Stage) -> float:
        """The factor by which a task may take longer than expected that cannot be copied when it is late.

        Doubts are relative: there are none while no class has been measured. A class whose other stages took as long as
        expected is believed; one that was slower there may be so at this stage too, and so may one if the classes that were
        measured at this stage are slower on average.
        """
        if STAGES[stage].output is not None or stage not in self._measured_stages:
            return 1.0
        return self._doubt(device_class, stage)

    def _doubt(self, device_class: int, stage: Stage) -> float:
        corrections = self._stage_corrections[self._learns_as[device_class]]
        factors = [correction.factor for correction in corrections.values() if correction.is_measured]
        if corrections[stage].is_measured or (factors and not any(map(_is_off, factors))):
            return 1.0
        means = [by_stage[stage].mean for by_stage in self._stage_corrections if by_stage[stage].is_measured]
        return self.config.unmeasured_doubt * max([1.0, *factors, math.exp(sum(means) / max(1, len(means)))])

    def hope(self, device_class: int, stage: Stage, kind: int) -> float:
        """The factor by which a denoise may be faster than expected on a class, whose first steps will tell.

        There is hope while the class has not been measured, and others have turned out to differ from what was declared.
        """
        corrections = self._stage_corrections[self._learns_as[device_class]]
        if stage is not Stage.DENOISE or corrections[stage].is_measured or not self._is_off:
            return 1.0
        return self.config.unmeasured_doubt if self.kinds[kind].tells_its_pace else 1.0

    def doubt_of_declared(self, device_class: int, stage: Stage) -> float:
        """As `doubt`, from when anything that was declared turns out to be wrong, at whichever stage."""
        return self._doubt(device_class, stage) if self._is_off else 1.0

    # --- learning

    def observe_load(self, device_class: int, expected: float, seconds: float) -> None:
        """Learn from a measured load. The first replaces the prior; later ones move it by a clipped, weighted ratio."""
        if not self.config.learn or expected <= 0 or seconds <= 0:
            return
        device_class = self._learns_as[device_class]
        if device_class in self._loads_measured:
            limit = self.config.max_load_ratio
            ratio = min(max(seconds / expected, 1 / limit), limit)
            self._load_factor[device_class] *= ratio**self.config.load_weight
        else:
            self._loads_measured.add(device_class)
            self._load_factor[device_class] *= seconds / expected

    def observe(self, device_class: int, worker: int, stage: Stage, kind: int, units: float, seconds: float) -> None:
        """Learn from a task of `units` that took `seconds` on `worker`.

        The comparison is with what is expected now, not with what was expected when the task began: otherwise a hundred
        tasks that end together would all correct the same error.
        """
        expected = self.task_seconds(device_class, worker, stage, kind, units)
        if not self.config.learn or seconds <= 0 or expected <= 0:
            return
        self._measured_stages.add(stage)
        corrections = self._corrections(device_class, worker, stage, 0 if STAGES[stage].batched else kind)
        for correction in corrections:
            correction.variance += correction.drift
        deviation = math.sqrt(self._total_variance(corrections))
        residual = self._clipped(worker, corrections[-1], math.log(seconds / expected), deviation)
        total_variance = self._total_variance(corrections)
        for correction in corrections:
            correction.update(residual, total_variance)
        self._is_off = self._is_off or _is_off(corrections[0].factor)

    def _corrections(
        self, device_class: int, worker: int, stage: Stage, kind: int
    ) -> tuple[_Correction, _Correction, _Correction]:
        device_class = self._learns_as[device_class]
        of_kind = self._kind_corrections.setdefault((device_class, stage, kind), _Correction(self.config.kind))
        of_worker = self._worker_corrections.setdefault(worker, _Correction(self.config.worker))
        return self._stage_corrections[device_class][stage], of_kind, of_worker

    def _total_variance(self, corrections: tuple[_Correction, _Correction, _Correction]) -> float:
        of_stage, of_kind, of_worker = corrections
        return of_stage.variance + of_kind.variance + of_worker.variance + self.config.measurement_variance

    def _clipped(self, worker: int, of_worker: _Correction, residual: float, deviation: float) -> float:
        """Clip an outlier; a second one in a row in the same direction widens the worker's variance."""
        limit = self.config.outlier_deviations * deviation
        if abs(residual) <= limit:
            self._outlier_signs[worker] = 0
            return residual
        sign = 1 if residual > 0 else -1
        if self._outlier_signs.get(worker) == sign:
            of_worker.variance += residual * residual
        self._outlier_signs[worker] = sign
        return sign * limit
