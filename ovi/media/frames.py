"""Arrays of pixels and of sound as frames for FFmpeg's encoders (no torch)."""

from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ovi.media.codecs import FileForm


def sound_frame(samples: NDArray[np.float32], form: FileForm, sample_rate: int, position: int) -> av.AudioFrame:
    """Mono samples [S] in [-1, 1] as a frame for the form's encoder, to be played from sample `position` on."""
    if form.sound == "aac":
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    else:
        frame = av.AudioFrame.from_ndarray(pcm_levels(samples)[None], format="s32", layout="mono")
    frame.sample_rate = sample_rate
    frame.time_base = Fraction(1, sample_rate)
    frame.pts = position
    return frame


def pcm_levels(samples: NDArray[np.float32]) -> NDArray[np.int32]:
    """Samples in [-1, 1] as 32-bit integers, of which the upper 24 bits are stored."""
    return np.clip(np.rint(samples.astype(np.float64) * 2**31), -(2**31), 2**31 - 1).astype(np.int32)


def resampled(samples: NDArray[np.float32], rate: int, to_rate: int) -> NDArray[np.float32]:
    """Mono samples [S] at another rate: [S * to_rate / rate], rounded, with a band limit at the lower rate."""
    if rate == to_rate:
        return samples
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to_rate)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    pieces = [piece.to_ndarray()[0] for part in (frame, None) for piece in resampler.resample(part)]
    length = round(len(samples) * to_rate / rate)
    joined = np.concatenate([*pieces, np.zeros(length, np.float32)])
    return np.ascontiguousarray(joined[:length], dtype=np.float32)


def pixels_frame(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> VideoFrame:
    """RGB pixels [H, W, 3] of 8 or 16 bits as a frame."""
    return VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le")
