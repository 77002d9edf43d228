"""Lossy shortcuts on the GPU."""

import pytest
import torch
import torch.nn.functional as F

from ovi import OviPipeline
from ovi.attention import AttentionBackend
from ovi.config import SamplingParams
from ovi.errors import ShortcutUnavailable
from ovi.models.feed_forward import ScaledRows, fp8_format, fp8_linear
from ovi.types import PromptEmbeds

pytestmark = pytest.mark.gpu
DIM, FFN_DIM, ROWS = 3072, 14_336, 1_001  # of the published model; rows are no multiple of a kernel's blocks


def test_8_bit_products_are_those_of_the_narrowed_numbers_or_are_refused_with_a_reason():
    device = torch.device("cuda")
    try:
        fp8 = fp8_format(device, torch.bfloat16, dim=DIM, ffn_dim=FFN_DIM)
    except ShortcutUnavailable as error:
        pytest.skip(error.reason)
    x, weight = (torch.randn(rows, DIM, device=device, dtype=torch.bfloat16) for rows in (ROWS, FFN_DIM))
    product = fp8_linear(x, weight, None, fp8).float()
    expected = F.linear(ScaledRows.of(x, fp8).widened, ScaledRows.of(weight, fp8).widened)
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
