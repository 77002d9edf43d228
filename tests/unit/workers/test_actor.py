"""A worker without Ray: tasks in, reports and data out, failures as data."""

import errno
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from PIL import Image

from ovi.config import Component, SamplingParams, SolverName
from ovi.device_errors import device_failed
from ovi.errors import DenoiseStopped, InvalidImage, NonFiniteError, PartnerUnavailable
from ovi.media.probe import probe
from ovi.pipeline import OviPipeline
from ovi.quality import COMBINATIONS, Quality
from ovi.weights.layout import TOKENIZER
from ovi_ray.output.result_row import LOSS_FIELDS
from ovi_ray.protocol.messages import (
    Assist,
    Decode,
    Denoise,
    EncodeFirstFrame,
    EncodeTexts,
    FailureCause,
    Preload,
    TaskRequest,
)
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.workers.actor import Worker, WorkerConfig
from ovi_ray.workers.denoise_checkpoint import DenoiseCheckpointer
from ovi_ray.workers.failures import failure_kind
from ovi_ray.workers.tensor_transport import pack, unpack
from ovi_ray.workers.writes import WriteThreads
from tests.support.files import UNREADABLE
from tests.support.worker_tasks import finished

TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
DECODERS = frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER})
PARAMS = SamplingParams(video_frame_height_width=(64, 64), sample_steps=3, slg_layer=1)


@pytest.fixture
def worker(tiny_dir):
    return Worker(
        WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    )


def request(work, components, model_name="720x720_5s", number=1):
    return TaskRequest(number=number, work=work, model_name=model_name, components=components)


def decode(tmp_path):
    return Decode(
        video_path=str(tmp_path / "clip.mp4"),
        poster_path=str(tmp_path / "clip.jpg"),
        num_frames=9,
        title="a fox",
        parameters={"seed": 100},
    )


def embeddings(worker):
    report, *given = worker.run(request(EncodeTexts(texts=("a fox", "blur", "noise")), TEXT))
    assert report.failure is None
    return given


def test_the_stages_of_a_clip_end_in_a_video_with_sound(worker, tmp_path):
    report, latents = worker.run(request(Denoise(params=PARAMS), TRANSFORMER), *embeddings(worker))
    assert (report.failure, report.facts["attention_backend"], report.facts["kernels"]) == (None, "sdpa_flash", "eager")
    assert report.facts["memory_mode"] == "resident"
    report = finished(worker, request(decode(tmp_path), DECODERS), latents)
    assert (report.facts["convolutions"], report.facts["decode_kernels"]) == ("default", "eager")
    assert (report.facts["num_frames"], report.facts["num_samples"]) == (9, 6656)
    info = probe(tmp_path / "clip.mp4")
    assert (info.num_frames, info.width, info.height, info.sample_rate) == (9, 64, 64, 16_000)
    assert (info.title, info.parameters) == ("a fox", {"seed": 100})
    assert Image.open(tmp_path / "clip.jpg").size == (64, 64)


def test_a_first_frame_is_fitted_to_the_clips_size_whatever_model_is_loaded(worker, first_frame_path):
    work = EncodeFirstFrame(image_path=str(first_frame_path), height=32, width=96)
    report, latent = worker.run(request(work, frozenset({Component.VIDEO_VAE}), model_name=""))
    assert report.failure is None
    assert unpack(latent)["latent"].shape == (48, 1, 2, 6)


def test_components_that_the_request_does_not_name_are_unloaded_first(worker):
    worker.run(request(Preload(), TEXT | TRANSFORMER))
    assert worker._pipeline.loaded == TEXT | TRANSFORMER
    report = worker.run(request(Preload(), TRANSFORMER | DECODERS))
    assert worker._pipeline.loaded == TRANSFORMER | DECODERS
    assert report.load_seconds > 0


def test_the_tokenizer_is_read_once_whatever_is_encoded_and_loaded_between(tiny_dir, tmp_path):
    ckpts = shutil.copytree(tiny_dir, tmp_path / "ckpts", copy_function=os.symlink)
    worker = fresh_worker(ckpts)
    before = embeddings(worker)
    (ckpts / TOKENIZER).unlink()  # a second read would fail
    worker.run(request(Preload(), DECODERS, model_name="960x960_5s"))  # unloads the text encoder
    for encoded, again in zip(before, embeddings(worker), strict=True):
        assert torch.equal(unpack(encoded)["rows"], unpack(again)["rows"])


