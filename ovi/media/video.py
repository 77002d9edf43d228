"""Video files, encoded while the frames arrive and verified afterwards. A file under its final name is always complete.

Shapes: t frames, H W pixels, S audio samples.
"""

import json
import os
import wave
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovi.config import FRAMES_PER_SECOND, SAMPLE_RATE
from ovi.errors import MediaError
from ovi.files import atomic_writer, unfinished_path
from ovi.media.codecs import FILE_FORMS, VideoCodec
from ovi.media.frames import pcm_levels, pixels_frame, resampled, sound_frame
from ovi.media.probe import media_errors, probe

_RGB_MATRIX = 0  # AVCOL_SPC_RGB, which PyAV has no name for
MAX_AAC_BIT_RATE = 192_000
AAC_BITS_PER_SAMPLE = 6  # AAC's maximum for mono
AAC_FRAME = 1024  # samples per AAC frame
JPEG_QUALITY = 92
PCM_BYTES = 3  # of a sample in a WAV file


def frames_to_uint8(chunk: Tensor) -> NDArray[np.uint8]:
    """Convert decoded pixels [3, t, H, W] in [-1, 1] to frames [t, H, W, 3] on the CPU; out-of-range values are clipped.

    Rounds to the nearest level, so an 8-bit image scaled to [-1, 1] is recovered exactly. The published code truncates,
    which darkens every clip by half a level.
    """
    frames: NDArray[np.uint8] = frames_as_bytes(chunk).cpu().numpy()
    return frames


def frames_as_bytes(chunk: Tensor) -> Tensor:
    """As `frames_to_uint8`, on the chunk's device, which is not waited for."""
    return _levels(chunk, 255).byte()


def frames_to_uint16(chunk: Tensor) -> NDArray[np.uint16]:
    """As `frames_to_uint8`, with 65,536 levels: what is in the latents beyond 8 bits."""
    return _levels(chunk, 65_535).int().cpu().numpy().astype(np.uint16)


def _levels(chunk: Tensor, largest: int) -> Tensor:
    """[3, t, H, W] -> whole numbers [t, H, W, 3] from 0 to `largest`, still as floats."""
    levels = chunk.float().add(1).mul_(largest / 2).round_().clamp_(0, largest)
    return levels.permute(1, 2, 3, 0).contiguous()


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


def write_wav(path: str | Path, audio: NDArray[np.float32], sample_rate: int, *, audio_rate: int | None = None) -> None:
    """Write mono sound [S] as 24-bit PCM, at `audio_rate` or its own rate. Raises MediaError when it cannot be written."""
    path, rate = Path(path), audio_rate or sample_rate
    levels = pcm_levels(np.clip(resampled(audio, sample_rate, rate), -1, 1))
    # FFmpeg declares 24 bits in a form of WAV that some programs, Python's own module too, do not read.
    with media_errors(path), atomic_writer(path) as unfinished, wave.open(str(unfinished), "wb") as file:
        file.setparams((1, PCM_BYTES, rate, len(levels), "NONE", ""))
        file.writeframes(levels.astype("<i4").view(np.uint8).reshape(-1, 4)[:, -PCM_BYTES:].tobytes())


