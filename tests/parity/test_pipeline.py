"""Whole generations against the published implementation: from prompt (and image) to latents, frames and audio."""

import pytest
import torch

from ovi import OviPipeline
from ovi.config import SamplingParams
from ovi.prompts import in_model_form
from ovi.types import PromptEmbeds

TOLERANCE = 1e-4


def open_pipeline(tiny_dir, case, dtype=torch.float32):
    return OviPipeline.from_pretrained(tiny_dir, model_name=case["model_name"], device="cpu", dtype=dtype)


def params_of(case):
    names = SamplingParams.__dataclass_fields__
    return SamplingParams(**{key: value for key, value in case.items() if key in names})


def denoised(pipe, case, first_frame_path):
    params = params_of(case)
    prompt = in_model_form(case["text_prompt"], pipe.spec.audio_tag).text
    rows = pipe.encode_text([prompt, params.video_negative_prompt, params.audio_negative_prompt])
    embeds = PromptEmbeds(positive=rows[0], video_negative=rows[1], audio_negative=rows[2])
    first_frame = pipe.encode_first_frame(first_frame_path) if case["image"] else None
    return pipe.denoise(embeds, params, first_frame=first_frame)


@pytest.mark.parametrize("index", range(4))
def test_a_generation_equals_the_published_one(
    tiny_dir, first_frame_path, golden, golden_json, assert_close_to_std, index
):
    case = golden_json["e2e"][index]
    pipe = open_pipeline(tiny_dir, case)
    latents = denoised(pipe, case, first_frame_path)
    assert_close_to_std(latents.video, golden[f"e2e.{index}.video_latents"], TOLERANCE)
    assert_close_to_std(latents.audio, golden[f"e2e.{index}.audio_latents"], TOLERANCE)
    video = torch.cat(list(pipe.decode_video(latents.video)), dim=1)
    assert list(video.shape) == case["video_shape"]
    expected = golden[f"e2e.{index}.video"]
    thinned = video if expected.shape == video.shape else video[:, ::4, ::4, ::4]
    assert_close_to_std(thinned, expected, TOLERANCE)
    assert_close_to_std(torch.from_numpy(pipe.decode_audio(latents.audio)), golden[f"e2e.{index}.audio"], TOLERANCE)
