"""First-frame images are read and resized as in the published code."""

import numpy as np
import pytest
import torch
from PIL import Image

from ovi.errors import InvalidImage
from ovi.media.images import fit_image, read_image


def test_an_image_is_fitted_as_published(first_frame_path, golden, assert_close_to_std):
    assert_close_to_std(fit_image(read_image(first_frame_path), (64, 64))[None], golden["image.preprocessed"], 1e-5)


def test_an_image_that_fits_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    levels = (fit_image(image, (64, 64)) + 1) * 127.5
    assert torch.equal(levels.round().byte(), torch.from_numpy(image).permute(2, 0, 1))


def test_a_photo_is_rotated_by_its_exif_orientation(tmp_path):
    image = Image.new("RGB", (60, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn right
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").shape == (60, 20, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.new(mode, (8, 6)).save(path)
    assert read_image(path).shape == (6, 8, 3)


def test_a_truncated_image_is_refused(first_frame_path, tmp_path):
    (tmp_path / "half.png").write_bytes(first_frame_path.read_bytes()[:3000])
    with pytest.raises(InvalidImage, match=r"half\.png: cannot be read"):
        read_image(tmp_path / "half.png")
