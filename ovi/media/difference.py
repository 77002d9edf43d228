"""Figures of how far two renderings of a clip are apart, from their files.

The same seed gives other pixels with another exact backend too, so every figure means something only beside that of two exact
renderings. No figure uses a trained network: MS-SSIM (Wang 2003) and the deviation of gradients (GMSD, arXiv 1308.3052) compare
structure at several scales, and agree with human judgement about as well as a plain LPIPS does on compression and blur; they
punish a shift by a few pixels, which LPIPS forgives.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import prewitt, uniform_filter
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ovi.config import SAMPLE_RATE
from ovi.errors import MediaError
from ovi.media.frames import resampled
from ovi.media.probe import MediaInfo, probe
from ovi.media.reading import read_frames, read_sound, rgb_pixels

Pixels = NDArray[np.float32]

_COMPARED_FRAMES = 16  # of a clip, evenly spaced, for figures of single frames
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale
_SSIM_WINDOW = 11
_GMSD_CONSTANT = 170.0  # for levels up to 255
_MOST_DB = 100.0  # of equal pixels
_FFT, _HOP, _MELS = 1024, 256, 80
_SILENCE = 1e-5  # amplitude below which sound is not told from silence


@dataclass(kw_only=True, slots=True, frozen=True)
class ClipDifference:
    """Figures of a rendering beside a reference."""

    psnr_db: float
    """Mean peak signal-to-noise ratio of the frames."""
    ms_ssim: float
    """Mean multi-scale structural similarity of the luma."""
    gradient_deviation: float
    """Mean gradient magnitude similarity deviation of the luma."""
    flicker: float
    """Mean second difference of the luma over time, less that of the reference, in levels of 255."""
    log_mel: float
    """Mean absolute difference of the natural logarithms of 80 mel bands."""
    level_db: float
    """Level of the sound over that of the reference."""
    spectral_cosine: float
    """Cosine between the mean magnitude spectra."""


IDEAL: Mapping[str, float] = MappingProxyType(
    {
        "psnr_db": _MOST_DB,
        "ms_ssim": 1.0,
        "gradient_deviation": 0.0,
        "flicker": 0.0,
        "log_mel": 0.0,
        "level_db": 0.0,
        "spectral_cosine": 1.0,
    }
)
"""Each figure of two equal files."""


def clip_difference(reference: Path, other: Path) -> ClipDifference:
    """The difference between two video files with sound, of one size and length. Raises MediaError."""
    info = _same_shape(reference, other)
    psnr, ssim, gradients = [], [], []
    flicker, other_flicker = _Flicker(), _Flicker()
    stride = max(1, info.num_frames // _COMPARED_FRAMES)
    for index, (pixels, other_pixels) in enumerate(zip(_frames(reference), _frames(other), strict=True)):
        luma, other_luma = pixels @ _LUMA, other_pixels @ _LUMA
        flicker.add(luma)
        other_flicker.add(other_luma)
        if index % stride == 0:
            psnr.append(_psnr(pixels, other_pixels))
            ssim.append(_ms_ssim(luma, other_luma))
            gradients.append(_gradient_deviation(luma, other_luma))
    sound, other_sound = _sound(reference), _sound(other)
    length = min(len(sound), len(other_sound))
    spectrum, other_spectrum = _spectrum(sound[:length]), _spectrum(other_sound[:length])
    return ClipDifference(
        psnr_db=float(np.mean(psnr)),
        ms_ssim=float(np.mean(ssim)),
        gradient_deviation=float(np.mean(gradients)),
        flicker=other_flicker.mean - flicker.mean,
        log_mel=float(np.abs(_log_mel(spectrum) - _log_mel(other_spectrum)).mean()),
        level_db=_level_db(other_sound) - _level_db(sound),
        spectral_cosine=_cosine(spectrum.mean(axis=1), other_spectrum.mean(axis=1)),
    )


def _same_shape(reference: Path, other: Path) -> MediaInfo:
    infos = probe(reference), probe(other)
    first, second = (f"{info.num_frames} frames of {info.height}x{info.width}" for info in infos)
    if first != second:
        raise MediaError(f"{other}: has {second}; expected {first}, as {reference} has")
    return infos[0]


# -- pictures ------------------------------------------------------------------------------------------------------------


def _frames(path: Path) -> Iterator[Pixels]:
    """RGB [H, W, 3] in levels up to 255."""
    return (rgb_pixels(frame).astype(np.float32) for frame in read_frames(path))


def _psnr(pixels: Pixels, other: Pixels) -> float:
    error = float(np.mean((pixels - other) ** 2))
    return _MOST_DB if error == 0 else min(_MOST_DB, 10 * math.log10(255**2 / error))


def _ms_ssim(luma: Pixels, other: Pixels) -> float:
    """With as many of the five scales as the frames have room for."""
    fitting = [scales for scales in range(1, len(_SCALE_WEIGHTS) + 1) if _has_room(min(luma.shape), scales)]
    weights = _SCALE_WEIGHTS[: max(fitting, default=1)]
    total = sum(weights)
    pair = (torch.from_numpy(part / 255)[None, None] for part in (luma, other))
    return float(
        multiscale_structural_similarity_index_measure(
            *pair, data_range=1.0, betas=tuple(weight / total for weight in weights), normalize="relu"
        )
    )


def _has_room(side: int, scales: int) -> bool:
    """Whether the window fits at the coarsest scale, and torchmetrics, which wants more, accepts the side."""
    return min(side // 2 ** (scales - 1), side // max(1, (scales - 1) ** 2)) >= _SSIM_WINDOW


def _gradient_deviation(luma: Pixels, other: Pixels) -> float:
    """Of means over 2x2 pixels, as published."""
    gradients, other_gradients = (_gradients(uniform_filter(part, 2)[::2, ::2]) for part in (luma, other))
    similar = (2 * gradients * other_gradients + _GMSD_CONSTANT) / (gradients**2 + other_gradients**2 + _GMSD_CONSTANT)
    return float(similar.std())


def _gradients(luma: Pixels) -> Pixels:
    return np.hypot(prewitt(luma, axis=0), prewitt(luma, axis=1)) / 3


class _Flicker:
    """Mean second difference over time, frame by frame."""

    def __init__(self) -> None:
        self._last: list[Pixels] = []
        self._means: list[float] = []

    def add(self, luma: Pixels) -> None:
        if len(self._last) == 2:
            before, previous = self._last
            self._means.append(float(np.abs(luma - 2 * previous + before).mean()))
        self._last = [*self._last[-1:], luma]

    @property
    def mean(self) -> float:
        return float(np.mean(self._means)) if self._means else 0.0


# -- sound ---------------------------------------------------------------------------------------------------------------


def _sound(path: Path) -> NDArray[np.float32]:
    """Mono samples at 16 kHz."""
    if (found := read_sound(path)) is None:
        raise MediaError(f"{path}: has no sound; expected a clip with sound")
    samples, rate = found
    return resampled(samples, rate, SAMPLE_RATE)


def _spectrum(sound: NDArray[np.float32]) -> NDArray[np.float64]:
    """Magnitudes [513, T]."""
    window = window_function(_FFT, "hann")
    padded = np.pad(sound, (0, max(0, _FFT - len(sound))))
    return np.asarray(spectrogram(padded, window, frame_length=_FFT, hop_length=_HOP, power=1.0), np.float64)


def _log_mel(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    bank = mel_filter_bank(
        num_frequency_bins=_FFT // 2 + 1,
        num_mel_filters=_MELS,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.log(np.maximum(bank.T @ spectrum, _SILENCE))


def _level_db(sound: NDArray[np.float32]) -> float:
    level = math.sqrt(float(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0
    return 20 * math.log10(max(level, _SILENCE))


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms > 0 else float(np.array_equal(one, other))
