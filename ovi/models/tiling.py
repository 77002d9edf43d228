"""Layout of overlapping tiles of a frame, for decoding in less memory (no torch). Lengths are in latents."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple


class Span(NamedTuple):
    """Extent of a tile in one direction and its overlap with its neighbours."""

    start: int
    stop: int
    before: int
    """Overlap with the previous tile."""
    after: int
    """Overlap with the next tile."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Tiling:
    """Number of tiles that a frame is decoded in. Small frames get fewer, as a tile is at least twice its overlap.

    Raises ValueError for fewer than one row or column, or a negative overlap.
    """

    rows: int
    columns: int
    overlap: int = 8
    """Latents that neighbours share and are blended over. The decoder's receptive field is 13 latents: with less
    overlap, pixels near the seams differ slightly."""
    parks: bool = False
    """Keep a tile's decoder state in host memory while other tiles are decoded: less device memory, but slower."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.overlap < 0:
            raise ValueError(f"{self}; expected at least one row, at least one column and an overlap of at least 0")

    def tiles(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """(row span, column span) of each tile of a frame of (height, width) latents, row by row."""
        return list(product(spans(height, self.rows, self.overlap), spans(width, self.columns, self.overlap)))


def spans(length: int, count: int, overlap: int) -> list[Span]:
    """Cover `length` with up to `count` spans of equal size that overlap by at least `overlap`."""
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
