"""Out of memory in a worker: each fallback step, with injected failures."""

import pytest
import torch

from ovi.attention import AttentionBackend
from ovi.config import Component, SamplingParams
from ovi.media.probe import probe
from ovi.pipeline import OviPipeline
from ovi.weights.formats import WeightFormat
from ovi_ray.protocol.messages import Decode, Denoise, EncodeTexts, Preload, TaskRequest
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.workers.actor import Worker, WorkerConfig
from ovi_ray.workers.oom_fallback import DECODE_STEPS, FULL, ON_CPU, FallbackStep, decode_steps, run_with_fallback
from ovi_ray.workers.tensor_transport import pack
from tests.support.worker_tasks import finished

TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
DECODERS = frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER})
LATENTS = pack(video=torch.zeros(48, 3, 4, 4), audio=torch.zeros(13, 20))
PARAMS = SamplingParams(video_frame_height_width=(64, 64), sample_steps=2, slg_layer=1)


def make_worker(tiny_dir, **options):
    return Worker(
        WorkerConfig(
            ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1, **options
        )
    )


@pytest.fixture
def worker(tiny_dir):
    return make_worker(tiny_dir)


def request(work, components):
    return TaskRequest(number=1, work=work, model_name="720x720_5s", components=components)


def decode(tmp_path):
    return Decode(
        clip_id="c",
        video_path=str(tmp_path / "clip.mp4"),
        poster_path=str(tmp_path / "clip.jpg"),
        num_frames=9,
        title="a fox",
        parameters={},
    )


@pytest.fixture
def tried(monkeypatch):
    """Decodes run out of memory on the first `tried.fails` attempts; the tilings of all attempts are kept."""

    class Tried(list):
        fails = 0
        error = torch.OutOfMemoryError("HIP out of memory")

    seen = Tried()
    decode_video = OviPipeline.decode_video

    def fail_first(pipeline, video_latents, tiling=None):
        seen.append(tiling)
        if len(seen) <= seen.fails:
            raise seen.error
        return decode_video(pipeline, video_latents, tiling)

    monkeypatch.setattr(OviPipeline, "decode_video", fail_first)
    return seen


@pytest.mark.parametrize(
    ("fails", "note"),
    [
        (1, "was decoded in 2x2 tiles, after it ran out of memory"),
        (2, "was decoded in 4x4 tiles, after it ran out of memory"),
        (3, "was decoded in 4x4 tiles with the host's memory, after it ran out of memory"),
    ],
)
def test_a_decode_falls_back_until_it_has_memory(worker, tmp_path, tried, fails, note):
    tried.fails = fails
    report = finished(worker, request(decode(tmp_path), DECODERS), LATENTS)
    assert report.failure is None
    assert list(tried) == [step.tiling for step in DECODE_STEPS[: fails + 1]]
    assert report.notes == (f"clip c {note}",)
    assert probe(tmp_path / "clip.mp4").num_frames == 9


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "miopenStatusUnknownError",
    ],
)
def test_libraries_that_say_out_of_memory_in_their_own_words_are_understood(worker, tmp_path, tried, words):
    tried.fails, tried.error = 1, RuntimeError(words)
    report = finished(worker, request(decode(tmp_path), DECODERS), LATENTS)
    assert report.failure is None
    assert list(tried) == [step.tiling for step in DECODE_STEPS[:2]]


def test_a_decode_that_runs_out_on_every_step_fails_and_its_next_attempt_ends_on_the_cpu(worker, tmp_path, tried):
    tried.fails = len(DECODE_STEPS)
    failed = finished(worker, request(decode(tmp_path), DECODERS), LATENTS)
    assert failed.failure.kind is FailureKind.OUT_OF_MEMORY
    assert not list(tmp_path.iterdir())
    tried.fails = 2 * len(DECODE_STEPS)
    again = finished(worker, request(decode(tmp_path), DECODERS), LATENTS)
    assert again.failure is None
    assert "on the CPU" in again.notes[0]
    assert probe(tmp_path / "clip.mp4").num_frames == 9


