"""Clips without content: a picture of one colour throughout, or silence. They are valid, and rarely what was wanted."""

import numpy as np
from numpy.typing import NDArray

_SILENCE = 2**-15  # one step of 16-bit sound


class Flatness:
    """Looks at a clip while it is written: at its sound [S], then at its frames. All but flat clips cost one chunk's look."""

    def __init__(self, audio: NDArray[np.float32]) -> None:
        self.is_silent = bool(np.ptp(audio) < _SILENCE) if audio.size else True
        self._colour: NDArray[np.uint8] | None = None
        self._is_one_colour = True

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Look at frames uint8 [t, H, W, 3], at least one."""
        if self._colour is None:
            self._colour = frames[0, 0, 0].copy()
        self._is_one_colour = self._is_one_colour and bool((frames == self._colour).all())

    @property
    def is_one_colour(self) -> bool:
        """Whether all pixels so far have the same colour."""
        return self._is_one_colour and self._colour is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the whole clip, which go on after its name."""
        picture = ("shows one colour throughout",) if self.is_one_colour else ()
        return picture + (("is silent throughout",) if self.is_silent else ())
