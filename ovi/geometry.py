"""Frame sizes, latent grids and token counts, in integers (no torch).

Sizes are (height, width) in pixels. The published model fits a size to its area by two different rules: `snap_size` for
a requested size, `image_size` for the size of a first-frame image.
"""

import math

from ovi.config import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ovi.errors import InvalidRequest

SIZE_MULTIPLE = 32  # pixels; both sides of a frame are multiples: 16 pixels per latent, 2 latents per token
MAX_ASPECT_RATIO = 8.0  # the model was trained up to 2.5; far beyond it, frames degenerate to strips
MAX_IMAGE_SIDE = 16_384  # pixels per side of a first-frame image
MAX_IMAGE_PIXELS = 89_478_485  # pixels of a first-frame image; above it Pillow warns of decompression bombs


def snap_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(height, width) scaled to `area` pixels, then each side rounded to the nearest multiple of 32.

    Raises InvalidRequest unless both sides are positive.
    """
    _check_positive(height, width)
    scale = math.sqrt(area / float(height * width))
    return _nearest_multiple(round(height * scale)), _nearest_multiple(round(width * scale))


def image_size(height: int, width: int, area: int) -> tuple[int, int]:
    """The (height, width) in multiples of 32 closest to `area`; ties go to the closest aspect ratio.

    Raises InvalidRequest unless both sides are positive.
    """
    _check_positive(height, width)
    ratio = width / height
    middle = round(math.sqrt(max(1, area // SIZE_MULTIPLE**2) / ratio))
    rows = [max(1, middle + offset) for offset in range(-3, 4)]
    candidates = [(row * SIZE_MULTIPLE, max(1, round(row * ratio)) * SIZE_MULTIPLE) for row in rows]
    scale = math.sqrt(area / float(height * width))
    candidates.append((_nearest_multiple(height * scale), _nearest_multiple(width * scale)))
    return min(candidates, key=lambda size: (abs(size[0] * size[1] - area), abs(size[1] / size[0] - ratio)))


def aspect_ratio(height: int, width: int) -> float:
    """Longer side divided by shorter side."""
    return max(height, width) / min(height, width)


def latent_grid(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the latents of a frame."""
    return height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def num_video_tokens(latent_frames: int, height: int, width: int, patch_size: tuple[int, ...] = (1, 2, 2)) -> int:
    """Tokens of a clip's video in the transformer."""
    rows, columns = latent_grid(height, width)
    return (latent_frames // patch_size[0]) * (rows // patch_size[1]) * (columns // patch_size[2])


def num_frames(latent_frames: int) -> int:
    """Video frames that `latent_frames` latent frames decode to."""
    return TEMPORAL_STRIDE * (latent_frames - 1) + 1


def _nearest_multiple(side: float) -> int:
    return max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def _check_positive(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise InvalidRequest(f"the size is {height}x{width}; expected a positive height and width")