def test_a_decode_with_enough_memory_is_not_tiled_and_nothing_is_said(worker, tmp_path, tried):
    report = finished(worker, request(decode(tmp_path), DECODERS), LATENTS)
    assert (list(tried), report.notes) == ([None], ())


def test_a_denoise_that_runs_out_of_memory_is_done_again_alone(worker, monkeypatch):
    _, *rows = worker.run(request(EncodeTexts(texts=("a fox", "blur", "noise")), TEXT))
    loaded = []
    denoise = OviPipeline.denoise

    def fail_beside_others(pipeline, *arguments, **options):
        loaded.append(pipeline.loaded)
        if len(loaded) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return denoise(pipeline, *arguments, **options)

    monkeypatch.setattr(OviPipeline, "denoise", fail_beside_others)
    report, latents = worker.run(request(Denoise(params=PARAMS, clip_id="c"), TEXT | TRANSFORMER), *rows)
    assert report.failure is None
    assert latents is not None
    assert loaded == [TEXT | TRANSFORMER, TRANSFORMER]
    assert report.notes == ("clip c was denoised alone on the device, after it ran out of memory",)


def test_any_other_failure_is_not_tried_again():
    tries = []

    def attempt(step):
        tries.append(step)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_with_fallback((FULL, ON_CPU), attempt, lambda error: isinstance(error, MemoryError))
    assert tries == [FULL]


def test_the_failure_of_the_last_step_is_raised():
    def attempt(step: FallbackStep) -> None:
        raise MemoryError(step.name)

    with pytest.raises(MemoryError, match="on the CPU"):
        run_with_fallback((FULL, ON_CPU), attempt, lambda error: isinstance(error, MemoryError))


def test_the_cpu_is_tried_only_by_a_worker_that_failed_the_clip_before():
    assert ON_CPU not in decode_steps(failed_here_before=False)
    assert decode_steps(failed_here_before=True)[-1] is ON_CPU


# -- how a worker holds the model --------------------------------------------------------------------------------------


def test_what_is_offloaded_waits_in_the_hosts_memory_and_comes_back(tiny_dir, monkeypatch):
    worker = make_worker(tiny_dir, cpu_offload=True)
    worker.run(request(Preload(), TEXT))
    encoder = worker._pipeline._components[Component.TEXT_ENCODER]
    worker.run(request(Preload(), TRANSFORMER))
    assert (worker._pipeline.loaded, worker._pipeline.offloaded) == (TRANSFORMER, TEXT)
    monkeypatch.setattr("ovi.weights.loading.load_component", None)
    worker.run(request(Preload(), TEXT))
    assert worker._pipeline._components[Component.TEXT_ENCODER] is encoder


def test_a_worker_runs_the_attention_that_is_asked_for_and_says_so(tiny_dir):
    worker = make_worker(tiny_dir, attention=AttentionBackend.SDPA_MATH)
    _, *rows = worker.run(request(EncodeTexts(texts=("a fox", "blur", "noise")), TEXT))
    report, _ = worker.run(request(Denoise(params=PARAMS), TRANSFORMER), *rows)
    assert report.facts["attention_backend"] == "sdpa_math"


def test_attention_that_cannot_run_here_is_a_failure_with_the_reason_and_what_can(tiny_dir):
    worker = make_worker(tiny_dir, attention=AttentionBackend.FLASH_ATTN_3)
    _, *rows = worker.run(request(EncodeTexts(texts=("a fox", "blur", "noise")), TEXT))
    report, _ = worker.run(request(Denoise(params=PARAMS), TRANSFORMER), *rows)
    assert report.failure.kind is FailureKind.ERROR
    assert "it runs on NVIDIA GPUs only; usable: auto, sdpa" in report.failure.message


def test_the_components_of_a_qint8_worker_are_smaller(tiny_dir, worker):
    narrow, wide = make_worker(tiny_dir, weights=WeightFormat.QINT8).describe(), worker.describe()
    quantized, whole = narrow.component_gb, wide.component_gb
    assert (narrow.has_fp8_products, wide.has_fp8_products) == (False, True)
    assert quantized[Component.TRANSFORMER] < whole[Component.TRANSFORMER]
    assert quantized[Component.TEXT_ENCODER] == whole[Component.TEXT_ENCODER]
