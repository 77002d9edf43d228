"""Bounds and patience of the scheduler. Pure."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True, frozen=True)
class SchedulerConfig:
    """Bounds and patience of a scheduler. Raises ValueError, naming the field, for one that is out of range."""

    max_latents: int | None = None
    """Denoised clips that may wait for decode, those being denoised included; None for 2 a worker and 8 more."""
    embeddings_gb: float = 4.0
    """GB of encoded texts that may wait for denoise, and 0.01 more for each worker."""
    text_batch: int = 32
    """Texts encoded in one task at most."""
    max_attempts: int = 3
    """Failures after which a clip is given up."""
    max_crashes: int = 3
    """Workers that may die while they run a task of one clip before it is given up as poison."""
    rest_s: float = 60.0
    """Seconds that a worker is taken out when it fails what others finish; doubled each time that it fails again."""
    longest_rest_s: float = 600.0
    """Seconds that it is taken out at most before it is tried again."""
    patience_s: float = 0.0
    """Seconds to wait for a device that can run what no present one can, before the clips are given up."""
    straggler_copies: bool = False
    """Give an idle worker a copy of a denoise that it would end much earlier."""

    def __post_init__(self) -> None:
        for name in ("max_latents", "text_batch", "max_attempts", "max_crashes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value!r}; expected at least 1")
        for name in ("embeddings_gb", "rest_s", "longest_rest_s", "patience_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")
