"""Every tunable of the scheduler, by the mechanism it belongs to. README.md tells what each is for.

Raises ValueError at construction, naming the field, its value and what is expected.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def _require(config: Any, valid: bool, name: str, expected: str) -> None:
    if not valid:
        raise ValueError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; expected {expected}")


def _require_minimum(config: Any, least: float, *names: str) -> None:
    """NaN is refused too."""
    for name in names:
        value = getattr(config, name)
        _require(config, value is None or value >= least, name, f"{least:g} or more")


@dataclass(kw_only=True, slots=True, frozen=True)
class RetryConfig:
    """Limits on retries of a failed item."""

    max_attempts: int = 3
    """Failures counted against an item (errors and out of memory together) after which it is given up."""
    max_crashes: int = 3
    """Workers that may die while running an item alone before it is given up as poison."""

    def __post_init__(self) -> None:
        _require_minimum(self, 1, "max_attempts", "max_crashes")


@dataclass(kw_only=True, slots=True, frozen=True)
class CircuitBreakerConfig:
    """When a device is taken off a stage, and for how long."""

    max_consecutive_failures: int = 3
    """Distinct tasks of one stage that fail without a success of that stage in between."""
    max_refutations: float = 1.5
    """Tasks of one stage that failed on the device and that another one finished; halved by each success of the stage."""
    cooldown_s: float = 60.0
    """Seconds of the first cooldown; each failed probe doubles it."""
    max_cooldown_s: float = 600.0
    """Upper limit of the doubling, in seconds."""
    flawless_after: int = 20
    """Successes in a row after which a failure says nothing of the device any more. Items that failed elsewhere are tried on
    flawless devices first."""

    def __post_init__(self) -> None:
        _require_minimum(self, 1, "max_consecutive_failures", "flawless_after")
        _require_minimum(self, 0, "cooldown_s", "max_cooldown_s")
        _require(self, self.max_refutations > 0, "max_refutations", "more than 0")


@dataclass(kw_only=True, slots=True, frozen=True)
class SpeculationConfig:
    """When an idle worker runs a copy of a denoise."""

    enabled: bool = True
    """Only workers that have nothing else to do run copies, until the job ends or the first result is there."""
    speedup: float = 1.15
    """A task is copied when its remaining time is this many times what the copy would take."""
    late_share: float = 0.1
    """A task that is late by this share of its expected time may take for ever: it is copied at once."""
    max_copies: int = 2
    """Copies of one task at a time while nothing is known of the end of any of them."""

    def __post_init__(self) -> None:
        _require_minimum(self, 1, "speedup", "max_copies")
        _require_minimum(self, 0, "late_share")


class Pairing(StrEnum):
    """When two devices share a denoise."""

    OFF = "off"
    TAIL = "tail"
    """Once no clip is left to denoise, where that ends one sooner."""
    ALWAYS = "always"
    """Before another clip is begun: each clip ends sooner, and all of them not later by much."""


@dataclass(kw_only=True, slots=True, frozen=True)
class PairingConfig:
    """When an idle worker assists a denoise that one like it, on the same node, runs."""

    when: Pairing = Pairing.TAIL
    share: float = 0.52
    """Seconds of a step on two devices over those on one: the two passes are equal but for a block, and are exchanged."""
    min_gain_s: float = 2.0
    """Seconds by which the clip must end sooner, unless it always gets two devices."""
    max_failures: int = 2
    """Assists that may fail between two devices before they are not paired any more."""

    def __post_init__(self) -> None:
        _require(self, 0 < self.share < 1, "share", "more than 0 and less than 1")
        _require_minimum(self, 0, "min_gain_s")
        _require_minimum(self, 1, "max_failures")


@dataclass(kw_only=True, slots=True, frozen=True)
class AdmissionConfig:
    """Limits on what is encoded ahead of denoise."""

    embeddings_gb: float = 4.0
    """GB of encoded texts that may wait for denoise."""
    embeddings_gb_per_worker: float = 0.01
    """GB added to `embeddings_gb` for each worker."""
    embedding_gb_per_token: float = 4096 * 2 / 1e9
    """GB of one token's embedding: a row of the text encoder in bf16."""
    min_clips_per_kind: int = 8
    """Clips of each kind that may be admitted however few the memory allows."""

    def __post_init__(self) -> None:
        _require_minimum(self, 0, "embeddings_gb", "embeddings_gb_per_worker")
        _require(self, self.embedding_gb_per_token > 0, "embedding_gb_per_token", "more than 0")
        _require_minimum(self, 1, "min_clips_per_kind")


