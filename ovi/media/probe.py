"""Inspection of video files: reads every packet without decoding (no torch)."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeGuard

import av
from av.audio.stream import AudioStream
from av.stream import Stream

from ovi.errors import MediaError


@dataclass(kw_only=True, slots=True, frozen=True)
class MediaInfo:
    """Properties of a video file."""

    width: int
    height: int
    num_frames: int
    fps: float
    duration: float
    """Seconds of video."""
    sample_rate: int | None
    """Audio sample rate in Hz; None without audio."""
    num_samples: int
    """Audio samples that a player plays; 0 without audio."""
    title: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """The parameters that `VideoWriter` stored; empty for files from elsewhere."""


def probe(path: str | Path, content: bytes | None = None) -> MediaInfo:
    """Read a video file to its end without decoding it; with `content`, that of the file, which `path` only names.

    Raises MediaError for a missing file, a file without video, or one with fewer packets than its index declares.
    """
    path = Path(path)
    source: Any = str(path) if content is None else BytesIO(content)
    with media_errors(path), av.open(source, "r") as container:
        if not container.streams.video:
            raise MediaError(f"{path}: has no video stream")
        video = container.streams.video[0]
        audio = next(iter(container.streams.audio), None)
        counted = {stream.index: 0 for stream in container.streams}
        for packet in container.demux():
            if packet.is_corrupt:
                raise MediaError(f"{path}: is truncated or corrupt")
            # An index counts PCM by samples, all else by packets.
            is_pcm = _is_pcm(stream := packet.stream)
            counted[stream.index] += _samples_in(packet.size, stream) if is_pcm else packet.size > 0
        for stream in container.streams:
            if counted[stream.index] < stream.frames:
                raise MediaError(f"{path}: is truncated: has {counted[stream.index]} of {stream.frames} packets")
        fps = float(video.average_rate or 0)
        return MediaInfo(
            width=video.width,
            height=video.height,
            num_frames=counted[video.index],
            fps=fps,
            duration=counted[video.index] / fps if fps else 0.0,
            sample_rate=audio.rate if audio else None,
            num_samples=counted[audio.index] if audio is not None and _is_pcm(audio) else _num_samples(audio),
            title=_tag(container.metadata, "title"),
            parameters=_parameters(_tag(container.metadata, "comment")),
        )


def _is_pcm(stream: Stream) -> TypeGuard[AudioStream]:
    return isinstance(stream, AudioStream) and stream.codec_context.name.startswith("pcm")


def _samples_in(size: int, stream: AudioStream) -> int:
    """Samples of a channel in so many bytes of PCM, whose name tells its bits: pcm_s24le."""
    bits = re.search(r"[0-9]+", stream.codec_context.name)
    return 8 * size // (int(bits[0]) * stream.channels) if bits else 0


def _num_samples(audio: AudioStream | None) -> int:
    if audio is None or audio.duration is None or audio.time_base is None:
        return 0
    return round(audio.duration * audio.time_base * audio.rate)


def _tag(metadata: Mapping[str, str], name: str) -> str:
    return metadata.get(name) or metadata.get(name.upper(), "")  # Matroska's names are in capitals


def _parameters(comment: str) -> dict[str, Any]:
    with suppress(ValueError):
        parameters = json.loads(comment)
        if isinstance(parameters, dict):
            return parameters
    return {}


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Convert exceptions of PyAV and the file system to MediaError with the file's name."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
