"""What a video file holds, read to its end without decoding it. Imports no torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream

from ovi.errors import MediaError


@dataclass(kw_only=True, slots=True, frozen=True)
class MediaInfo:
    """What a video file holds."""

    width: int
    height: int
    num_frames: int
    fps: float
    duration: float
    """Seconds of video."""
    sample_rate: int | None
    """Hz; None without audio."""
    num_samples: int
    """Audio samples that a player plays."""
    title: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the writer was given; empty for a file of another origin."""


def probe(path: str | Path) -> MediaInfo:
    """Read a video file to its end, without decoding it.

    Raises MediaError for a file that is missing, is no video, or ends before the frames that its index promises.
    """
    path = Path(path)
    with media_errors(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise MediaError(f"{path}: holds no video")
        video = container.streams.video[0]
        audio = next(iter(container.streams.audio), None)
        packets = {stream.index: 0 for stream in container.streams}
        for packet in container.demux():
            if packet.is_corrupt:
                raise MediaError(f"{path}: is truncated")
            packets[packet.stream.index] += packet.size > 0
        for stream in container.streams:
            if packets[stream.index] < stream.frames:
                raise MediaError(f"{path}: is truncated: {packets[stream.index]} of {stream.frames} packets")
        fps = float(video.average_rate or 0)
        return MediaInfo(
            width=video.width,
            height=video.height,
            num_frames=packets[video.index],
            fps=fps,
            duration=packets[video.index] / fps if fps else 0.0,
            sample_rate=audio.rate if audio else None,
            num_samples=_num_samples(audio),
            title=container.metadata.get("title", ""),
            parameters=_parameters(container.metadata.get("comment", "")),
        )


def _num_samples(audio: AudioStream | None) -> int:
    if audio is None or audio.duration is None or audio.time_base is None:
        return 0
    return round(audio.duration * audio.time_base * audio.rate)


def _parameters(comment: str) -> dict[str, Any]:
    with suppress(ValueError):
        parameters = json.loads(comment)
        if isinstance(parameters, dict):
            return parameters
    return {}


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Turn what PyAV and the file system raise into a MediaError that names the file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
