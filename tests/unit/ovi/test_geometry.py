import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi.config import MODEL_SPECS
from ovi.errors import InvalidRequest
from ovi.geometry import (
    MAX_ASPECT_RATIO,
    aspect_ratio,
    image_size,
    latent_grid,
    num_frames,
    num_video_tokens,
    snap_size,
)

sides = st.integers(1, 16_384)
areas = st.sampled_from([64 * 64, 720 * 720, 960 * 960])


def test_sizes_are_snapped_as_published(golden_json):
    for height, width, area, snapped_height, snapped_width in golden_json["snap"]:
        assert snap_size(height, width, area) == (snapped_height, snapped_width)


def test_image_sizes_are_fitted_as_published(golden_json):
    for height, width, area, fitted_height, fitted_width in golden_json["image_hw"]:
        assert image_size(height, width, area) == (fitted_height, fitted_width)


@given(sides, sides, areas)
def test_every_size_is_a_positive_multiple_of_32(height, width, area):
    for size in (snap_size(height, width, area), image_size(height, width, area)):
        assert all(side >= 32 and side % 32 == 0 for side in size)


@given(sides, sides, st.sampled_from([720 * 720, 960 * 960]))
def test_sizes_of_moderate_aspect_ratio_come_close_to_the_area(height, width, area):
    if aspect_ratio(height, width) <= MAX_ASPECT_RATIO:
        for fitted_height, fitted_width in (snap_size(height, width, area), image_size(height, width, area)):
            assert abs(fitted_height * fitted_width / area - 1) < 0.13


@pytest.mark.parametrize("fit", [snap_size, image_size])
@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_size_that_is_not_positive_is_refused(fit, size):
    with pytest.raises(InvalidRequest, match="expected a positive height and width"):
        fit(*size, 720 * 720)


def test_token_counts_are_those_of_the_published_models():
    assert latent_grid(704, 1280) == (44, 80)
    assert num_video_tokens(31, 704, 704) == 15_004
    assert num_video_tokens(31, 704, 1280) == 27_280
    assert num_video_tokens(61, 960, 960) == 54_900


def test_latents_decode_to_the_published_number_of_frames():
    assert {name: num_frames(spec.video_latent_length) for name, spec in MODEL_SPECS.items()} == {
        "720x720_5s": 121,
        "960x960_5s": 121,
        "960x960_10s": 241,
    }
