"""The fused kernels against plain torch, through Triton's interpreter."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ovi.config import Architecture, VideoVAEConfig
from ovi.kernels import FusedKernel, KernelPlan, operations
from ovi.kernels.trial import ALLOWED_ERROR, KernelShape, deviation, measure
from ovi.kernels.types import EAGER_PLAN
from ovi.models.fusion import FusionTransformer
from ovi.models.video_vae import VideoVAE

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU: tests/gpu runs the kernels on it"
)

RESIDUAL_NORM, NORM_ROTATE, LINEAR_GELU, CHANNELS_LAST, NORM_SILU = FusedKernel
IN_TRITON = KernelPlan.of([RESIDUAL_NORM, NORM_ROTATE])
CPU = torch.device("cpu")
SHAPES = {
    "ragged": KernelShape(tokens=7, dim=48, num_heads=3, ffn_dim=64, channels=40),
    "wide heads": KernelShape(tokens=4, dim=512, num_heads=4, ffn_dim=64, channels=40),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kernel", [RESIDUAL_NORM, NORM_ROTATE, CHANNELS_LAST, NORM_SILU])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_operation_of_a_kernel_is_plain_torch_s(kernel, shape, dtype):
    assert deviation(kernel, "cpu", dtype, shape) <= ALLOWED_ERROR[dtype]


def test_in_the_product_a_cpu_takes_another_form_of_gelu_which_is_refused():
    trial = measure(LINEAR_GELU, "cpu", torch.float32, SHAPES["ragged"])
    assert trial.seconds is None
    assert 1e-5 < trial.error < 1e-2
    assert not trial.transient


def inputs(*, batch=1, tokens=9, dim=48, dtype=torch.float32):
    torch.manual_seed(0)
    x, update = (torch.randn(batch, tokens, dim).to(dtype) for _ in range(2))
    rotation = torch.nn.functional.normalize(torch.randn(tokens, 1, 8, 2), dim=-1)
    return SimpleNamespace(x=x, update=update, rotation=rotation, rows=torch.randn(3, 2, dim).to(dtype))


@pytest.mark.parametrize("spans", [(9,), (4, 5), (1, 8)])
def test_the_rows_of_a_modulation_belong_to_the_spans_of_every_clip_of_a_batch(spans):
    given = inputs(batch=2)
    shift, scale, gates = given.rows[:, : len(spans)]

    def compute(kernels):
        normed = operations.norm_modulate(given.x, shift=shift, scale=scale, spans=spans, eps=1e-6, kernels=kernels)
        return normed, operations.gate(given.x, given.update, gates=gates, spans=spans, kernels=kernels)

    for found, expected in zip(compute(IN_TRITON), compute(EAGER_PLAN), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tokens_that_do_not_lie_side_by_side_are_read_where_they_are():
    given = inputs()
    scattered = given.x.transpose(1, 2).contiguous().transpose(1, 2)
    options = {"weight": given.rows[0, 0], "rotation": given.rotation, "eps": 1e-6}
    found = operations.norm_rotate(scattered, **options, kernels=IN_TRITON)
    torch.testing.assert_close(found, operations.norm_rotate(given.x, **options, kernels=EAGER_PLAN))


def test_half_precision_is_rounded_where_plain_torch_rounds_it():
    given = inputs(tokens=64, dim=64, dtype=torch.float16)
    shift, scale, _ = given.rows[:, :1]
    options = {"shift": shift, "scale": scale, "spans": (64,), "eps": 1e-6}
    found, expected = (
        operations.add_norm_modulate(given.x, given.update, **options, kernels=kernels)
        for kernels in (IN_TRITON, EAGER_PLAN)
    )
    assert torch.equal(found[0], expected[0])
    assert (found[1] != expected[1]).float().mean() < 0.01  # a sum in another order, at the edge of a rounding


@pytest.fixture(scope="module")
def transformer(tiny_dir):
    arch = Architecture.read(tiny_dir)
    with torch.device("meta"):
        model = FusionTransformer(arch.video, arch.audio)
    model.load_state_dict(load_file(tiny_dir / "Ovi" / "model.safetensors"), assign=True)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("first_frame", [False, True], ids=["from text", "with a first frame"])
def test_the_fused_model_computes_what_the_plain_one_does(transformer, first_frame, assert_close_to_std):
    width = transformer.video_model.config.text_dim
    torch.manual_seed(0)
    text = transformer.embed_text(video=torch.randn(5, width), audio=torch.randn(6, width))
    grid = transformer.embed_grid((48, 2, 2, 4), 3, CPU)
    clip = {
        "video": torch.randn(48, 2, 2, 4),
        "audio": torch.randn(3, 20),
        "text": text,
        "grid": grid,
        "time": transformer.embed_time(500.0, grid, first_frame),
    }
    expected = transformer(**clip)
    transformer.fuse(IN_TRITON)
    fused = transformer(**clip)
    transformer.fuse(EAGER_PLAN)
    for found, plain in zip(fused, expected, strict=True):
        assert_close_to_std(found, plain, 1e-5)
        assert not torch.equal(found, plain)  # it was computed in another way


@pytest.mark.parametrize(
    "kernels", [[CHANNELS_LAST], [CHANNELS_LAST, NORM_SILU]], ids=["in the other layout", "fused in it too"]
)
def test_a_fused_decoder_computes_what_the_plain_one_does(kernels, assert_close_to_std):
    torch.manual_seed(0)
    vae = VideoVAE(VideoVAEConfig(dec_dim=8, dim=8))
    latents = torch.randn(1, 48, 2, 1, 2)
    expected = vae.decode(latents)
    vae.fuse(KernelPlan.of(kernels))
    fused = vae.decode(latents)
    assert_close_to_std(fused, expected, 1e-4)
    assert not torch.equal(fused, expected)  # it was computed in another way


@pytest.mark.parametrize("columns", [48, 100])
@pytest.mark.parametrize("gelu", [False, True])
def test_rows_are_narrowed_as_in_plain_torch(columns, gelu):
    torch.manual_seed(0)
    x, bias = torch.randn(7, columns), torch.randn(columns) if gelu else None
    x[2], x[3] = 0, 1e4 * x[3]
    (values, scales), (expected, expected_scales) = (
        operations.narrow_rows(x, torch.float8_e4m3fn, gelu_bias=bias, fused=fused) for fused in (True, False)
    )
    assert torch.allclose(scales, expected_scales, rtol=1e-5)
    widened, exact = values.float() * scales, expected.float() * expected_scales
    assert (widened - exact).norm() <= 1e-3 * exact.norm()
