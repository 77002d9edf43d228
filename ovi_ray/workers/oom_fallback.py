"""What a worker does when a stage runs out of memory: the same work again in less, before it gives the work back.

A decode goes down to smaller tiles, then to the host's memory; the scheduler then finds it another device, and a worker
that is given it again decodes it on the CPU. A denoise goes down to being alone on the device. Latents are never lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ovi.models.tiling import Tiling

T = TypeVar("T")


@dataclass(kw_only=True, slots=True, frozen=True)
class Rung:
    """One way to run a stage, less greedy than the one before."""

    name: str
    tiling: Tiling | None = None
    """How the video's frames are cut."""
    alone: bool = False
    """Whether components that the stage does not need are put away first."""
    on_cpu: bool = False


AS_IT_IS = Rung(name="as it is")
ON_CPU = Rung(name="on the CPU", on_cpu=True)
DECODE_LADDER = (
    AS_IT_IS,
    Rung(name="in 2x2 tiles", tiling=Tiling(rows=2, columns=2)),
    Rung(name="in 4x4 tiles", tiling=Tiling(rows=4, columns=4, overlap=4)),
    Rung(
        name="in 4x4 tiles with the host's memory",
        tiling=Tiling(rows=4, columns=4, overlap=4, parks=True),
        alone=True,
    ),
)
DENOISE_LADDER = (AS_IT_IS, Rung(name="alone on the device", alone=True))


def decode_ladder(*, was_given_back: bool) -> tuple[Rung, ...]:
    """The rungs of a decode; one that this worker gave back before has found no better device, and ends on the CPU."""
    return (*DECODE_LADDER, ON_CPU) if was_given_back else DECODE_LADDER


def descend(
    ladder: Sequence[Rung], attempt: Callable[[Rung], T], is_out_of_memory: Callable[[BaseException], bool]
) -> tuple[Rung, T]:
    """The first rung that has enough memory, and what came of it. Raises the last rung's failure, and any other at once."""
    for rung in ladder[:-1]:
        try:
            return rung, attempt(rung)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return ladder[-1], attempt(ladder[-1])