class VideoWriter:
    """Writes one clip as video with, optionally, mono sound. A context manager:

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
        audio_rate: int | None = None,
        fps: int = FRAMES_PER_SECOND,
        title: str = "",
        parameters: Mapping[str, Any] | None = None,
        codec: VideoCodec = VideoCodec.H264,
        preset: str = "veryfast",
        crf: int = 18,
        threads: int = 0,
        num_frames: int | None = None,
    ) -> None:
        """Declare the clip; nothing is opened before the `with` block.

        `audio` [S], at `sample_rate`, is clipped to [-1, 1] and stored at `audio_rate`, by default its own. `parameters` are
        stored as JSON in the comment tag. `num_frames` is the number of frames that the finished clip must have; None accepts
        any. `preset` and `crf` are x264's speed preset and quality (0 is lossless, 18 nearly so). `threads` is the number of
        encoder threads, 0 for one per core.
        """
        self.path = Path(path)
        self._partial = unfinished_path(self.path)
        self._form = FILE_FORMS[codec]
        self._sample_rate = audio_rate or sample_rate
        self._audio = None if audio is None else self._sound(audio, sample_rate)
        self._fps = fps
        self._tags = {"title": title, "comment": json.dumps(parameters or {}, ensure_ascii=False)}
        own = {"preset": preset, "crf": str(crf)} if codec is VideoCodec.H264 else {}
        self._options = {**self._form.encoder_options, **own}
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

    def write(self, frames: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        """Append RGB frames [t, H, W, 3] of 8 or 16 bits and the audio up to their end.

        Raises ValueError for another shape or dtype.
        """
        if frames.dtype not in (np.uint8, np.uint16) or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [t, H, W, 3]")
        for pixels in frames:
            self.write_frame(pixels_frame(pixels))

    def write_frame(self, frame: VideoFrame) -> None:
        """Append a frame in any pixel format, with its colours as it declares them, and the audio up to its end.

        Raises ValueError for a frame of another size than the first.
        """
        self._check_size(frame)
        with media_errors(self.path):
            self._encode_frame(frame)
            self._encode_audio(until=self._num_frames * self._sample_rate // self._fps)

    def _sound(self, audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        wave = np.asarray(audio, dtype=np.float32).reshape(-1)
        clipped: NDArray[np.float32] = np.clip(resampled(wave, sample_rate, self._sample_rate), -1, 1)
        return clipped

    def _open(self) -> None:
        form = self._form
        options = dict(form.container_options)
        self._container = av.open(str(self._partial), "w", format=form.container, options=options)
        self._container.metadata.update(self._tags)
        video = self._container.add_stream(form.encoder, rate=self._fps, options=self._options)
        self._video_stream = cast(VideoStream, video)
        context = self._video_stream.codec_context
        context.thread_count = self._threads
        self._audio_stream: AudioStream | None = None
        if self._audio is not None:
            sound = self._container.add_stream(form.sound, rate=self._sample_rate, layout="mono")
            self._audio_stream = cast(AudioStream, sound)
            if form.sound == "aac":
                self._audio_stream.bit_rate = min(AAC_BITS_PER_SAMPLE * self._sample_rate, MAX_AAC_BIT_RATE)

    def _check_size(self, frame: VideoFrame) -> None:
        context = self._video_stream.codec_context
        if not self._num_frames:
            context.height, context.width = frame.height, frame.width
            self._given = frame.format.name
            context.pix_fmt = self._form.stored_as(self._given)
            self._tag_colours(context)
        if (frame.height, frame.width) != (context.height, context.width):
            raise ValueError(
                f"frames are {frame.height}x{frame.width}; expected {context.height}x{context.width} like the first frame"
            )

    def _tag_colours(self, tagged: Any) -> None:
        """Declare the colours of a codec context or a frame: without that, players guess them from the frame's size."""
        is_rgb = VideoFormat(self._form.stored_as(self._given)).is_rgb
        tagged.colorspace = _RGB_MATRIX if is_rgb else Colorspace.ITU709
        tagged.color_range = ColorRange.JPEG if is_rgb else ColorRange.MPEG
        tagged.color_primaries = ColorPrimaries.BT709
        tagged.color_trc = ColorTrc.BT709

    def _encode_frame(self, frame: VideoFrame) -> None:
        context = self._video_stream.codec_context
        if frame.format.name != context.pix_fmt:
            frame = frame.reformat(
                format=context.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=context.color_range
            )
        self._tag_colours(frame)  # ProRes takes them from there
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
            samples = self._audio[self._num_samples : self._num_samples + AAC_FRAME]
            frame = sound_frame(samples, self._form, self._sample_rate, self._num_samples)
            self._num_samples += len(samples)
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
