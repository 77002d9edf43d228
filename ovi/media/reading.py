"""Frames and sound of a video file, decoded (no torch)."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from ovi.media.probe import media_errors


def read_frames(path: str | Path) -> Iterator[VideoFrame]:
    """The frames in the form in which they are stored. Raises MediaError."""
    path = Path(path)
    with media_errors(path), av.open(str(path)) as container:
        yield from container.decode(video=0)


def rgb_pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame as RGB [H, W, 3], read by BT.709 where it is not RGB already, as `VideoWriter` stores it."""
    if frame.format.name == "rgb48le":
        levels = np.asarray(frame.to_ndarray(), np.uint32)
        return ((levels + 128) // 257).astype(np.uint8)
    converted = frame.reformat(
        format="rgb24",
        src_colorspace=None if frame.format.is_rgb else Colorspace.ITU709,
        src_color_range=None if frame.format.is_rgb else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return np.asarray(converted.to_ndarray(), np.uint8)


def read_sound(path: str | Path) -> tuple[NDArray[np.float32], int] | None:
    """The first channel of the sound [S] in [-1, 1] and its rate in Hz; None for a silent file. Raises MediaError."""
    path = Path(path)
    with media_errors(path), av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray()[0] for frame in container.decode(stream) for part in to_float.resample(frame)]
        # The last AAC frame is filled up with silence; the file says how long the sound is.
        length = None if stream.duration is None or stream.time_base is None else stream.duration * stream.time_base
        wave = np.concatenate([np.zeros(0, np.float32), *parts])
        return (wave if length is None else wave[: round(length * stream.rate)]), stream.rate
