"""Feed-forward products in 8-bit floats."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovi.errors import ShortcutUnavailable
from ovi.kernels.types import EAGER_PLAN
from ovi.models.feed_forward import Fp8Products, fp8_feed_forward, fp8_linear, fp8_products
from ovi.models.fusion import FusionTransformer
from ovi.weights.tiny import tiny_architecture

FP8 = Fp8Products(format=torch.float8_e4m3fn)
CPU = torch.device("cpu")


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(error, exact):
    return float((error - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_narrowed_numbers(dtype):
    x, weight, bias = (
        random(2, 5, 32, dtype=dtype),
        random(48, 32, dtype=dtype, seed=1),
        random(48, dtype=dtype, seed=2),
    )
    rows, columns = FP8.narrow(x.flatten(0, 1)), FP8.narrow(weight)
    expected = (F.linear(rows.widened, columns.widened) + bias.float()).unflatten(0, (2, 5))
    product = fp8_linear(x, weight, bias, FP8)
    assert (product.dtype, product.shape) == (dtype, (2, 5, 48))
    assert relative(product.float(), expected) < (1e-5 if dtype is torch.float32 else 0.01)


def test_each_row_has_a_scale_of_its_own_so_that_a_large_one_does_not_cost_the_others_their_digits():
    x = random(4, 64)
    x[0] *= 1e4
    for row, widened in zip(x, FP8.narrow(x).widened, strict=True):
        assert relative(widened, row) < 0.04  # three bits of mantissa


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_zeros_and_of_the_largest_numbers_stay_finite(dtype):
    x = torch.stack([torch.zeros(32), torch.full((32,), 1e30), torch.full((32,), 1e-30)]).to(dtype)
    widened = FP8.narrow(x).widened
    assert torch.equal(widened[0], torch.zeros(32))
    assert widened[1] == pytest.approx(x[1].float().numpy(), rel=0.01)
    assert torch.isfinite(widened).all()


def test_a_feed_forward_is_near_the_exact_one():
    torch.manual_seed(0)
    ffn = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32))
    x = random(1, 20, 32)
    with torch.no_grad():
        assert 0 < relative(fp8_feed_forward(ffn, x, FP8), ffn(x)) < 0.1


def test_only_the_feed_forward_of_the_video_is_narrowed():
    arch = tiny_architecture()
    torch.manual_seed(0)
    model, seen = FusionTransformer(arch.video, arch.audio).eval(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    text = model.embed_text(video=random(3, 24), audio=random(3, 24))
    grid = model.embed_grid((48, 2, 4, 4), 7, torch.device("cpu"))
    inputs = {"video": random(48, 2, 4, 4), "audio": random(7, 20), "text": text, "grid": grid}
    called = {}
    with torch.inference_mode():
        for fp8 in (None, FP8):
            seen.clear()
            model(**inputs, time=model.embed_time(500.0, grid, False), fp8=fp8)
            called[fp8] = set(seen)
    narrowed = called[None] - called[FP8]
    assert narrowed == {f"video_model.blocks.{block}.ffn.{layer}" for block in range(3) for layer in (0, 2)}


def products(device=CPU, *, timer=None):
    return fp8_products(device, torch.float32, dim=40, ffn_dim=64, kernels=EAGER_PLAN, timer=timer)


def test_the_format_is_one_that_the_device_multiplies():
    assert products() == FP8


def test_a_device_without_such_products_is_an_error_with_the_reason():
    with pytest.raises(ShortcutUnavailable) as error:
        products(torch.device("meta"))
    assert error.value.shortcut == "fp8_feed_forward"
    assert "meta" in error.value.reason


@pytest.mark.parametrize(("exact", "narrow"), [(0.001, 0.002), (0.002, 0.001)])
def test_products_that_are_not_faster_than_the_exact_ones_are_not_used(exact, narrow):
    timed = []

    def timer(call, device):
        timed.append(call().shape)
        return exact if len(timed) == 1 else narrow

    if narrow < exact:
        assert products(timer=timer) == FP8
    else:
        with pytest.raises(ShortcutUnavailable, match=r"2 ms .* 1 ms exactly"):
            products(timer=timer)
    assert set(timed) == {(1, 4096, 40)}
