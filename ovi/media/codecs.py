"""The kinds of video files that `VideoWriter` writes (no torch, no FFmpeg)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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
    """Encoder settings; the names are those of FFmpeg."""

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
