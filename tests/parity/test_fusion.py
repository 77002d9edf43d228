"""The fusion transformer against the published implementation, and each optimisation against the direct computation."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ovi.attention import AttentionBackend, AttentionPlan
from ovi.config import Architecture
from ovi.kernels.reference import gate, modulate
from ovi.models.fusion import FusionTransformer
from ovi.models.transformer import KeyValue, TimeEmbedding, sinusoidal_embedding


@pytest.fixture(scope="module")
def transformer(tiny_dir):
    arch = Architecture.read(tiny_dir)
    with torch.device("meta"):
        model = FusionTransformer(arch.video, arch.audio)
    model.load_state_dict(load_file(tiny_dir / "Ovi" / "model.safetensors"), assign=True)
    return model.eval().requires_grad_(False)


def velocities(model, golden, case, index, *, backend=AttentionBackend.SDPA, dtype=torch.float32):
    video, audio, video_text, audio_text = (
        golden[f"fusion.{index}.{name}"].to(dtype) for name in ("vid", "audio", "vid_context", "audio_context")
    )
    grid = model.embed_grid(video.shape, audio.shape[0], torch.device("cpu"))
    return model(
        video=video,
        audio=audio,
        text=model.embed_text(video=video_text, audio=audio_text),
        grid=grid,
        time=model.embed_time(case["t"], grid, case["first_frame_is_clean"]),
        skip_layer=case["slg_layer"],
        attention=AttentionPlan.uniform(backend),
    )


@pytest.mark.parametrize("backend", ["sdpa", "sdpa_flash", "sdpa_math"])
@pytest.mark.parametrize("index", range(4))
def test_a_forward_equals_the_published_one(transformer, golden, golden_json, assert_close_to_std, index, backend):
    video, audio = velocities(transformer, golden, golden_json["cases"][index], index, backend=backend)
    assert_close_to_std(video, golden[f"fusion.{index}.out_vid"], 1e-5)
    assert_close_to_std(audio, golden[f"fusion.{index}.out_audio"], 1e-5)


@pytest.mark.parametrize("index", range(4))
def test_a_bf16_forward_stays_close_to_float32(tiny_dir, golden, golden_json, assert_close_to_std, index):
    arch = Architecture.read(tiny_dir)
    model = FusionTransformer(arch.video, arch.audio)
    model.load_state_dict(load_file(tiny_dir / "Ovi" / "model.safetensors"))
    with torch.inference_mode():
        video, audio = velocities(
            model.to(torch.bfloat16), golden, golden_json["cases"][index], index, dtype=torch.bfloat16
        )
    assert video.dtype == audio.dtype == torch.bfloat16
    # bf16 keeps 8 bits (2^-9 of a value when rounding): a dozen layers of it stay within a few percent of the spread
    assert_close_to_std(video.float(), golden[f"fusion.{index}.out_vid"], 0.1)
    assert_close_to_std(audio.float(), golden[f"fusion.{index}.out_audio"], 0.1)


def test_the_video_patch_embedding_equals_its_convolution(transformer):
    embedding = transformer.video_model.patch_embedding
    latents = torch.randn(1, 48, 3, 4, 6)
    convolved = F.conv3d(latents, embedding.weight, embedding.bias, stride=embedding.stride)
    torch.testing.assert_close(embedding(latents), convolved.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", range(4))
def test_every_block_reads_tokens_that_lie_side_by_side_in_memory(transformer, golden, golden_json, index):
    with LayoutsOfNorms() as norms:
        velocities(transformer, golden, golden_json["cases"][index], index)
    assert len(norms.contiguous) > len(transformer.video_model.blocks)
    assert all(norms.contiguous)


class LayoutsOfNorms(TorchFunctionMode):
    """Whether the tokens that each layer norm reads lie side by side."""

    def __init__(self):
        super().__init__()
        self.contiguous = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.layer_norm:
            self.contiguous.append(args[0].is_contiguous())
        return func(*args, **(kwargs or {}))


def test_the_published_sizes_give_the_published_number_of_parameters():
    arch = Architecture()
    with torch.device("meta"):
        model = FusionTransformer(arch.video, arch.audio)
    assert sum(p.numel() for p in model.parameters()) == 11_660_753_108


def test_one_repeated_padding_row_equals_computing_every_row(transformer, golden):
    text = golden["fusion.0.vid_context"]
    backbone = transformer.video_model
    padded = F.pad(text, (0, 0, 0, backbone.config.text_len - text.shape[0]))
    rows = backbone.text_embedding(padded.unsqueeze(0))
    for block, saved in zip(backbone.blocks, backbone.embed_text(text), strict=True):
        attention = block.cross_attn
        keys = attention.split_heads(attention.norm_k(attention.k(rows)))
        torch.testing.assert_close(saved.key, keys, rtol=0, atol=1e-5)
        torch.testing.assert_close(saved.value, attention.split_heads(attention.v(rows)), rtol=0, atol=1e-5)


def test_a_text_of_full_length_has_no_padding(transformer):
    text_len, width = transformer.video_model.config.text_len, transformer.video_model.config.text_dim
    saved = transformer.video_model.embed_text(torch.randn(text_len, width))
    assert saved[0].key.shape[1] == text_len


def test_distinct_timesteps_equal_one_row_per_token(transformer):
    backbone = transformer.video_model
    spans, times = (6, 12), [0.0, 500.0]
    x = torch.randn(1, sum(spans), backbone.config.dim)
    update = torch.randn_like(x)
    time = backbone.embed_time(times, spans)
    every_token = [t for t, count in zip(times, spans, strict=True) for _ in range(count)]
    waves = sinusoidal_embedding(every_token, backbone.config.freq_dim).float()
    plain = backbone.time_projection(backbone.time_embedding(waves)).unflatten(-1, (6, -1))  # a row for every token
    shift, scale, gates, *_ = time.modulation.unbind(1)
    assert time.modulation.shape[0] == 2
    modulated = modulate(x, shift=shift, scale=scale, spans=spans)
    torch.testing.assert_close(modulated, x * (1 + plain[:, 1]) + plain[:, 0])
    torch.testing.assert_close(gate(x, update, gates=gates, spans=spans), x + update * plain[:, 2])


def test_a_pass_has_at_most_two_distinct_timesteps(transformer):
    grid = transformer.embed_grid((48, 3, 4, 6), 13, torch.device("cpu"))
    plain, clean = transformer.embed_time(500.0, grid, False), transformer.embed_time(500.0, grid, True)
    assert isinstance(plain.video, TimeEmbedding)
    assert [t.embedding.shape[0] for t in (plain.video, clean.video, plain.audio, clean.audio)] == [1, 2, 1, 1]
    assert clean.video.spans == (6, 12)


def test_a_text_is_embedded_once_and_not_in_the_forward_pass(transformer, golden, golden_json):
    case = golden_json["cases"][0]
    grid = transformer.embed_grid((48, 3, 4, 6), 13, torch.device("cpu"))
    text = transformer.embed_text(video=golden["fusion.0.vid_context"], audio=golden["fusion.0.audio_context"])
    assert all(isinstance(saved, KeyValue) for saved in (*text.video, *text.audio))
    time = transformer.embed_time(case["t"], grid, False)
    run = set()
    with register_module_forward_pre_hook(lambda module, _: run.add(module)):
        transformer(video=golden["fusion.0.vid"], audio=golden["fusion.0.audio"], text=text, grid=grid, time=time)
    for backbone in (transformer.video_model, transformer.audio_model):
        assert not run & {backbone.text_embedding, *(block.cross_attn.k for block in backbone.blocks)}
        assert run > {block.cross_attn.q for block in backbone.blocks}
