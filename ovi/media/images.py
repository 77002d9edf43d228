"""First-frame images: reading, and resizing as in the published code."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ovi.errors import InvalidImage
from ovi.media.image_files import decode_image, decode_opened


def read_image(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """An image as RGB uint8 [H, W, 3]; see `decode_image` for how files and images of Pillow become that.

    Raises InvalidImage for an unreadable file or an array of another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        return _check_array(image)
    if isinstance(image, Image.Image):
        return decode_opened(image).pixels
    try:
        return decode_image(Path(image).read_bytes()).pixels
    except OSError as error:
        raise InvalidImage(f"a file that cannot be read ({error.strerror or error})", path=image) from error
    except InvalidImage as error:
        raise InvalidImage(f"cannot be read as an image: {error.found}", expected=error.expected, path=image) from error


def fit_image(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Convert uint8 [H, W, 3] to float32 [3, h, w] in [-1, 1], resized to `size` (h, w).

    Resizes bicubically without antialiasing, like the published `preprocess_image_tensor`.
    """
    pixels = torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1).unsqueeze(0) * 2.0 - 1.0
    if size != tuple(pixels.shape[-2:]):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
    return pixels.squeeze(0)


def _check_array(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise InvalidImage(f"an array of {image.dtype} {list(image.shape)}", expected="uint8 [H, W, 3]")
    return image