def test_a_bad_image_is_the_clips_fault(worker, tmp_path):
    (tmp_path / "not.png").write_bytes(b"no image")
    work = EncodeFirstFrame(image_path=str(tmp_path / "not.png"), height=64, width=64)
    report, latent = worker.run(request(work, frozenset({Component.VIDEO_VAE})))
    assert latent is None
    assert report.failure.kind is FailureKind.BAD_INPUT
    assert "not.png" in report.failure.message


def test_a_failed_decode_leaves_no_file_and_the_worker_goes_on(worker, tmp_path):
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    broken = pack(video=torch.randn(3, 3, 2, 2), audio=torch.randn(13, 20))
    report = finished(worker, request(decode(tmp_path), DECODERS), broken)
    assert report.failure.kind in (FailureKind.ERROR, FailureKind.BAD_INPUT)
    assert not list(tmp_path.iterdir())
    assert finished(worker, request(decode(tmp_path), DECODERS), latents).failure is None


def test_a_stopped_denoise_says_so_and_a_late_stop_stops_nothing_else(worker):
    texts = embeddings(worker)
    worker.stop(7)
    report, latents = worker.run(request(Denoise(params=PARAMS), TRANSFORMER, number=7), *texts)
    assert (report.failure.kind, latents) == (FailureKind.CANCELLED, None)
    report, latents = worker.run(request(Denoise(params=PARAMS), TRANSFORMER, number=8), *texts)
    assert report.failure is None


@pytest.mark.parametrize("number", [8, 7], ids=["late", "for an earlier request"])
def test_a_denoise_waits_for_no_worker_that_is_to_assist_it(worker, monkeypatch, tmp_path, number):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    texts = embeddings(worker)
    worker.expect_helper(number, f"{os.getpid()}-secret", "w1")
    report, latents = worker.run(request(Denoise(params=PARAMS), TRANSFORMER, number=8), *texts)
    assert (report.failure, report.facts["paired_with"], report.notes) == (None, None, ())
    assert_same(unpack(latents), unbroken(worker, texts))
    assert not list(tmp_path.iterdir())  # where the two were to meet


