"""Lossy shortcuts on the GPU."""

import pytest
import torch
import torch.nn.functional as F

from ovi import OviPipeline
from ovi.attention import AttentionBackend
from ovi.config import SamplingParams
from ovi.errors import ShortcutUnavailable
from ovi.kernels.types import EAGER_PLAN
from ovi.models.feed_forward import Fp8Products, fp8_linear, fp8_products
from ovi.types import PromptEmbeds

pytestmark = pytest.mark.gpu
DTYPE = torch.bfloat16
DIM, FFN_DIM, ROWS = 3072, 14_336, 1_001  # of the published model; rows are no multiple of a kernel's blocks


@pytest.mark.parametrize("fused", [True, False])
def test_8_bit_products_are_those_of_the_numbers_that_plain_torch_narrows_or_are_refused_with_a_reason(fused):
    device = torch.device("cuda")
    try:
        found = fp8_products(device, DTYPE, dim=DIM, ffn_dim=FFN_DIM, kernels=EAGER_PLAN, fused=fused)
    except ShortcutUnavailable as error:
        pytest.skip(error.reason)
    x, weight = (torch.randn(rows, DIM, device=device, dtype=DTYPE) for rows in (ROWS, FFN_DIM))
    product, plain = fp8_linear(x, weight, None, found).float(), Fp8Products(format=found.format)
    expected = F.linear(plain.narrow(x).widened, plain.narrow(weight).widened)
    assert float((product - expected).norm() / expected.norm()) < 0.01


def test_a_fast_clip_measures_its_loss_and_says_what_the_gpu_has_not(tiny_dir):
    pipe = OviPipeline.from_pretrained(tiny_dir, attention_backend=AttentionBackend.AUTO)
    rows = pipe.encode_text(["a fox", "blur", "noise"])
    embeds = PromptEmbeds(positive=rows[0], video_negative=rows[1], audio_negative=rows[2])
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=6, slg_layer=1, quality="fast")
    loss = pipe.denoise(embeds, params).loss
    assert loss.audits >= 1
    assert loss.passes >= 12 - loss.lossy_steps
    assert all(loss.left_out.values())
