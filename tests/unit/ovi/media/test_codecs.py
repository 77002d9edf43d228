"""Files for editors, written from frames and sound and read back."""

import wave

import av
import numpy as np
import pytest
import torch

from ovi.clip import Clip
from ovi.errors import MediaError
from ovi.media.codecs import FILE_FORMS, VideoCodec
from ovi.media.frames import resampled
from ovi.media.probe import probe
from ovi.media.reading import read_frames, read_sound, rgb_pixels
from ovi.media.video import VideoWriter, frames_to_uint8, frames_to_uint16, write_wav
from ovi.types import Latents

RATE, EDITING_RATE, FPS = 16_000, 48_000, 24
BT709 = 1


def make_frames(count=13):
    """A red and a green half, with a brightness of blue that rises by frame."""
    frames = np.zeros((count, 64, 96, 3), np.uint8)
    frames[:, :32, :, 0] = 200
    frames[:, 32:, :, 1] = 200
    frames[..., 2] = np.arange(count).reshape(-1, 1, 1)
    return frames


def make_sine(samples=RATE // 2, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def write(folder, codec, frames=None, **options):
    path = folder / f"clip{FILE_FORMS[codec].suffix}"
    frames = make_frames() if frames is None else frames
    given = {"audio": make_sine(), "audio_rate": EDITING_RATE, "title": "a fox", "parameters": {"clip_id": "x"}}
    with VideoWriter(path, codec=codec, num_frames=len(frames), threads=1, **given | options) as writer:
        writer.write(frames)
    return path


@pytest.mark.parametrize("codec", list(VideoCodec))
def test_a_file_of_every_codec_has_its_frames_its_sound_for_editors_and_its_tags(tmp_path, codec):
    info = probe(write(tmp_path, codec))
    assert (info.width, info.height, info.num_frames, info.fps) == (96, 64, 13, FPS)
    assert info.sample_rate == EDITING_RATE
    assert info.num_samples == pytest.approx(EDITING_RATE // 2, abs=48)
    assert (info.title, info.parameters) == ("a fox", {"clip_id": "x"})


@pytest.mark.parametrize(
    ("codec", "pixel_format", "matrix"),
    [(VideoCodec.H264, "yuv420p", BT709), (VideoCodec.PRORES, "yuv422p10le", BT709), (VideoCodec.FFV1, "bgr0", 0)],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_are_declared_and_read_back_as_they_were(tmp_path, codec, pixel_format, matrix, bits):
    frames = make_frames()
    path = write(tmp_path, codec, frames if bits == 8 else frames.astype(np.uint16) * 257)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == ("gbrp16le" if (codec, bits) == (VideoCodec.FFV1, 16) else pixel_format)
        assert (context.colorspace, context.color_primaries, context.color_trc) == (matrix, BT709, BT709)
    if codec is not VideoCodec.FFV1:
        assert b"colr" in path.read_bytes()  # what QuickTime reads
    read = np.stack([rgb_pixels(frame) for frame in read_frames(path)]).astype(int)
    assert np.abs(read - frames)[:, 4:28].max() < 12
    assert np.abs(read - frames)[:, 36:60].max() < 12


def test_lossless_frames_are_the_frames_that_were_written(tmp_path):
    frames = make_frames()
    path = write(tmp_path, VideoCodec.FFV1, frames)
    assert np.array_equal(np.stack([rgb_pixels(frame) for frame in read_frames(path)]), frames)


def test_lossless_frames_of_a_video_are_kept_in_its_own_form(tmp_path):
    source = write(tmp_path, VideoCodec.H264)
    with VideoWriter(tmp_path / "kept.mkv", codec=VideoCodec.FFV1) as writer:
        for frame in read_frames(source):
            writer.write_frame(frame)
    kept = [frame.to_ndarray() for frame in read_frames(tmp_path / "kept.mkv")]
    assert np.array_equal(np.stack(kept), np.stack([frame.to_ndarray() for frame in read_frames(source)]))


def test_a_lower_crf_makes_a_larger_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    sizes = [write(tmp_path, VideoCodec.H264, noise, crf=crf).stat().st_size for crf in (10, 40)]
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize("hertz", [100.0, 3000.0])
def test_sound_at_another_rate_keeps_pitch_level_and_length(hertz):
    sound = resampled(make_sine(RATE, hertz), RATE, EDITING_RATE)
    assert len(sound) == EDITING_RATE
    spectrum = np.abs(np.fft.rfft(sound)) / len(sound) * 2
    assert spectrum.argmax() == round(hertz)
    assert spectrum.max() == pytest.approx(0.5, rel=0.02)
    assert np.sort(spectrum)[-8] < 0.02  # nothing was mirrored


@pytest.mark.parametrize("codec", list(VideoCodec))
def test_sound_is_read_back_with_its_length(tmp_path, codec):
    sound, rate = read_sound(write(tmp_path, codec, audio_rate=None))
    assert rate == RATE
    assert len(sound) == pytest.approx(RATE // 2, abs=RATE // 1000)
    assert np.abs(sound[2000:6000]).max() == pytest.approx(0.5, rel=0.05)


def test_a_video_without_sound_has_none(tmp_path):
    assert read_sound(write(tmp_path, VideoCodec.H264, audio=None)) is None


def test_a_wav_file_has_24_bits_and_the_samples_that_were_given(tmp_path):
    sine = make_sine()
    write_wav(tmp_path / "a.wav", np.append(sine, np.float32([1.5, -1.5])), RATE)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 3, RATE)
        assert file.getnframes() == len(sine) + 2
    sound, _ = read_sound(tmp_path / "a.wav")
    assert np.abs(sound[:-2] - sine).max() < 2**-22
    assert sound[-2:] == pytest.approx([1, -1], abs=1e-6)


def test_pixels_of_16_bits_agree_with_those_of_8():
    chunk = torch.linspace(-1.2, 1.2, 3 * 64).reshape(3, 1, 8, 8)
    assert np.abs(frames_to_uint16(chunk) / 257 - frames_to_uint8(chunk)).max() <= 0.5
    assert frames_to_uint16(chunk).max() == 65_535


# -- a clip in memory --------------------------------------------------------------------------------------------------


def make_clip():
    latents = Latents(video=torch.zeros(1), audio=torch.zeros(1))
    return Clip(frames=make_frames(), audio=make_sine(), latents=latents)


@pytest.mark.parametrize("name", ["fox.mp4", "fox.mov", "fox.MKV"])
def test_a_clip_saves_itself_in_the_codec_of_the_suffix(tmp_path, name):
    path = make_clip().save(tmp_path / name, title="a fox", parameters={"seed": 7})
    info = probe(path)
    assert (info.num_frames, info.sample_rate, info.title, info.parameters) == (13, RATE, "a fox", {"seed": 7})


@pytest.mark.parametrize(("name", "expected"), [("fox.gif", ".mp4"), ("fox", ".mp4"), ("none/fox.mp4", "folder")])
def test_a_clip_says_what_it_cannot_be_saved_as(tmp_path, name, expected):
    with pytest.raises(MediaError, match=expected):
        make_clip().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
