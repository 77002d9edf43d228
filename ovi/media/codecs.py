"""The kinds of video files that `VideoWriter` writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

MAX_AAC_BIT_RATE = 192_000


class VideoCodec(StrEnum):
    """The codec of a video file; each has its container and its form of sound."""

    H264 = "h264"
    """MP4 with AAC, which everything plays."""
    PRORES = "prores"
    """QuickTime with Apple ProRes 422 HQ in 10 bits and PCM, for editing."""
    FFV1 = "ffv1"
    """Matroska with lossless FFV1 and PCM, for keeping."""


@dataclass(kw_only=True, slots=True, frozen=True)
class FileForm:
    """How a codec is written: the names are those of FFmpeg."""

    suffix: str
    container: str
    container_options: Mapping[str, str] = field(default_factory=dict)
    encoder: str
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    pixel_formats: Mapping[str, str]
    """Form of the frames that are given -> form in which they are stored; "" for all others."""
    sound: str
    """AAC takes frames of 1024 samples in floats; PCM is stored in 24 bits."""

    def stored_as(self, given: str) -> str:
        """The pixel format in which frames of the format `given` are stored."""
        return self.pixel_formats.get(given, self.pixel_formats[""])


FILE_FORMS: Mapping[VideoCodec, FileForm] = {
    VideoCodec.H264: FileForm(
        suffix=".mp4",
        container="mp4",
        container_options={"movflags": "+faststart"},
        encoder="libx264",
        pixel_formats={"": "yuv420p"},  # the only one that QuickTime and browsers play
        sound="aac",
    ),
    VideoCodec.PRORES: FileForm(
        suffix=".mov",
        container="mov",
        encoder="prores_ks",
        encoder_options={"profile": "hq", "vendor": "apl0"},
        pixel_formats={"": "yuv422p10le"},
        sound="pcm_s24le",
    ),
    VideoCodec.FFV1: FileForm(
        suffix=".mkv",
        container="matroska",
        encoder="ffv1",
        encoder_options={"level": "3", "slicecrc": "1"},
        pixel_formats={"rgb24": "bgr0", "rgb48le": "gbrp16le", "": "yuv420p"},  # as they are given
        sound="pcm_s24le",
    ),
}


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
