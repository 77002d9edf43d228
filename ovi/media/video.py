"""MP4 files, encoded while the frames arrive and verified afterwards. A file under its final name is always complete.

Shapes: t frames, H W pixels, S audio samples.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovi.config import FRAMES_PER_SECOND, SAMPLE_RATE
from ovi.errors import MediaError
from ovi.files import atomic_writer, unfinished_path
from ovi.media.probe import media_errors, probe

AUDIO_BIT_RATE = 96_000  # bits per second; AAC's maximum for 16 kHz mono
AAC_FRAME = 1024  # samples per AAC frame
JPEG_QUALITY = 92


def frames_to_uint8(chunk: Tensor) -> NDArray[np.uint8]:
    """Convert decoded pixels [3, t, H, W] in [-1, 1] to frames [t, H, W, 3] on the CPU; out-of-range values are clipped.

    Rounds to the nearest level, so an 8-bit image scaled to [-1, 1] is recovered exactly. The published code truncates,
    which darkens every clip by half a level.
    """
    levels = chunk.float().add(1).mul_(127.5).round_().clamp_(0, 255).byte()
    frames: NDArray[np.uint8] = levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames


def write_poster(path: str | Path, frame: NDArray[np.uint8]) -> None:
    """Write one frame [H, W, 3] as an image, in the format of the name's suffix (.jpg, .png, .webp).

    Raises MediaError when it cannot be written.
    """
    path = Path(path)
    try:
        image_format = Image.registered_extensions().get(path.suffix.lower())
        with atomic_writer(path) as unfinished:
            Image.fromarray(frame).save(unfinished, format=image_format, quality=JPEG_QUALITY)
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: the poster cannot be written: {error}") from error


class VideoWriter:
    """Writes one clip as H.264 video with, optionally, mono AAC audio. A context manager:

        with VideoWriter(path, audio=audio, title=prompt, parameters={"seed": 7}) as writer:
            for chunk in pipeline.decode_video(latents.video):
                writer.write(frames_to_uint8(chunk))

    The file appears at `path`, replacing an existing one, when the block ends without an exception. Until then it has a
    hidden name in the same folder; an exception removes it. Audio is required up front because it is interleaved with the
    frames of the same time. Raises MediaError, naming the file, if it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        audio: NDArray[np.float32] | None = None,
        sample_rate: int = SAMPLE_RATE,
        fps: int = FRAMES_PER_SECOND,
        title: str = "",
        parameters: Mapping[str, Any] | None = None,
        preset: str = "veryfast",
        crf: int = 18,
        threads: int = 0,
        num_frames: int | None = None,
    ) -> None:
        """Declare the clip; nothing is opened before the `with` block.

        `audio` [S] is clipped to [-1, 1]. `parameters` are stored as JSON in the comment tag. `num_frames` is the number
        of frames that the finished clip must have; None accepts any. `preset` and `crf` are x264's speed preset and
        quality (0 is lossless, 18 nearly so). `threads` is the number of encoder threads, 0 for one per core.
        """
        self.path = Path(path)
        self._partial = unfinished_path(self.path)
        self._audio = None if audio is None else np.clip(np.asarray(audio, dtype=np.float32).reshape(-1), -1, 1)
        self._sample_rate = sample_rate
        self._fps = fps
        self._tags = {"title": title, "comment": json.dumps(parameters or {}, ensure_ascii=False)}
        self._x264_options = {"preset": preset, "crf": str(crf)}
        self._threads = threads
        self._expected_frames = num_frames
        self._num_frames = 0
        self._num_samples = 0

    def __enter__(self) -> Self:
        try:
            with media_errors(self.path):
                self._open()
        except MediaError:
            self._partial.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with media_errors(self.path):
                    self._commit()
        finally:
            with suppress(av.FFmpegError):
                self._container.close()
            self._partial.unlink(missing_ok=True)

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames uint8 [t, H, W, 3] and the audio up to their end. Raises ValueError for another shape or dtype."""
        self._check(frames)
        with media_errors(self.path):
            for pixels in frames:
                self._encode_frame(pixels)
            self._encode_audio(until=self._num_frames * self._sample_rate // self._fps)

    def _open(self) -> None:
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata.update(self._tags)
        self._video_stream: VideoStream = self._container.add_stream(
            "libx264", rate=self._fps, options=self._x264_options
        )
        self._video_stream.pix_fmt = "yuv420p"
        context = self._video_stream.codec_context
        context.thread_count = self._threads
        # Without these tags, players guess the colour space from the frame size.
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._audio_stream: AudioStream | None = None
        if self._audio is not None:
            self._audio_stream = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
            self._audio_stream.bit_rate = AUDIO_BIT_RATE

    def _check(self, frames: NDArray[np.uint8]) -> None:
        context = self._video_stream.codec_context
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [t, H, W, 3]")
        height, width = frames.shape[1:3]
        if not self._num_frames:
            context.height, context.width = height, width
        if (height, width) != (context.height, context.width):
            raise ValueError(
                f"frames are {height}x{width}; expected {context.height}x{context.width} like the first frame"
            )

    def _encode_frame(self, pixels: NDArray[np.uint8]) -> None:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts = self._num_frames
        frame.time_base = Fraction(1, self._fps)
        self._num_frames += 1
        self._container.mux(self._video_stream.encode(frame))

    def _encode_audio(self, until: int) -> None:
        """Encode complete AAC frames up to sample `until`; at the end of the audio, also the remainder."""
        if self._audio is None or self._audio_stream is None:
            return
        is_end = until >= len(self._audio)
        while self._num_samples + (1 if is_end else AAC_FRAME) <= min(until, len(self._audio)):
            samples = self._audio[None, self._num_samples : self._num_samples + AAC_FRAME]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = self._num_samples
            self._num_samples += samples.shape[1]
            self._container.mux(self._audio_stream.encode(frame))

    def _commit(self) -> None:
        if not self._num_frames:
            raise MediaError(f"{self.path}: no frame was written; expected at least one")
        if self._audio is not None:
            self._encode_audio(until=len(self._audio))
        for stream in (self._video_stream, self._audio_stream):
            if stream is not None:
                self._container.mux(stream.encode(None))
        self._container.close()
        with self._partial.open("rb+") as file:
            os.fsync(
                file.fileno()
            )  # before the rename, so that after a crash the final name never has incomplete content
        self._verify()
        self._partial.replace(self.path)

    def _verify(self) -> None:
        """Read the file back and check that it has both streams and every frame."""
        expected = self._num_frames if self._expected_frames is None else self._expected_frames
        info = probe(self._partial)
        if info.num_frames != expected:
            raise MediaError(f"{self.path}: {info.num_frames} frames were written; expected {expected}")
        if (info.sample_rate is None) != (self._audio is None):
            raise MediaError(f"{self.path}: the audio stream was not written")
