"""A clip on a GPU against the same clip on the CPU."""

import pytest
import torch

from ovi import OviPipeline

pytestmark = pytest.mark.gpu

MODEL = "720x720_5s"
PROMPT = "A fox. <AUDCAP>Wind<ENDAUDCAP>"
SMALL = {"video_frame_height_width": (64, 96), "sample_steps": 3, "slg_layer": 1}


def open_pipeline(ckpt_dir, device):
    return OviPipeline.from_pretrained(ckpt_dir, model_name=MODEL, device=device, dtype=torch.float32)


def test_a_clip_on_the_gpu_is_close_to_the_cpu(tiny_dir, assert_close_to_std):
    expected = open_pipeline(tiny_dir, "cpu").generate(PROMPT, seed=3, **SMALL).latents
    actual = open_pipeline(tiny_dir, "cuda").generate(PROMPT, seed=3, **SMALL).latents
    assert_close_to_std(actual.video, expected.video, 1e-2)
    assert_close_to_std(actual.audio, expected.audio, 1e-2)


def test_unloading_a_pipeline_releases_gpu_memory(tiny_dir):
    pipeline = open_pipeline(tiny_dir, "cuda")
    pipeline.generate(PROMPT, seed=3, **SMALL)
    held = torch.cuda.memory_allocated()
    pipeline.unload()
    assert torch.cuda.memory_allocated() < held
