"""`benchmarks/gpu.py`, as far as a machine without a GPU can tell."""

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import kernel_class, kernel_seconds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("attn_fwd", "attention"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("Cijk_Alik_Bljk_BBS_BH_MT256x128x64_MI16x16x1", "products"),
        ("aten::addmm", "products"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_conv", "convolutions"),
        ("miopenSp3AsmConv_v30_3_1_gfx9", "convolutions"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel", "elementwise"),
        ("triton_red_fused__scaled_dot_product_cudnn_attention_add_mul_3", "elementwise"),
        ("cudnn_generated_fort_native_conv_sm90_implicit_gemm", "convolutions"),
    ],
)
def test_kernels_are_classed_by_their_names(name, kind):
    assert kernel_class(name) == kind


def test_the_seconds_of_a_call_are_divided_by_class():
    x = torch.randn(300, 300)
    seconds = kernel_seconds(lambda: (x @ x).exp(), torch.device("cpu"))
    assert seconds["products"] > 0
    assert seconds["convolutions"] == seconds["attention"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured_and_nothing_fails():
    found = subprocess.run([sys.executable, "benchmarks/gpu.py", "--json"], capture_output=True, text=True, check=True)
    assert found.stdout == ""
    assert "nothing was measured" in found.stderr
