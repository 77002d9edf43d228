"""Out-of-memory fallbacks of a worker: the same work again with less memory, before the task fails.

A decode falls back to smaller tiles, then to the host's memory. If that is not enough, the scheduler tries a larger device; a
worker that gets the clip again decodes it on the CPU. A denoise falls back to being alone on the device. Latents are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ovi.models.tiling import Tiling

T = TypeVar("T")


@dataclass(kw_only=True, slots=True, frozen=True)
class FallbackStep:
    """One way to run a stage."""

    name: str
    """Completes "clip ... was decoded ..."."""
    tiling: Tiling | None = None
    """Tiling of video frames for decoding; None for whole frames."""
    alone: bool = False
    """Unload the components that the stage does not need first."""
    on_cpu: bool = False


FULL = FallbackStep(name="in full")
ON_CPU = FallbackStep(name="on the CPU", on_cpu=True)
DECODE_STEPS = (
    FULL,
    FallbackStep(name="in 2x2 tiles", tiling=Tiling(rows=2, columns=2)),
    FallbackStep(name="in 4x4 tiles", tiling=Tiling(rows=4, columns=4, overlap=4)),
    FallbackStep(
        name="in 4x4 tiles with the host's memory",
        tiling=Tiling(rows=4, columns=4, overlap=4, parks=True),
        alone=True,
    ),
)
DENOISE_STEPS = (FULL, FallbackStep(name="alone on the device", alone=True))


def decode_steps(*, failed_here_before: bool) -> tuple[FallbackStep, ...]:
    """The steps of a decode, in order; the CPU comes last, and only for a clip that found no better device meanwhile."""
    return (*DECODE_STEPS, ON_CPU) if failed_here_before else DECODE_STEPS


def run_with_fallback(
    steps: Sequence[FallbackStep],
    attempt: Callable[[FallbackStep], T],
    is_out_of_memory: Callable[[BaseException], bool],
) -> tuple[FallbackStep, T]:
    """Try each step until one has enough memory. Returns that step and its result.

    Raises what the last step raises, and any other error than out of memory at once.
    """
    for step in steps[:-1]:
        try:
            return step, attempt(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return steps[-1], attempt(steps[-1])
