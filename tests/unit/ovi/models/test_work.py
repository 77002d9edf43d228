"""The counted work of a pass, by the counter of the benchmark."""

import dataclasses

import pytest
import torch

from benchmarks.decode import count_traffic
from benchmarks.denoise import AsOnGpus, WorkCounter, count
from ovi.config import MODEL_SPECS, Architecture, VideoVAEConfig


def shallow(arch, num_layers):
    video, audio = (dataclasses.replace(config, num_layers=num_layers) for config in (arch.video, arch.audio))
    return dataclasses.replace(arch, video=video, audio=audio)


@pytest.fixture(scope="module")
def block():
    """The work of one block at full size: what a second block adds to the first."""
    return work_of_a_block("eager")


def work_of_a_block(path):
    one, two = (count(MODEL_SPECS["720x720_5s"], shallow(Architecture(), layers), path) for layers in (1, 2))
    names = ("products_tflop", "attention_tflop", "elementwise_gb", "kernels")
    return {name: getattr(two, name) - getattr(one, name) for name in names}


def test_a_block_has_the_products_and_attention_of_its_shapes(block):
    tokens, audio, dim, ffn, text, audio_text = 31 * 22 * 22, 157, 3072, 14336, 512, 512
    linear = 2 * (tokens + audio) * (8 * dim * dim + 2 * dim * ffn)  # q k v o, q o, k and v for the other; feed-forward
    pairs = tokens * (tokens + text + audio) + audio * (audio + audio_text + tokens)
    assert block["products_tflop"] == pytest.approx(linear / 1e12, abs=0.11)
    assert block["attention_tflop"] == pytest.approx(4 * pairs * dim / 1e12, abs=0.11)


def test_a_block_moves_no_more_memory_than_its_rotations_norms_and_residuals_need(block):
    width = (31 * 22 * 22 + 157) * 3072  # channels of all tokens of both modalities
    rotations = 4 * width * (6 + 8 + 6)  # queries and keys of two attentions: to float32, turned, to bf16
    rms_norms, layer_norms = 4 * width * 4, 4 * width * 4  # the other modality is normed too
    modulations, gates, sums = 2 * width * 4, 2 * width * 6, 2 * width * 6
    gelu = width * 4 * 14336 / 3072
    expected = rotations + rms_norms + layer_norms + modulations + gates + sums + gelu
    assert block["elementwise_gb"] == pytest.approx(expected / 1e9, rel=0.02)


def test_a_fused_block_reads_and_writes_tokens_once_for_each_norm_rotation_and_residual(block):
    fused = work_of_a_block("fused")
    width = 2 * (31 * 22 * 22 + 157) * 3072  # bytes of all tokens of both modalities
    self_attention = 2 + 2 * 2 + 4  # modulated norm; queries and keys; gate, sum and norm
    cross_attention = 3 + 2 + 2 + 3 + 4  # queries, with and without rotation; norm and keys of the other; two sums
    feed_forward = 3
    rotations = 4 * 128 * (31 * 22 * 22 + 157) * 4  # float32, for the queries and keys of two attentions
    expected = width * (self_attention + cross_attention + feed_forward) + rotations
    assert fused["elementwise_gb"] == pytest.approx(expected / 1e9, rel=0.02)
    assert fused["products_tflop"] == pytest.approx(block["products_tflop"], abs=0.11)
    assert fused["attention_tflop"] == block["attention_tflop"]
    assert fused["kernels"] < block["kernels"] - 30


def test_an_operation_counts_what_it_reads_and_writes():
    x = torch.empty(10, 30, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), WorkCounter() as counter:
        _ = x + x.t().t()
        _ = x[:, ::2].float()
        _ = x.expand(4, 10, 30).sum()
        x[:, :10].copy_(x[:, 10:20])
    assert counter.kernels == 4
    assert counter.elementwise_bytes == 3 * 600 + (300 + 600) + (600 + 2) + 2 * 200
    assert counter.product_flops == 0


def test_norm_and_attention_count_as_one_kernel_each():
    x = torch.empty(1, 8, 20, 16, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), WorkCounter() as counter, AsOnGpus(counter):
        y = torch.nn.functional.rms_norm(x, (16,))
        z = torch.nn.functional.scaled_dot_product_attention(y, x, x)
    assert z.shape == x.shape
    assert counter.kernels == 2
    assert counter.attention_flops == 4 * 8 * 20 * 20 * 16
    assert counter.elementwise_bytes == 2 * 8 * 20 * 16 * 2


def test_a_fused_chunk_of_the_decoder_moves_half_the_memory():
    narrow = VideoVAEConfig(dec_dim=64, dim=8)  # all counts but those of the ends grow with it
    eager, fused = (count_traffic(MODEL_SPECS["720x720_5s"], path, narrow) for path in ("eager", "fused"))
    assert fused.products_tflop == eager.products_tflop
    assert fused.elementwise_gb < 0.52 * eager.elementwise_gb
    assert fused.kernels < eager.kernels
