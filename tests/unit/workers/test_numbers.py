"""Numbers that are not finite, through a worker: the task fails and says where, and nothing is kept."""

import math

import pytest
import torch

from ovi.attention.backends import BACKENDS
from ovi.attention.types import AttentionBackend
from ovi.config import Component, SamplingParams
from ovi_ray.errors import LatentsUnusable
from ovi_ray.protocol.messages import Decode, Denoise, EncodeFirstFrame, EncodeTexts, TaskRequest
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.actor import Worker, WorkerConfig
from ovi_ray.workers.tensor_files import load_tensors, save_tensors
from ovi_ray.workers.tensor_transport import pack, unpack
from tests.support.worker_tasks import finished

NAN, INF = math.nan, math.inf
TEXT, TRANSFORMER = frozenset({Component.TEXT_ENCODER}), frozenset({Component.TRANSFORMER})
VAE = frozenset({Component.VIDEO_VAE})
DECODERS = frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER})
TEXTS = ("a fox", "blur", "noise")


@pytest.fixture
def worker(tiny_dir):
    config = WorkerConfig(ckpt_dir=str(tiny_dir), model_name="720x720_5s", dtype="float32", device="cpu", num_threads=1)
    return Worker(config)


def request(work, components):
    return TaskRequest(number=1, work=work, model_name="720x720_5s", components=components)


def denoise(folder, **params):
    size = {"video_frame_height_width": (64, 64), "sample_steps": 3, "slg_layer": 1}
    return Denoise(
        params=SamplingParams(**size | params),
        clip_id="c",
        latents_path=str(folder / "latents"),
        checkpoint_path=str(folder / "checkpoint"),
        checkpoint_s=0.0,  # the state is saved after every step
    )


def decode(folder):
    return Decode(
        clip_id="c",
        video_path=str(folder / "clip.mp4"),
        poster_path=str(folder / "clip.jpg"),
        num_frames=9,
        title="a fox",
        parameters={},
    )


def latents():
    generator = torch.Generator().manual_seed(0)
    return pack(video=torch.randn(48, 3, 4, 4, generator=generator), audio=torch.randn(13, 20, generator=generator))


def embeddings(worker):
    return worker.run(request(EncodeTexts(texts=TEXTS), TEXT))[1:]


def spoil(worker, component, name, value=NAN):
    """Replace one number of a weight."""
    worker._pipeline.load([component])
    with torch.inference_mode():
        weight = worker._pipeline._components[component].get_parameter(name)
        spoilt = weight.clone()
        spoilt.view(-1)[0] = value
        weight.data = spoilt  # the file is mapped into memory, and other workers read it


def failure(report):
    failed = report[0] if isinstance(report, tuple) else report
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.ERROR  # another device may have a backend or memory that is right
    return failed.failure.message


def test_text_embeddings_name_the_text(worker):
    spoil(worker, Component.TEXT_ENCODER, "umt5.encoder.final_layer_norm.weight")
    message = failure(worker.run(request(EncodeTexts(texts=TEXTS), TEXT)))
    assert message.startswith("encode_text: the text embeddings are not finite numbers, first for the text 'a fox'")
    assert "damaged weights of the text encoder" in message


def test_a_first_frame(worker, first_frame_path):
    spoil(worker, Component.VIDEO_VAE, "encoder.conv1.weight")
    work = EncodeFirstFrame(image_path=str(first_frame_path), height=64, width=64)
    assert failure(worker.run(request(work, VAE))).startswith(
        "encode_first_frame: the first-frame latents are not finite"
    )


def assert_no_latents_are_kept(folder, outputs):
    assert outputs == [None]
    for path in folder.iterdir():  # a state of an earlier step may be
        load_tensors(to_location(path), clip_id="c")
    assert not (folder / "latents").exists()


def test_a_denoise_names_the_first_step_and_keeps_neither_latents_nor_a_state_that_is_not_finite(worker, tmp_path):
    texts = embeddings(worker)
    worker._pipeline.load([Component.TRANSFORMER])
    worker._on_step = lambda done, total: (
        done == 2 and spoil(worker, Component.TRANSFORMER, "video_model.head.head.weight")
    )
    report, *outputs = worker.run(request(denoise(tmp_path), TRANSFORMER), *texts)
    assert failure(report).startswith("denoise: the video latents are not finite numbers, first after step 3 of 3")
    assert_no_latents_are_kept(tmp_path, outputs)
    state, _ = load_tensors(to_location(tmp_path / "checkpoint"), clip_id="c")
    assert state["video.position"].tolist()[0] == 2


