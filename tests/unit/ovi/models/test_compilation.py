"""Compiled blocks: how many graphs there are, and that they compute what the blocks compute."""

import logging
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ovi import OviPipeline
from ovi.attention import AttentionBackend, AttentionPlan
from ovi.config import Architecture, Component
from ovi.models.fusion import FusionTransformer

CPU = torch.device("cpu")
SIZES = (((48, 3, 4, 6), 13), ((48, 5, 6, 8), 17))
FLASH_ATTENTION = """
from torch.nn.functional import scaled_dot_product_attention

def flash_attn_func(q, k, v):
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2), None
"""


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="torch.__trace")  # pytest would keep every line of it
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def transformer(tiny_dir):
    torch.manual_seed(0)
    arch = Architecture.read(tiny_dir)
    return FusionTransformer(arch.video, arch.audio).eval().requires_grad_(False)


@torch.inference_mode()
def velocities(model, *, size=SIZES[0], text_rows=5, first_frame=False, skip_layer=None, backend=AttentionBackend.SDPA):
    video_shape, audio_length = size
    torch.manual_seed(text_rows)
    width = model.video_model.config.text_dim
    text = model.embed_text(video=torch.randn(text_rows, width), audio=torch.randn(text_rows + 1, width))
    grid = model.embed_grid(video_shape, audio_length, CPU)
    return model(
        video=torch.randn(video_shape),
        audio=torch.randn(audio_length, 20),
        text=text,
        grid=grid,
        time=model.embed_time(500.0, grid, first_frame),
        skip_layer=skip_layer,
        attention=AttentionPlan.uniform(backend),
    )


def test_two_graphs_serve_every_block_pass_text_and_size(transformer, assert_close_to_std):
    cases = [
        {"size": size, "text_rows": rows, "first_frame": first_frame, "skip_layer": skip_layer}
        for first_frame in (False, True)
        for size in SIZES
        for rows, skip_layer in ((5, None), (9, 1), (47, None))
    ]
    plain = [velocities(transformer, **case) for case in cases]
    graphs = CompileCounterWithBackend("eager")
    transformer.compile_blocks(graphs, fullgraph=True)
    for case, expected in zip(cases, plain, strict=True):
        for actual, tensor in zip(velocities(transformer, **case), expected, strict=True):
            assert_close_to_std(actual, tensor, 5e-6)
        assert graphs.frame_count == 1 + case["first_frame"]


def test_a_backend_from_another_package_does_not_break_the_graph(
    transformer, tmp_path, monkeypatch, assert_close_to_std
):
    (tmp_path / "flash_attn_interface.py").write_text(FLASH_ATTENTION)
    monkeypatch.syspath_prepend(tmp_path)
    graphs = CompileCounterWithBackend("eager")
    expected = velocities(transformer)
    transformer.compile_blocks(graphs, fullgraph=True)
    for actual, tensor in zip(velocities(transformer, backend=AttentionBackend.FLASH_ATTN_3), expected, strict=True):
        assert_close_to_std(actual, tensor, 5e-6)
    assert "flash_attn_interface" in sys.modules
    del sys.modules["flash_attn_interface"]
    assert graphs.frame_count == 1


def test_a_pipeline_compiles_its_transformer_only_where_it_is_asked_to(tiny_dir):
    def run_block(**options):
        pipe = OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=torch.float32, **options)
        transformer = pipe._require(Component.TRANSFORMER, FusionTransformer)
        return transformer._run_block

    assert hasattr(run_block(compile_blocks=True), "_torchdynamo_orig_callable")
    assert not hasattr(run_block(), "_torchdynamo_orig_callable")