@dataclass(kw_only=True, slots=True, frozen=True)
class CorrectionConfig:
    """Uncertainty of one learned correction: the logarithm of measured over expected seconds."""

    variance: float
    """Before the first measurement."""
    drift: float
    """Added with each measurement: how fast the truth may change."""

    def __post_init__(self) -> None:
        _require_minimum(self, 0, "variance", "drift")


@dataclass(kw_only=True, slots=True, frozen=True)
class CostModelConfig:
    """Settings with which the cost model learns from measured times."""

    learn: bool = True
    """False keeps the declared rates whatever is measured."""
    stage: CorrectionConfig = CorrectionConfig(variance=25.0, drift=1e-4)
    """Per device class and stage: wide, because a declared rate may be off by orders of magnitude."""
    kind: CorrectionConfig = CorrectionConfig(variance=0.05, drift=1e-4)
    """Per device class, stage and kind of clip: narrow, because operations are counted within 2%."""
    worker: CorrectionConfig = CorrectionConfig(variance=0.01, drift=0.001)
    """Per worker: narrow and drifting, because one device may slow down alone."""
    measurement_variance: float = 0.002
    """Of one measurement: runs of one clip differ by about 5%."""
    outlier_deviations: float = 3.0
    """Standard deviations beyond which a measurement is clipped."""
    unmeasured_doubt: float = 3.0
    """The factor by which a device may be slower than expected at a stage that it has not been measured at."""
    load_weight: float = 0.3
    """Weight of each measured load after the first, which replaces the prior."""
    max_load_ratio: float = 4.0
    """Limit of measured over expected seconds of a load, in both directions, after the first."""

    def __post_init__(self) -> None:
        _require_minimum(self, 0, "measurement_variance", "outlier_deviations", "load_weight")
        _require_minimum(self, 1, "max_load_ratio", "unmeasured_doubt")


@dataclass(kw_only=True, slots=True, frozen=True)
class SchedulerConfig:
    """Tunables of a scheduler."""

    max_latents: int | None = None
    """Clips denoised or being denoised that may wait for decode; None for as many as the memory for latents holds."""
    latents_gb: float = 8.0
    """GB of latents that may wait for decode: 1,400 clips of 5 s, or 400 of 10 s at 960x960."""
    latents_gb_per_worker: float = 0.05
    """GB added to `latents_gb` for each worker."""
    max_writes: int = 2
    """Tasks whose files a worker may be writing when its device begins another one."""
    text_batch: int = 32
    """Items of one batched task at most."""
    text_batch_s: float = 5.0
    """Seconds of one batched task: a slow device gets smaller batches, and at least one item."""
    patience_s: float = 0.0
    """Seconds to wait for a device that can run what no present one can, before its clips are given up."""
    replan_share: float = 0.05
    """A new allocation is made when this share of the remaining clips' worth of tasks has started or ended."""
    surprise: float = 0.1
    """Share by which the first timed denoise of a device class may differ from what is expected before a new plan is made."""
    much_sooner: float = 0.97
    """Running denoises are begun elsewhere, once their device turns out to be slow, if the job then ends by this share of the
    time."""
    look_ahead: int = 16
    """Queued items, or interchangeable workers, tried to pair an item with a worker that it may run on."""
    min_recheck_s: float = 1.0
    """Least seconds before a worker that waits for a faster device is considered again."""
    recheck_share: float = 0.1
    """Share of the expected time to the end after which it is considered again, if that is longer."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    cost_model: CostModelConfig = field(default_factory=CostModelConfig)

    def __post_init__(self) -> None:
        _require_minimum(self, 1, "max_latents", "text_batch", "look_ahead")
        _require(self, self.text_batch_s > 0, "text_batch_s", "more than 0")
        _require(self, self.latents_gb > 0, "latents_gb", "more than 0")
        _require_minimum(
            self,
            0,
            "latents_gb_per_worker",
            "max_writes",
            "patience_s",
            "replan_share",
            "min_recheck_s",
            "recheck_share",
        )
