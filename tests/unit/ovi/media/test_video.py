from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ovi.errors import MediaError
from ovi.media.probe import probe
from ovi.media.video import VideoWriter, frames_to_uint8, write_poster

FPS, SAMPLE_RATE = 24, 16_000
AAC_FRAME = 1024


def make_frames(count: int = 13, height: int = 64, width: int = 96) -> np.ndarray:
    """Red above, green below, and a brightness that rises by frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, : height // 2, :, 0] = 200
    frames[:, height // 2 :, :, 1] = 200
    frames[..., 2] = np.arange(count).reshape(-1, 1, 1)
    return frames


def make_sine(seconds: float, hertz: float = 440, amplitude: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write_clip(path: Path, frames: np.ndarray | None = None, **options: Any) -> Path:
    frames = make_frames() if frames is None else frames
    with VideoWriter(path, threads=1, **options) as writer:
        writer.write(frames[:1])
        for start in range(1, len(frames), 4):
            writer.write(frames[start : start + 4])
    return path


def fail_after_frames(path: Path) -> None:
    with VideoWriter(path) as writer:
        writer.write(make_frames(5))
        raise RuntimeError("the decode failed")


def read_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_audio(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_probe_reports_a_written_clip(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", audio=make_sine(13 / FPS))
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (96, 64, 13, 24)
    assert info.duration == pytest.approx(13 / FPS)
    assert info.sample_rate == SAMPLE_RATE
    assert abs(info.num_samples - round(13 / FPS * SAMPLE_RATE)) <= AAC_FRAME
    assert list(tmp_path.iterdir()) == [path]


def test_frames_keep_their_order_and_colours(tmp_path):
    frames = make_frames()
    decoded = read_frames(write_clip(tmp_path / "clip.mp4", frames, crf=10)).astype(int)
    assert decoded.shape == frames.shape
    assert np.abs(decoded - frames)[:, 4:28].max() < 12
    assert np.abs(decoded - frames)[:, 36:].max() < 12


def test_audio_keeps_its_pitch_level_and_timing(tmp_path):
    sine = make_sine(2)
    audio = read_audio(write_clip(tmp_path / "clip.mp4", make_frames(48), audio=sine))
    assert abs(len(audio) - len(sine)) <= AAC_FRAME
    spectrum = np.abs(np.fft.rfft(audio[: len(sine)]))
    assert spectrum.argmax() * SAMPLE_RATE / len(sine) == pytest.approx(440, abs=1)
    middle = slice(2 * AAC_FRAME, len(sine) - AAC_FRAME)  # without the onset, where AAC is least exact
    assert np.abs(audio[middle] - sine[middle]).max() < 0.01, "the sound moved, or its loudness changed"


def test_loud_audio_is_clipped_not_scaled(tmp_path):
    audio = read_audio(write_clip(tmp_path / "clip.mp4", make_frames(24), audio=make_sine(1, amplitude=3)))
    assert 0.95 < np.abs(audio).max() < 1.35  # a clipped sine overshoots where AAC drops its highest harmonics
    assert np.median(np.abs(audio)) > 0.9


@pytest.mark.parametrize("seconds", [0.1, 2.0, 3.0])
def test_audio_of_another_length_than_the_video_is_kept(tmp_path, seconds):
    path = write_clip(tmp_path / "clip.mp4", make_frames(48), audio=make_sine(seconds))
    assert probe(path).num_frames == 48
    assert abs(probe(path).num_samples - seconds * SAMPLE_RATE) <= AAC_FRAME


def test_frames_and_audio_are_interleaved(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", make_frames(49), audio=make_sine(49 / FPS))
    with av.open(str(path)) as container:
        times = [
            (packet.stream.type, float(packet.dts * packet.time_base)) for packet in container.demux() if packet.size
        ]
    latest = {"video": 0.0, "audio": 0.0}
    for kind, time in times:
        latest[kind] = time
        assert abs(latest["video"] - latest["audio"]) < 0.3
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), (
        "players must be able to start before the whole file is there"
    )


def test_title_and_parameters_are_read_back(tmp_path):
    parameters = {
        "seed": 2**53 + 1,
        "prompt": 'ä "quoted"\nline — 雨',
        "shift": 5.0,
        "size": [704, 1280],
        "image": None,
    }
    info = probe(write_clip(tmp_path / "clip.mp4", title="Rain; on = a #roof ☂", parameters=parameters))
    assert info.title == "Rain; on = a #roof ☂"
    assert info.parameters == parameters


def test_a_clip_may_have_no_audio(tmp_path):
    info = probe(write_clip(tmp_path / "clip.mp4"))
    assert (info.sample_rate, info.num_samples, info.parameters) == (None, 0, {})


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="the decode failed"):
        fail_after_frames(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_before_the_first_frame_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "clip.mp4", audio=make_sine(1)):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_existing_file(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the decode failed"):
        fail_after_frames(path)
    assert path.read_bytes() == before
    write_clip(path, make_frames(5))
    assert probe(path).num_frames == 5


def test_the_name_appears_only_with_the_whole_file(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path) as writer:
        writer.write(make_frames(5))
        assert not path.exists()
    assert path.exists()


def test_a_clip_without_frames_is_an_error(tmp_path):
    with pytest.raises(MediaError, match=r"clip\.mp4: no frame"), VideoWriter(tmp_path / "clip.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"missing/clip\.mp4"), VideoWriter(tmp_path / "missing" / "clip.mp4"):
        pass


def test_a_size_that_h264_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(MediaError, match=r"clip\.mp4"), VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.write(np.zeros((1, 33, 63, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frames", [np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)])
def test_arrays_that_are_not_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.write(frames)


def test_a_change_of_frame_size_is_refused(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.write(make_frames(1))
        with pytest.raises(ValueError, match="64x64; expected 64x96"):
            writer.write(make_frames(1, 64, 64))
    assert probe(tmp_path / "clip.mp4").num_frames == 1


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 0.999])
def test_a_truncated_file_is_an_error(tmp_path, share):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (13, 64, 96, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mp4", noise, audio=make_sine(0.5))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        probe(path)


def test_files_that_are_not_videos_are_errors(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video\n" * 100)
    for path in (text, tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(MediaError, match=path.name):
            probe(path)


def test_a_comment_that_is_not_json_is_ignored(tmp_path):
    path = tmp_path / "foreign.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = "made elsewhere"
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(make_frames(1, 64, 64)[0], format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).parameters == {}


def test_pixels_round_to_the_nearest_level():
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16).expand(3, 2, 16, 16)
    frames = frames_to_uint8(levels / 127.5 - 1)
    assert frames.shape == (2, 16, 16, 3)
    assert np.array_equal(frames[1, ..., 2], np.arange(256).reshape(16, 16))


def test_pixels_out_of_range_are_clipped():
    chunk = torch.tensor([-7.0, -1.0, 1.0, 3.0]).reshape(1, 1, 2, 2).expand(3, 1, 2, 2)
    assert frames_to_uint8(chunk)[0, ..., 0].tolist() == [[0, 0], [255, 255]]
    assert chunk.max() == 3, "the chunk itself is left alone"


@pytest.mark.parametrize("name", ["poster.jpg", "poster.png"])
def test_a_poster_is_an_image_of_the_frame(tmp_path, name):
    frame = make_frames(1)[0]
    write_poster(tmp_path / name, frame)
    with Image.open(tmp_path / name) as image:
        assert image.format == {"poster.jpg": "JPEG", "poster.png": "PNG"}[name]
        assert np.abs(np.asarray(image).astype(int) - frame)[:24].max() < 16
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["poster.docx", "missing/poster.png"])
def test_a_poster_that_cannot_be_written_is_an_error(tmp_path, name):
    with pytest.raises(MediaError, match="poster"):
        write_poster(tmp_path / name, make_frames(1)[0])
    assert list(tmp_path.iterdir()) == []
