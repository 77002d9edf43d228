"""The pipeline as a user calls it, and its stages alone."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.backends import cudnn
from torch.nn.modules.module import register_module_forward_pre_hook

from ovi import OviPipeline
from ovi.config import Architecture, Component, SamplingParams
from ovi.errors import CheckpointNotFound, DenoiseStopped, DeviceUnavailable, InvalidImage, InvalidRequest
from ovi.media.video import frames_to_uint8
from ovi.models.fusion import FusionTransformer
from ovi.models.text_encoder import TextEncoder
from ovi.models.vocoder import Vocoder
from ovi.precision import full_float32
from ovi.sampling.denoise import DenoiseState, denoise, initial_noise, start
from ovi.types import Latents, PromptEmbeds
from ovi.weights.layout import component_file

MODEL = "720x720_5s"
SMALL = {"video_frame_height_width": (64, 96), "sample_steps": 3, "slg_layer": 1}


def open_pipeline(ckpt_dir, dtype=torch.float32, model_name=MODEL):
    return OviPipeline.from_pretrained(ckpt_dir, model_name=model_name, device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def pipe(tiny_dir):
    return open_pipeline(tiny_dir)


@pytest.fixture(scope="module")
def embeds(pipe):
    positive, video_negative, audio_negative = pipe.encode_text(["a fox in the snow", "blur", "noise"])
    return PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)


def test_generate_returns_frames_audio_and_latents(pipe):
    clip = pipe.generate("A fox. <AUDCAP>Wind<ENDAUDCAP>", seed=3, **SMALL)
    assert (clip.frames.dtype, clip.frames.shape) == (np.uint8, (9, 64, 64, 3))
    assert (clip.audio.dtype, clip.audio.shape) == (np.float32, (13 * 512,))
    assert clip.latents.video.shape == (48, 3, 4, 4)
    assert clip.latents.audio.shape == (13, 20)


def test_generate_composes_the_stages(pipe):
    clip = pipe.generate(
        "A fox. <AUDCAP>Wind<ENDAUDCAP>", seed=3, video_negative_prompt="", audio_negative_prompt="", **SMALL
    )
    rows = pipe.encode_text(["A fox. <AUDCAP>Wind<ENDAUDCAP>", "", ""])
    embeds = PromptEmbeds(positive=rows[0], video_negative=rows[1], audio_negative=rows[2])
    params = SamplingParams(seed=3, video_negative_prompt="", audio_negative_prompt="", **SMALL)
    latents = pipe.denoise(embeds, params)
    frames = np.concatenate([frames_to_uint8(chunk) for chunk in pipe.decode_video(latents.video)])
    assert torch.equal(latents.video, clip.latents.video)
    assert np.array_equal(frames, clip.frames)
    assert np.array_equal(pipe.decode_audio(latents.audio), clip.audio)


def test_a_prompt_in_the_other_tag_form_is_the_same_clip(pipe):
    own = pipe.generate("A fox. <AUDCAP>Wind<ENDAUDCAP>", **SMALL)
    other = pipe.generate("A fox. Audio: Wind", **SMALL)
    assert torch.equal(own.latents.video, other.latents.video)


def test_a_misspelt_parameter_is_refused(pipe):
    with pytest.raises(TypeError, match="sample_step"):
        pipe.generate("A fox", sample_step=3)


def test_a_parameter_out_of_range_is_refused_before_anything_loads(tiny_dir):
    pipe = open_pipeline(tiny_dir)
    with pytest.raises(InvalidRequest, match="sample_steps is 0"):
        pipe.generate("A fox", sample_steps=0)
    assert pipe.loaded == frozenset()


def test_a_first_frame_sets_the_size_and_stays_clean(pipe, embeds):
    image = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    first_frame = pipe.encode_first_frame(image)
    latents = pipe.denoise(embeds, SamplingParams(**SMALL), first_frame=first_frame)
    assert latents.video.shape[-2:] == first_frame.shape[-2:] == (2, 6)
    assert torch.equal(latents.video[:, :1], first_frame)


@pytest.mark.parametrize("kind", ["path", "string", "image", "array"])
def test_a_first_frame_may_be_a_path_an_image_or_an_array(pipe, first_frame_path, kind):
    image = Image.open(first_frame_path)
    forms = {
        "path": first_frame_path,
        "string": str(first_frame_path),
        "image": image,
        "array": np.asarray(image.convert("RGB")),
    }
    assert torch.equal(pipe.encode_first_frame(forms[kind]), pipe.encode_first_frame(first_frame_path))


def test_an_unreadable_first_frame_is_refused(pipe, tmp_path):
    (tmp_path / "not.png").write_bytes(b"no image")
    with pytest.raises(InvalidImage, match=r"not\.png"):
        pipe.encode_first_frame(tmp_path / "not.png")
    with pytest.raises(InvalidImage, match="expected uint8"):
        pipe.encode_first_frame(np.zeros((4, 4), np.float32))


# -- stages load only what they need ---------------------------------------------------------------------------------


def test_a_process_that_only_decodes_needs_neither_text_encoder_nor_transformer(tiny_dir, tmp_path):
    ckpts = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    pipe = open_pipeline(ckpts)
    for component in (Component.TEXT_ENCODER, Component.TRANSFORMER):
        (ckpts / component_file(component, pipe.spec)).unlink()
    latents = Latents(video=torch.randn(48, 3, 2, 2), audio=torch.randn(13, 20))
    assert pipe.decode_latents(latents).frames.shape == (9, 32, 32, 3)
    assert pipe.loaded == {Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER}
    with pytest.raises(CheckpointNotFound):
        pipe.encode_text(["a fox"])


def test_each_stage_loads_its_own_components(tiny_dir, embeds):
    pipe = open_pipeline(tiny_dir)
    pipe.encode_text(["a fox"])
    assert pipe.loaded == {Component.TEXT_ENCODER}
    pipe.unload()
    pipe.denoise(embeds, SamplingParams(**SMALL))
    assert pipe.loaded == {Component.TRANSFORMER}


def test_unloading_some_components_keeps_the_others(tiny_dir):
    pipe = open_pipeline(tiny_dir)
    pipe.load()
    pipe.unload([Component.TEXT_ENCODER, Component.TRANSFORMER])
    assert pipe.loaded == {Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER}


def test_switching_to_another_model_of_the_folder_drops_only_the_transformer(tiny_dir, embeds):
    pipe = open_pipeline(tiny_dir)
    pipe.load()
    pipe.use_model("960x960_5s")
    assert pipe.loaded == frozenset(Component) - {Component.TRANSFORMER}
    switched = pipe.denoise(embeds, SamplingParams(**SMALL))
    fresh = open_pipeline(tiny_dir, model_name="960x960_5s").denoise(embeds, SamplingParams(**SMALL))
    assert torch.equal(switched.video, fresh.video)


def test_an_unknown_model_is_refused(tiny_dir):
    with pytest.raises(InvalidRequest, match="expected one of"):
        open_pipeline(tiny_dir, model_name="720p")


# -- work is not repeated --------------------------------------------------------------------------------------------


def test_equal_texts_are_encoded_once(pipe):
    encoded = []

    def record(module, arguments):
        if isinstance(module, TextEncoder):
            encoded.append(len(arguments[0]))

    with register_module_forward_pre_hook(record):
        rows = pipe.encode_text(["a fox", "", "a fox", "", "a dog"])
    assert encoded == [3]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0][:1], rows[4][:1])


# -- a denoise reports, stops and resumes ----------------------------------------------------------------------------


def test_denoise_reports_each_step(pipe, embeds):
    steps = []
    pipe.denoise(embeds, SamplingParams(**SMALL), on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("solver_name", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize("with_image", [False, True])
def test_a_stopped_clip_continues_from_a_file_bit_for_bit(
    pipe, embeds, first_frame_path, solver_name, with_image, tmp_path
):
    first_frame = pipe.encode_first_frame(first_frame_path) if with_image else None
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=6, slg_layer=1, solver_name=solver_name)
    whole = pipe.denoise(embeds, params, first_frame=first_frame)

    done = []
    with pytest.raises(DenoiseStopped) as stopped:
        pipe.denoise(
            embeds,
            params,
            first_frame=first_frame,
            on_step=lambda n, _: done.append(n),
            should_stop=lambda: len(done) == 4,
        )
    state = stopped.value.state
    assert state.step == 4
    save_file(state.tensors(), tmp_path / "state.safetensors")
    state = DenoiseState.from_tensors(load_file(tmp_path / "state.safetensors"))
    continued = pipe.denoise(embeds, params, first_frame=first_frame, state=state)
    assert torch.equal(continued.video, whole.video)
    assert torch.equal(continued.audio, whole.audio)


def test_noise_depends_only_on_the_seed_and_is_drawn_anew_for_video_and_audio(pipe):
    noise = initial_noise(pipe.spec, 4, 4, (48, 20), seed=7)
    again = initial_noise(pipe.spec, 4, 4, (48, 20), seed=7)
    assert torch.equal(noise.video, again.video)
    assert torch.equal(noise.video.flatten()[:16], noise.audio.flatten()[:16])  # both from a fresh generator
    assert not torch.equal(noise.video, initial_noise(pipe.spec, 4, 4, (48, 20), seed=8).video)


def test_the_steps_of_a_denoise_are_checked_without_waiting_for_the_device(tiny_dir):
    """On the meta device there are no numbers: whatever reads one, and would wait for a GPU, is an error."""
    arch, steps = Architecture.read(tiny_dir), []
    with torch.device("meta"):
        transformer = FusionTransformer(arch.video, arch.audio)
        text = torch.empty(5, arch.video.text_dim)
        noise = Latents(video=torch.empty(48, 3, 4, 4), audio=torch.empty(13, 20))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        denoise(
            transformer,
            start(noise),
            PromptEmbeds(positive=text, video_negative=text, audio_negative=text),
            SamplingParams(**SMALL | {"sample_steps": 4}),
            on_step=lambda done, total: steps.append(done),
        )
    assert steps == [1, 2, 3, 4]  # the one read comes after the last step


def test_a_block_that_the_model_has_not_is_told(pipe, caplog):
    pipe.generate("A fox", **SMALL | {"slg_layer": 3})
    assert "slg_layer 3 skips nothing; expected a block from 1 to 2" in caplog.text
    caplog.clear()
    pipe.generate("A fox", **SMALL)
    assert not caplog.records


# -- bf16 ------------------------------------------------------------------------------------------------------------


def test_a_bf16_run_stays_close_to_float32(tiny_dir, assert_close_to_std):
    clips = [
        open_pipeline(tiny_dir, dtype).generate("A fox. <AUDCAP>Wind<ENDAUDCAP>", seed=3, **SMALL)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    # both start from the same float32 noise and step in float32; only the networks compute in bf16
    assert_close_to_std(clips[1].latents.video, clips[0].latents.video, 0.1)
    assert_close_to_std(clips[1].latents.audio, clips[0].latents.audio, 0.1)
    difference = np.abs(clips[1].frames.astype(int) - clips[0].frames.astype(int))
    assert difference.mean() < 2.5  # levels of 255


def tf32_allowed():
    return (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32)


@pytest.fixture
def tf32_everywhere():
    before = (torch.get_float32_matmul_precision(), cudnn.allow_tf32)
    torch.set_float32_matmul_precision("high")
    cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32 = before[1]


def test_float32_is_not_rounded_to_tf32_in_any_stage(pipe, embeds, first_frame_path, tf32_everywhere):
    components, allowed, between = set(), set(), set()

    def see(module, _):
        components.add(type(module))
        allowed.add(tf32_allowed())

    with register_module_forward_pre_hook(see):
        pipe.encode_text(["a fox"])
        first_frame = pipe.encode_first_frame(first_frame_path, (64, 96))
        latents = pipe.denoise(embeds, SamplingParams(**SMALL), first_frame=first_frame)
        for _ in pipe.decode_video(latents.video):
            between.add(tf32_allowed())
        pipe.decode_audio(latents.audio)
    assert {TextEncoder, FusionTransformer, Vocoder} < components
    assert allowed == {(False, False)}
    assert between == {(True, True)}  # the program's own work is left as it was
    assert tf32_allowed() == (True, True)


def test_the_settings_of_tf32_are_restored_after_an_error(tf32_everywhere):
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert (torch.get_float32_matmul_precision(), *tf32_allowed()) == ("high", True, True)


def test_tf32_is_refused_to_a_program_that_allows_it_in_the_newer_form_of_the_settings():
    settings = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32"
        with full_float32():
            assert tf32_allowed() == (False, False)
            assert {setting.fp32_precision for setting in settings} == {"ieee"}
        assert {setting.fp32_precision for setting in settings} == {"tf32"}
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


# -- opening a checkpoint folder ---------------------------------------------------------------------------------------


def test_a_checkpoint_folder_that_does_not_exist_is_told_when_it_is_opened(tmp_path, tiny_dir):
    for folder in (tmp_path / "none", tiny_dir / "architecture.json"):
        with pytest.raises(CheckpointNotFound) as raised:
            open_pipeline(folder)
        assert raised.value.path == str(folder)
        assert "ovi-ray weights download --model-name 720x720_5s" in raised.value.expected


@pytest.mark.parametrize("device", ["cuda:999", "no-such-device", "hpu", "cuda:x"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(tiny_dir, device):
    with pytest.raises(DeviceUnavailable, match=re.escape(repr(device))) as raised:
        OviPipeline.from_pretrained(tiny_dir, device=device)
    assert "cpu" in raised.value.usable
