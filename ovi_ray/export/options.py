"""Options of an export."""

from dataclasses import dataclass
from enum import StrEnum

from ovi.media.codecs import VideoCodec

DEFAULT_NAME = "{row:04}_{clip_id}"
DEFAULT_CRF = 18
EDITING_RATE = 48_000
"""Hz: of the sound of encoded files, as editors expect it."""


class Source(StrEnum):
    """Source of masters: kept latents or the MP4."""

    AUTO = "auto"
    """Kept latents where they are, else the MP4."""
    LATENTS = "latents"
    VIDEO = "video"


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportOptions:
    """Files that are written for each clip, and their form."""

    name: str = DEFAULT_NAME
    codec: VideoCodec | None = None
    """None copies or links the MP4 as it is."""
    crf: int = DEFAULT_CRF
    """x264's quality, for `VideoCodec.H264`."""
    audio_rate: int = EDITING_RATE
    wav: bool = False
    png: bool = False
    csv: bool = False
    link: bool = False
    overwrite: bool = False
    source: Source = Source.AUTO

    @property
    def decodes(self) -> bool:
        """Whether frames or sound are needed, rather than the file of the video alone."""
        return self.codec is not None or self.wav or self.png
