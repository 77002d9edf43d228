"""Progress of a job as counted by the scheduler."""

from dataclasses import dataclass

from ovi.stages import Stage


@dataclass(kw_only=True, slots=True, frozen=True)
class StageProgress:
    """How far one stage is."""

    done: int
    running: int
    ready: int
    """Could start now, were a device free."""
    total: int


@dataclass(kw_only=True, slots=True, frozen=True)
class Progress:
    """How far a job is, for display."""

    clips: int
    done: int
    failed: int
    stages: dict[Stage, StageProgress]
    eta_s: float | None
    """Seconds until the end, as expected now; None while it cannot be told."""
    workers: int
    busy: int