def test_a_worker_whose_leader_is_gone_is_not_at_fault(worker, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    texts = embeddings(worker)
    worker.stop(5)
    assist = request(Assist(params=PARAMS, meeting="0-secret"), TRANSFORMER, number=5)
    assert worker.run(assist, *texts).failure is None
    assert failure_kind(PartnerUnavailable("the other device is gone")) is FailureKind.CANCELLED
    assert not list(tmp_path.iterdir())


def kept(tmp_path, **changes):
    """A denoise whose latents and state are kept."""
    paths = {"latents_path": str(tmp_path / "latents"), "checkpoint_path": str(tmp_path / "checkpoint")}
    return Denoise(**{"params": PARAMS, "clip_id": "a", **paths, **changes})


def fresh_worker(tiny_dir):
    return Worker(
        WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    )


def stop_at(worker, step, number, *, save):
    """Ask for a stop while a step runs, as the driver would."""

    def on_step(done, total):
        if done == step:
            worker.stop(number, save)

    worker._on_step = on_step


@pytest.mark.parametrize(("quality", "is_timed"), [("exact", [False, False, True]), ("fast", [False] * 3)])
def test_the_steps_of_an_exact_denoise_are_timed_after_the_first(worker, quality, is_timed):
    seen = []
    on_step = worker._on_step

    def seen_step(done, total):
        on_step(done, total)
        activity = worker.activity()
        seen.append(activity.step_s > 0)
        assert activity.longest_quiet_s > 0

    worker._on_step = seen_step
    params = replace(PARAMS, quality=Quality(quality))
    worker.run(request(Denoise(params=params), TRANSFORMER), *embeddings(worker))
    assert seen == is_timed
    assert (worker.activity().step_s, worker.activity().quiet_s) == (0.0, 0.0)


def unbroken(worker, texts, params=PARAMS):
    _, latents = worker.run(request(Denoise(params=params), TRANSFORMER, number=90), *texts)
    return unpack(latents)


def assert_same(latents, expected):
    assert all(torch.equal(latents[name], expected[name]) for name in ("video", "audio"))


@pytest.mark.parametrize(("solver_name", "quality"), [("unipc", "fast"), ("dpm++", "exact"), ("euler", "exact")])
def test_a_denoise_that_was_stopped_is_continued_bit_for_bit_by_another_worker(
    worker, tiny_dir, tmp_path, solver_name, quality
):
    params = SamplingParams(
        video_frame_height_width=(64, 64),
        sample_steps=5,
        slg_layer=1,
        solver_name=SolverName(solver_name),
        quality=Quality(quality),
    )
    texts = embeddings(worker)
    stop_at(worker, 3, number=2, save=True)
    report, _ = worker.run(request(kept(tmp_path, params=params), TRANSFORMER, number=2), *texts)
    assert report.failure.kind is FailureKind.CANCELLED
    other, steps = fresh_worker(tiny_dir), []
    other._on_step = lambda done, total: steps.append(done)
    report, latents = other.run(request(kept(tmp_path, params=params), TRANSFORMER, number=3), *texts)
    assert steps == [4, 5]
    assert_same(unpack(latents), unbroken(worker, texts, params))
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_the_measured_loss_of_a_lossy_clip_is_part_of_its_row_and_told_where_it_was_too_large(worker):
    texts = embeddings(worker)
    params = replace(PARAMS, quality=Quality.FAST)
    report, _ = worker.run(request(Denoise(params=params), TRANSFORMER), *texts)
    assert {field.name for field in LOSS_FIELDS} <= report.facts.keys()
    assert report.facts["audits"] == 2  # of 8-bit products in step 1, and of the guidance difference in step 3
    assert report.facts["shortcuts"] == "fp8_feed_forward 1"
    assert report.facts["exact_from_step"] == 3  # random weights: no two differences are alike
    assert report.facts["video_loss"] > COMBINATIONS[Quality.FAST].bound.video
    assert report.facts["left_out"].startswith("low_bit_attention: ")
    assert [("low_bit_attention" in note, "from step 3" in note) for note in report.notes] == [
        (True, False),
        (False, True),
    ]
    report, _ = worker.run(request(Denoise(params=params), TRANSFORMER), *texts)
    assert len(report.notes) == 1  # what the device has not is told once


def test_the_row_of_an_exact_clip_has_no_loss(worker):
    report, _ = worker.run(request(Denoise(params=PARAMS), TRANSFORMER), *embeddings(worker))
    assert not {field.name for field in LOSS_FIELDS} & report.facts.keys()


def test_a_long_denoise_is_saved_every_so_often_and_comes_out_the_same(worker, tmp_path, monkeypatch):
    texts = embeddings(worker)
    saved = []
    save = DenoiseCheckpointer.save_state
    monkeypatch.setattr(
        DenoiseCheckpointer, "save_state", lambda self, state: (saved.append(state.step), save(self, state))
    )
    _, latents = worker.run(request(kept(tmp_path, checkpoint_s=0.0), TRANSFORMER, number=2), *texts)
    assert set(saved) >= {1, 2}
    assert_same(unpack(latents), unbroken(worker, texts))


def test_a_stop_that_is_not_to_save_leaves_nothing(worker, tmp_path):
    texts = embeddings(worker)
    stop_at(worker, 1, number=2, save=False)
    worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *texts)
    assert not list(tmp_path.iterdir())


def test_finished_latents_are_not_made_again(worker, tmp_path):
    texts = embeddings(worker)
    first, latents = worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *texts)
    worker._on_step = lambda done, total: pytest.fail("a step was taken")
    second, again = worker.run(request(kept(tmp_path), TRANSFORMER, number=3), *texts)
    assert_same(unpack(again), unpack(latents))
    assert second.facts["denoise_s"] == first.facts["denoise_s"]


