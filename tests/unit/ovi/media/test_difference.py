"""Figures of how far two renderings of a clip are apart."""

import numpy as np
import pytest

from ovi.errors import MediaError
from ovi.media.difference import clip_difference
from ovi.media.video import VideoWriter

FRAMES, SIZE, RATE = 12, 96, 16_000


def picture(shift=0):
    """A smooth pattern."""
    x = np.linspace(0, 6, SIZE) + shift
    return (127 + 60 * np.sin(x)[None, :, None] + 60 * np.cos(2 * x)[:, None, None] + np.zeros(3)).clip(0, 255)


def tone(frequency=440.0, level=0.3, seconds=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


@pytest.fixture
def clip(tmp_path):
    """Write a lossless clip: frames of `frame(index)` and sound."""

    def write(name, frame=lambda index: picture(index / 20), audio=None, size=None):
        frames = np.stack([frame(index) for index in range(FRAMES)]).astype(np.uint8)[:, :size, :size]
        with VideoWriter(
            tmp_path / f"{name}.mkv", audio=tone() if audio is None else audio, codec="ffv1", num_frames=FRAMES
        ) as writer:
            writer.write(frames)
        return tmp_path / f"{name}.mkv"

    return write


def noisy(amount, seed=0):
    noise = np.random.default_rng(seed).normal(0, amount, (FRAMES, SIZE, SIZE, 3))
    return lambda index: (picture(index / 20) + noise[index]).clip(0, 255)


def test_equal_clips_have_no_difference(clip):
    found = clip_difference(clip("a"), clip("b"))
    assert (found.psnr_db, found.ms_ssim, found.gradient_deviation) == (100.0, pytest.approx(1.0), 0.0)
    assert (found.flicker, found.log_mel, found.level_db) == (0.0, 0.0, 0.0)
    assert found.spectral_cosine == pytest.approx(1.0)


def test_more_noise_is_a_larger_difference_in_every_figure_of_the_picture(clip):
    reference = clip("a")
    some, more = (clip_difference(reference, clip(f"noise{amount}", noisy(amount))) for amount in (4, 16))
    assert 100 > some.psnr_db > more.psnr_db > 15
    assert 1 > some.ms_ssim > more.ms_ssim > 0
    assert 0 < some.gradient_deviation < more.gradient_deviation
    assert 0 < some.flicker < more.flicker
    assert (some.log_mel, some.level_db) == (0.0, 0.0)


def test_noise_that_stands_still_is_no_flicker(clip):
    reference = clip("still", lambda index: picture())
    still = noisy(16)(0)
    assert clip_difference(reference, clip("b", lambda index: still)).flicker == 0.0


@pytest.mark.parametrize(("level", "expected"), [(0.15, -6.02), (0.6, 6.02)])
def test_the_level_is_told_in_decibels(clip, level, expected):
    found = clip_difference(clip("a"), clip("b", audio=tone(level=level)))
    assert found.level_db == pytest.approx(expected, abs=0.05)
    assert found.spectral_cosine == pytest.approx(1.0, abs=1e-4)


def test_another_tone_has_another_spectrum(clip):
    found = clip_difference(clip("a"), clip("b", audio=tone(1200.0)))
    assert found.spectral_cosine < 0.1
    assert found.log_mel > 0.1
    assert found.psnr_db == 100.0


def test_silence_is_compared_like_any_sound(clip):
    silence = np.zeros(RATE // 2, np.float32)
    found = clip_difference(clip("a", audio=silence), clip("b", audio=silence))
    assert (found.level_db, found.spectral_cosine) == (0.0, 1.0)
    assert clip_difference(clip("c"), clip("d", audio=silence)).level_db < -60


def test_clips_of_another_size_cannot_be_compared(clip):
    with pytest.raises(MediaError, match="64x64"):
        clip_difference(clip("a"), clip("b", size=64))
