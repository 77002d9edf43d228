"""The attention backends against unfused softmax, and the devices that each supports."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

from ovi.attention import AttentionBackend, AttentionPlan, AttentionShape, Site
from ovi.attention.backends import BACKENDS, FlashAttn3, attention, reference_attention, selected_kernel
from ovi.attention.target import AttentionTarget
from ovi.attention.types import INEXACT, attention_shapes
from ovi.config import Architecture

CPU = AttentionTarget.of(torch.device("cpu"), torch.float32)
OVI = AttentionShape(query_length=15_004, key_length=15_004, num_heads=24, head_dim=128)
ON_CPU = [AttentionBackend.SDPA, AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_MATH]


def target(architecture="sm90", *, dtype=torch.bfloat16, vendor=None, memory_gb=80):
    return AttentionTarget(
        device="cuda",
        dtype=dtype,
        vendor=vendor or ("amd" if architecture.startswith("gfx") else "nvidia"),
        architecture=architecture,
        memory_bytes=int(memory_gb * 1e9),
    )


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("shape", [(1, 7, 5, 2, 20), (2, 33, 64, 3, 8), (1, 1, 512, 4, 128)])
def test_every_backend_computes_softmax_attention(shape, backend):
    batch, queries, keys, heads, width = shape
    q, k, v = (torch.randn(batch, length, heads, width) for length in (queries, keys, keys))
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) / width**0.5
    expected = torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v.double()).float()
    torch.testing.assert_close(attention(q, k, v, backend), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference_attention(q, k, v), expected, rtol=1e-5, atol=1e-5)


def test_every_backend_but_auto_is_in_the_registry():
    assert set(BACKENDS) == set(AttentionBackend) - {AttentionBackend.AUTO}


def test_the_inexact_backends_are_those_that_ids_know_of():
    assert {name for name, backend in BACKENDS.items() if not backend.exact} == INEXACT


def test_8_bit_flash_attention_is_given_scaled_heads_and_the_scales_that_undo_it(monkeypatch):
    def flash_attn_func(q, k, v, *, q_descale, k_descale, v_descale):
        assert {part.dtype for part in (q, k, v)} == {torch.float8_e4m3fn}
        scales = (q_descale, k_descale, v_descale)
        wide = (part.float() * scale[:, None, :, None] for part, scale in zip((q, k, v), scales, strict=True))
        return reference_attention(*wide).to(torch.bfloat16), None

    backend = BACKENDS[AttentionBackend.FLASH_ATTN_3_FP8]
    monkeypatch.setitem(sys.modules, backend.module, SimpleNamespace(flash_attn_func=flash_attn_func))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, 3, 16, generator=generator).bfloat16() for length in (5, 9, 9))
    v[:, :, 1] *= 1000  # a head that would take the range of the others
    out, exact = backend.run(q, k, v).float(), reference_attention(q, k, v)
    assert ((out - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3)) < 0.08).all()


@pytest.mark.parametrize(
    ("device", "supported"),
    [
        (
            target("sm90"),
            {"flash_attn_3", "flash_attn_3_fp8", "flash_attn_2", "sage", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient"},
        ),
        (target("sm89"), {"flash_attn_2", "sage", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient"}),
        (target("sm100"), {"flash_attn_2", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient"}),
        (target("sm75"), {"sdpa_efficient"}),
        (target("sm90", dtype=torch.float32), {"sdpa_efficient"}),
        (target("gfx942", memory_gb=192), {"flash_attn_2", "aiter", "sdpa_aotriton", "sdpa_efficient"}),
        (
            target("gfx1151"),
            {"flash_attn_2", "aiter", "sdpa_aotriton", "sdpa_efficient"},
        ),  # whether it runs, torch tells
        (CPU, {"sdpa_flash"}),
    ],
)
def test_a_device_supports_the_backends_that_are_built_for_it(device, supported):
    found = {str(name) for name, backend in BACKENDS.items() if not backend.unsupported_reason(device, OVI)}
    assert found - {"sdpa", "sdpa_math"} == supported


def test_math_is_unsupported_where_its_scores_do_not_fit():
    math = BACKENDS[AttentionBackend.SDPA_MATH]
    assert "43 GB of the device's 80 GB" in math.unsupported_reason(target(memory_gb=80), OVI)
    assert math.unsupported_reason(target(memory_gb=192), OVI) == ""


def test_math_is_unsupported_where_its_scores_do_not_fit_beside_the_model():
    math = BACKENDS[AttentionBackend.SDPA_MATH]
    card = target(memory_gb=90)
    assert math.unsupported_reason(card, OVI) == ""
    held = dataclasses.replace(card, model_bytes=50 * 10**9)
    assert "43 GB of the device's 90 GB beside the model's 50 GB" in math.unsupported_reason(held, OVI)


def test_a_package_that_is_not_installed_is_named():
    assert "flash_attn_interface" in BACKENDS[AttentionBackend.FLASH_ATTN_3].import_error()


@pytest.mark.parametrize("result", ["out", "(out, lse)"])
def test_aiter_is_called_with_tokens_before_heads(tmp_path, monkeypatch, result):
    (tmp_path / "aiter.py").write_text(
        "from torch.nn.functional import scaled_dot_product_attention\n"
        "def flash_attn_func(q, k, v):\n"
        "    out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)\n"
        "    lse = out[..., 0]\n"
        f"    return {result}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aiter", raising=False)
    q, k, v = (torch.randn(1, length, 3, 8) for length in (7, 5, 5))
    found = attention(q, k, v, AttentionBackend.AITER)
    monkeypatch.delitem(sys.modules, "aiter")
    torch.testing.assert_close(found, reference_attention(q, k, v), rtol=1e-5, atol=1e-5)


class Importable(FlashAttn3):
    """FlashAttention-3 whose import succeeds, as it may on any device."""

    module = "math"


def test_an_import_that_succeeds_does_not_make_a_backend_available():
    assert Importable().import_error() == ""
    assert Importable().unavailable_reason(target("gfx942"), OVI) != ""
    assert Importable().unavailable_reason(target("sm90"), OVI) == ""


def test_the_kernel_that_torch_selects_is_known():
    shape = AttentionShape(query_length=8, key_length=8, num_heads=2, head_dim=16)
    assert selected_kernel(CPU, shape) is AttentionBackend.SDPA_FLASH


def test_the_shapes_of_a_clip_are_those_of_the_published_model():
    arch = Architecture()
    shapes = attention_shapes(arch.video, arch.audio, (48, 31, 44, 44), 157)
    assert shapes[Site.VIDEO_SELF] == OVI
    assert shapes[Site.AUDIO_TO_VIDEO] == AttentionShape(
        query_length=157, key_length=15_004, num_heads=24, head_dim=128
    )
    assert shapes[Site.VIDEO_TO_TEXT].key_length == 512
    assert set(shapes) == set(Site)


def test_a_plan_is_written_as_one_name_or_as_names_with_their_sites():
    assert str(AttentionPlan.uniform(AttentionBackend.SDPA_FLASH)) == "sdpa_flash"
    mixed = dict.fromkeys(Site, AttentionBackend.SDPA_FLASH) | {Site.VIDEO_SELF: AttentionBackend.FLASH_ATTN_3}
    assert str(AttentionPlan.of(mixed)) == (
        "flash_attn_3: video_self; sdpa_flash: audio_self, audio_to_text, audio_to_video, video_to_audio, video_to_text"
    )