@pytest.mark.parametrize("name", ["latents", "checkpoint"])
def test_a_corrupt_file_is_told_and_set_aside_and_the_clip_is_denoised_again(worker, tmp_path, name):
    tmp_path = tmp_path / "files"
    tmp_path.mkdir()
    texts = embeddings(worker)
    (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    report, latents = worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *texts)
    assert f"{tmp_path / name}" in report.notes[0]
    assert (tmp_path.parent / "broken" / name).exists()
    assert_same(unpack(latents), unbroken(worker, texts))


def test_latents_that_cannot_be_kept_do_not_fail_the_denoise(worker, tmp_path):
    path = tmp_path / "no folder" / "latents"
    report, latents = worker.run(
        request(kept(tmp_path, latents_path=str(path)), TRANSFORMER, number=2), *embeddings(worker)
    )
    assert (report.failure, latents is None) == (None, False)
    assert "No such file" in report.storage_error


def test_a_decode_takes_kept_latents_where_none_are_given(worker, tmp_path):
    texts = embeddings(worker)
    worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *texts)
    work = replace(decode(tmp_path), clip_id="a", latents_path=str(tmp_path / "latents"))
    report = finished(worker, request(work, DECODERS))
    assert report.facts["attention_backend"].startswith("sdpa")
    assert probe(tmp_path / "clip.mp4").num_frames == 9


def test_a_decode_of_corrupt_latents_says_so(worker, tmp_path):
    texts = embeddings(worker)
    worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *texts)
    content = bytearray((tmp_path / "latents").read_bytes())
    content[-100] ^= 1
    (tmp_path / "latents").write_bytes(content)
    work = replace(decode(tmp_path), clip_id="a", latents_path=str(tmp_path / "latents"))
    failure = finished(worker, request(work, DECODERS)).failure
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.LATENTS)
    assert "checksum" in failure.message


AWAY = (
    *(errno.ENOENT, errno.EPERM, errno.EACCES, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EKEYEXPIRED),
)


@pytest.mark.parametrize("number", AWAY, ids=errno.errorcode.get)
def test_an_output_that_cannot_be_written_is_not_the_clips_fault(worker, tmp_path, monkeypatch, number):
    """Every durable file is put in place by a rename."""

    def fail(self, target):
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(Path, "replace", fail)
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    failure = finished(worker, request(decode(tmp_path), DECODERS), latents).failure
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.STORAGE)
    assert os.strerror(number) in failure.message
    assert not failure.input_path


def test_a_folder_for_videos_that_is_gone_is_not_the_clips_fault(worker, tmp_path):
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    failure = finished(worker, request(decode(tmp_path / "gone"), DECODERS), latents).failure
    assert failure.cause is FailureCause.STORAGE


def test_a_poster_that_cannot_be_written_fails_nothing_and_is_told_once(worker, tmp_path):
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    work = replace(decode(tmp_path), poster_path=str(tmp_path / "gone" / "clip.jpg"))
    notes = []
    for _ in range(2):
        report = finished(worker, request(work, DECODERS), latents)
        assert report.failure is None
        notes += report.notes
    assert len(notes) == 1
    assert "no poster" in notes[0]
    assert probe(tmp_path / "clip.mp4").num_frames == 9


class SlowThreads(WriteThreads):
    """Writes that do not begin before `gate` is set."""

    def __init__(self):
        super().__init__(2)
        self.gate = Event()

    def submit(self, write):
        return super().submit(lambda: (self.gate.wait(), write())[1])


def test_the_device_runs_the_next_task_while_a_slow_writer_has_not_ended(worker, tmp_path):
    worker._threads = slow = SlowThreads()
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    report = worker.run(request(decode(tmp_path), DECODERS, number=1), latents)
    assert (report.writes, report.failure) == (True, None)
    embeddings(worker)
    assert not (tmp_path / "clip.mp4").exists()
    slow.gate.set()
    ended = worker.written(1)
    assert (ended.writes, ended.facts["num_frames"]) == (False, 9)
    assert ended.facts["video_bytes"] == (tmp_path / "clip.mp4").stat().st_size
    assert (ended.seconds, ended.load_seconds) == (report.seconds, report.load_seconds)