def test_a_denoise_is_stopped_at_the_first_checkpoint_that_is_not_finite(worker, tmp_path):
    texts = embeddings(worker)
    spoil(worker, Component.TRANSFORMER, "audio_model.head.head.weight", INF)
    steps = []
    worker._on_step = lambda done, total: steps.append(done)
    report, *outputs = worker.run(request(denoise(tmp_path), TRANSFORMER), *texts)
    assert "audio latents" in failure(report)
    assert "after step 1 of 3" in failure(report)
    assert steps == [1]
    assert_no_latents_are_kept(tmp_path, outputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1e38, 1e300])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_guidance_that_overflows_is_named_with_its_value(worker, tmp_path, modality, scale):
    work = denoise(tmp_path, **{f"{modality}_guidance_scale": scale})
    report, *outputs = worker.run(request(work, TRANSFORMER), *embeddings(worker))
    assert f"{modality} latents" in failure(report)
    assert f"guidance or shift out of range (video {work.params.video_guidance_scale:g}, audio" in failure(report)
    assert_no_latents_are_kept(tmp_path, outputs)


def test_an_attention_backend_that_is_wrong_is_named(worker, tmp_path, monkeypatch):
    backend = BACKENDS[AttentionBackend.SDPA_FLASH]
    run = type(backend).run

    def wrong(self, *arguments, **options):
        out = run(self, *arguments, **options)
        return out * NAN

    texts = embeddings(worker)
    monkeypatch.setattr(type(backend), "run", wrong)
    report, *outputs = worker.run(request(denoise(tmp_path), TRANSFORMER), *texts)
    assert "the video latents and audio latents are not finite numbers, first after step 1 of 3" in failure(report)
    assert "the attention backend (sdpa_flash)" in failure(report)
    assert_no_latents_are_kept(tmp_path, outputs)


@pytest.mark.parametrize("value", [NAN, INF])
def test_frames_name_the_first_one_and_no_video_is_there(worker, tmp_path, value):
    spoil(worker, Component.VIDEO_VAE, "decoder.head.2.weight", value)
    message = failure(finished(worker, request(decode(tmp_path), DECODERS), latents()))
    assert message.startswith(
        "decode: the frames are not finite numbers, first at frame 1; usual causes: damaged weights"
    )
    assert not list(tmp_path.iterdir())


def test_frames_are_checked_as_they_are_decoded(worker, tmp_path):
    tensors = unpack(latents())
    tensors["video"][:, 2] = INF  # the last of three latent frames: four frames of the last chunk
    message = failure(finished(worker, request(decode(tmp_path), DECODERS), pack(**tensors)))
    assert "first at frame 6" in message
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize(
    ("component", "name"),
    [(Component.AUDIO_VAE, "decoder.conv_out.weight"), (Component.VOCODER, "conv_post.weight")],
)
@pytest.mark.parametrize("value", [NAN, INF])
def test_sound(worker, tmp_path, component, name, value):
    spoil(worker, component, name, value)
    message = failure(finished(worker, request(decode(tmp_path), DECODERS), latents()))
    assert "of the sound are not finite numbers" in message
    assert not list(tmp_path.iterdir())


def test_latents_that_an_earlier_version_kept_are_not_decoded(tmp_path):
    path = to_location(tmp_path / "latents")
    save_tensors(path, {"video": torch.tensor([1.0, NAN]), "audio": torch.ones(2)}, clip_id="c", facts={})
    with pytest.raises(LatentsUnusable, match="video has numbers that are not finite"):
        load_tensors(path, clip_id="c")


# -- finite, and nothing to see or to hear -----------------------------------------------------------------------------


def flatten(worker, component, name):
    """Make the output of a component constant: its last layer has neither weight nor bias."""
    worker._pipeline.load([component])
    module = worker._pipeline._components[component]
    with torch.inference_mode():
        for parameter in (f"{name}.weight", f"{name}.bias"):
            module.get_parameter(parameter).data = torch.zeros_like(module.get_parameter(parameter))


def test_a_clip_of_one_colour_is_done_with_a_note_in_its_row(worker, tmp_path):
    flatten(worker, Component.VIDEO_VAE, "decoder.head.2")
    report = finished(worker, request(decode(tmp_path), DECODERS), latents())
    assert report.failure is None
    assert report.facts["notes"] == "shows one colour throughout"
    assert report.notes == ("clip c shows one colour throughout",)


def test_a_silent_clip_is_done_with_a_note_in_its_row(worker, tmp_path):
    flatten(worker, Component.VOCODER, "conv_post")
    report = finished(worker, request(decode(tmp_path), DECODERS), latents())
    assert report.facts["notes"] == "is silent throughout"
    assert report.notes == ("clip c is silent throughout",)


def test_a_clip_with_content_has_no_note(worker, tmp_path):
    report = finished(worker, request(decode(tmp_path), DECODERS), latents())
    assert (report.facts["notes"], report.notes) == (None, ())
