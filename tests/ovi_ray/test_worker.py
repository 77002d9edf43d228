"""A worker without Ray: tasks in, reports and data out, failures as data."""

import pytest
import torch
from PIL import Image

from ovi.config import Component, SamplingParams
from ovi.errors import DenoiseStopped, InvalidImage
from ovi.media import probe
from ovi_ray.events import FailureKind
from ovi_ray.orders import Decode, Denoise, EncodeFirstFrame, EncodeTexts, Order, Preload
from ovi_ray.transport import pack, unpack
from ovi_ray.worker import Worker, WorkerConfig, failure_kind

TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
DECODERS = frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER})
PARAMS = SamplingParams(video_frame_height_width=(64, 64), sample_steps=3, slg_layer=1)


@pytest.fixture
def worker(tiny_dir):
    return Worker(
        WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    )


def order(work, components, model_name="720x720_5s", number=1):
    return Order(number=number, work=work, model_name=model_name, components=components)


def decode(tmp_path):
    return Decode(
        video_path=str(tmp_path / "clip.mp4"),
        poster_path=str(tmp_path / "clip.jpg"),
        num_frames=9,
        title="a fox",
        parameters={"seed": 100},
    )


def embeddings(worker):
    report, *given = worker.run(order(EncodeTexts(texts=("a fox", "blur", "noise")), TEXT))
    assert report.failure is None
    return given


def test_the_stages_of_a_clip_end_in_a_video_with_sound(worker, tmp_path):
    report, latents = worker.run(order(Denoise(params=PARAMS), TRANSFORMER), *embeddings(worker))
    assert (report.failure, report.facts) == (None, {"attention_backend": "sdpa"})
    report = worker.run(order(decode(tmp_path), DECODERS), latents)
    assert (report.facts["num_frames"], report.facts["num_samples"]) == (9, 6656)
    info = probe(tmp_path / "clip.mp4")
    assert (info.num_frames, info.width, info.height, info.sample_rate) == (9, 64, 64, 16_000)
    assert (info.title, info.parameters) == ("a fox", {"seed": 100})
    assert Image.open(tmp_path / "clip.jpg").size == (64, 64)


def test_a_first_frame_is_fitted_to_the_clips_size_whatever_model_is_loaded(worker, first_frame_path):
    work = EncodeFirstFrame(image_path=str(first_frame_path), height=32, width=96)
    report, latent = worker.run(order(work, frozenset({Component.VIDEO_VAE}), model_name=""))
    assert report.failure is None
    assert unpack(latent)["latent"].shape == (48, 1, 2, 6)


def test_components_that_the_order_does_not_keep_are_unloaded_first(worker):
    worker.run(order(Preload(), TEXT | TRANSFORMER))
    assert worker._pipeline.loaded == TEXT | TRANSFORMER
    report = worker.run(order(Preload(), TRANSFORMER | DECODERS))
    assert worker._pipeline.loaded == TRANSFORMER | DECODERS
    assert report.load_seconds > 0


def test_a_bad_image_is_the_clips_fault(worker, tmp_path):
    (tmp_path / "not.png").write_bytes(b"no image")
    work = EncodeFirstFrame(image_path=str(tmp_path / "not.png"), height=64, width=64)
    report, latent = worker.run(order(work, frozenset({Component.VIDEO_VAE})))
    assert latent is None
    assert report.failure.kind is FailureKind.BAD_INPUT
    assert "not.png" in report.failure.message


def test_a_failed_decode_leaves_no_file_and_the_worker_goes_on(worker, tmp_path):
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    broken = pack(video=torch.randn(3, 3, 2, 2), audio=torch.randn(13, 20))
    report = worker.run(order(decode(tmp_path), DECODERS), broken)
    assert report.failure.kind in (FailureKind.ERROR, FailureKind.BAD_INPUT)
    assert not list(tmp_path.iterdir())
    assert worker.run(order(decode(tmp_path), DECODERS), latents).failure is None


def test_a_stopped_denoise_says_so_and_a_late_stop_stops_nothing_else(worker):
    texts = embeddings(worker)
    worker.stop(7)
    report, latents = worker.run(order(Denoise(params=PARAMS), TRANSFORMER, number=7), *texts)
    assert (report.failure.kind, latents) == (FailureKind.CANCELLED, None)
    report, latents = worker.run(order(Denoise(params=PARAMS), TRANSFORMER, number=8), *texts)
    assert report.failure is None


def test_a_worker_describes_itself(worker):
    info = worker.describe()
    assert (info.device, info.vendor, info.architecture) == ("cpu", "cpu", "")
    assert info.memory_gb > 1
    assert info.component_gb[Component.TRANSFORMER] == pytest.approx(1.6e6 / 1e9, rel=0.05)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidImage("x"), FailureKind.BAD_INPUT),
        (DenoiseStopped(None), FailureKind.CANCELLED),
        (torch.OutOfMemoryError("x"), FailureKind.OUT_OF_MEMORY),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("HIP out of memory. Tried to allocate 2 GiB"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("shapes differ"), FailureKind.ERROR),
        (OSError(28, "No space left on device"), FailureKind.ERROR),
    ],
)
def test_a_failure_is_attributed(error, kind):
    assert failure_kind(error) is kind