def test_a_write_that_fails_fails_its_own_clip_after_the_next_one_has_begun(worker, tmp_path):
    worker._threads = slow = SlowThreads()
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    for number, folder in enumerate((tmp_path / "gone", tmp_path)):
        assert worker.run(request(decode(folder), DECODERS, number=number), latents).failure is None
    slow.gate.set()
    failure = worker.written(0).failure
    assert (failure.cause, "gone" in failure.message) == (FailureCause.STORAGE, True)
    assert worker.written(1).failure is None
    assert probe(tmp_path / "clip.mp4").num_frames == 9


def test_weights_whose_storage_is_away_are_waited_for(tiny_dir, tmp_path):
    ckpt_dir = tmp_path / "share" / "ckpts"
    shutil.copytree(tiny_dir, ckpt_dir)
    worker = fresh_worker(ckpt_dir)
    ckpt_dir.rename(tmp_path / "away")
    failure = worker.run(request(Preload(), TRANSFORMER)).failure
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.STORAGE)
    assert failure.input_path.startswith(str(ckpt_dir))
    (tmp_path / "away").rename(ckpt_dir)
    assert worker.run(request(Preload(), TRANSFORMER)).failure is None


@pytest.mark.parametrize("what", ["latents", "checkpoint"])
def test_kept_files_that_cannot_be_read_are_waited_for_and_stay(worker, tmp_path, what):
    (tmp_path / what).symlink_to(UNREADABLE)
    failure = worker.run(request(kept(tmp_path), TRANSFORMER, number=2), *embeddings(worker))[0].failure
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.STORAGE)
    assert "Input/output error" in failure.message
    assert (tmp_path / what).readlink() == UNREADABLE


def test_a_denoise_does_not_begin_at_its_first_step_because_its_checkpoint_is_away(worker, tmp_path):
    work = kept(tmp_path, checkpoint_path=str(tmp_path / "unmounted" / "checkpoint"))
    failure = worker.run(request(work, TRANSFORMER, number=2), *embeddings(worker))[0].failure
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.STORAGE)


def test_a_video_with_too_few_frames_is_not_committed(worker, tmp_path):
    latents = pack(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    report = finished(worker, request(replace(decode(tmp_path), num_frames=13), DECODERS), latents)
    assert "9 frames were written; expected 13" in report.failure.message
    assert not (tmp_path / "clip.mp4").exists()


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
        (torch.AcceleratorError("CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("GET was unable to find an engine to execute this computation"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), FailureKind.OUT_OF_MEMORY),
        (
            RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`"),
            FailureKind.OUT_OF_MEMORY,
        ),
        (RuntimeError("miopenStatusUnknownError"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("miopenStatusInternalError, cannot open file"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"), FailureKind.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), FailureKind.ERROR),
        (NonFiniteError("frames", stage="decode", first="at frame 1", causes=("a",)), FailureKind.ERROR),
        (RuntimeError("shapes differ"), FailureKind.ERROR),
        (OSError(28, "No space left on device"), FailureKind.ERROR),
    ],
)
def test_a_failure_is_attributed(error, kind):
    assert failure_kind(error) is kind


# -- a device that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (torch.AcceleratorError("HIP error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), False),
        (RuntimeError("shapes differ"), False),
        (InvalidImage("CUDA error.png: no image"), False),
    ],
)
def test_an_error_of_the_device_that_no_later_call_survives_ends_the_worker(error, ends):
    assert device_failed(error) is ends


def test_a_device_that_fails_fails_while_its_memory_is_released_too_and_the_first_error_is_reported(
    worker, monkeypatch
):
    def broken(*args, **kwargs):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    texts = embeddings(worker)
    monkeypatch.setattr(OviPipeline, "denoise", broken)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    worker._pipeline.device = torch.device("cuda", 0)
    report, latents = worker.run(request(Denoise(params=PARAMS), TRANSFORMER), *texts)
    assert (report.failure.kind, report.failure.ends_worker, latents) == (FailureKind.ERROR, True, None)
    assert "illegal memory access" in report.failure.message
    assert "in broken" in report.failure.traceback
