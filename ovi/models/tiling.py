"""A frame in overlapping tiles: where they lie. Pure: no torch. Lengths are in latents."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple


class Span(NamedTuple):
    """A tile's extent in one direction, and how far it reaches into its neighbours."""

    start: int
    stop: int
    before: int
    """Overlap with the tile before."""
    after: int
    """Overlap with the tile after."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Tiling:
    """Into how many tiles a frame is cut, each way. A small frame gets fewer: a tile is at least twice its overlap.

    Raises ValueError for fewer than one tile or a negative overlap.
    """

    rows: int
    columns: int
    overlap: int = 8
    """Latents that neighbours share and are blended over. The decoder's reach is 13: with less, seams differ a little."""
    parks: bool = False
    """What a tile remembers waits in the host's memory while the others are decoded: slower, in less memory."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.overlap < 0:
            raise ValueError(f"{self}: expected at least one row and one column, and an overlap of at least 0")

    def tiles(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """The (row span, column span) of each tile of a frame of (height, width) latents."""
        return list(product(spans(height, self.rows, self.overlap), spans(width, self.columns, self.overlap)))


def spans(length: int, count: int, overlap: int) -> list[Span]:
    """`length` in up to `count` equal spans that overlap by at least `overlap`."""
    while count > 1 and _size(length, count, overlap) < 2 * overlap:
        count -= 1
    if count == 1:
        return [Span(0, length, 0, 0)]
    size = _size(length, count, overlap)
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    shared = [0, *(first + size - second for first, second in pairwise(starts)), 0]
    return [Span(start, start + size, shared[i], shared[i + 1]) for i, start in enumerate(starts)]


def _size(length: int, count: int, overlap: int) -> int:
    return -(-(length + (count - 1) * overlap) // count)
