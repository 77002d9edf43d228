import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi.config import Architecture, SamplingParams, SolverName
from ovi.prompts import clean
from ovi.stages import Stage
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.task_table import NO_FIRST_FRAME, TaskTable


@pytest.fixture
def tasks_of(tmp_path):
    def tasks_of(*rows, **options):
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        job = JobSpec(prompts=path, ckpt_dir=tmp_path, output_dir=tmp_path, **options)
        return TaskTable.of(build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n"))

    return tasks_of


def text_of(tasks, number):
    return tasks.texts.column("text")[int(number)].as_py()


def test_each_distinct_text_of_a_job_is_encoded_once(tasks_of):
    tasks = tasks_of(
        {"text_prompt": "A  dog &amp; a cat"},
        {"text_prompt": "A dog & a cat"},
        {"text_prompt": "blur", "video_negative_prompt": "echo"},
        video_negative_prompt="blur",
        audio_negative_prompt="echo",
    )
    assert tasks.clip_texts.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 2]]
    assert tasks.counts()[Stage.ENCODE_TEXT] == 3
    assert clean(text_of(tasks, 0)) == "A dog & a cat"


def test_a_text_has_the_same_id_in_every_job(tasks_of):
    first = tasks_of({"text_prompt": "A dog"})
    second = tasks_of({"text_prompt": "A cat"}, {"text_prompt": "A   dog"})
    assert first.texts.column("text_id")[0] == second.texts.column("text_id")[int(second.clip_texts[1, 0])]


def test_each_image_is_encoded_once_at_each_size(tasks_of, tmp_path):
    for name in ("a.png", "copy-of-a.png"):
        Image.new("RGB", (64, 48), "red").save(tmp_path / name)
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "b.png")
    tasks = tasks_of(
        {"text_prompt": "1", "image_path": "a.png"},
        {"text_prompt": "2"},
        {"text_prompt": "3", "image_path": "copy-of-a.png"},
        {"text_prompt": "4", "image_path": "b.png"},
        {"text_prompt": "5", "image_path": "a.png", "model_name": "960x960_5s"},
        {"text_prompt": "6", "image_path": "a.png", "model_name": "960x960_10s"},
    )
    assert tasks.clip_first_frame.tolist() == [0, NO_FIRST_FRAME, 0, 1, 2, 2]
    assert tasks.first_frames.column("height").to_pylist() == [608, 608, 832]
    assert tasks.first_frames.column("image_path")[1].as_py() == str(tmp_path / "b.png")
    assert len(set(tasks.first_frames.column("first_frame_id").to_pylist())) == 3
    assert tasks.counts() == {
        Stage.ENCODE_TEXT: 8,
        Stage.ENCODE_FIRST_FRAME: 3,
        Stage.DENOISE: 6,
        Stage.DECODE: 6,
    }


def test_a_clip_holds_what_its_stages_need(tasks_of):
    tasks = tasks_of(
        {"text_prompt": "A dog"},
        {
            "text_prompt": "A cat Audio: rain",
            "seed": 5,
            "sample_steps": 3,
            "solver_name": "euler",
            "video_frame_height_width": "512x992",
        },
    )
    clip = tasks.clip(1)
    assert clip.params == SamplingParams(
        seed=5, sample_steps=3, solver_name=SolverName.EULER, video_frame_height_width=(512, 992)
    )
    assert (clip.index, clip.row, clip.line, clip.repeat, clip.model_name) == (1, 2, 2, 0, "720x720_5s")
    assert (clip.text_prompt, clip.prompt) == ("A cat Audio: rain", "A cat <AUDCAP>rain<ENDAUDCAP>")
    assert (clip.height, clip.width, clip.video_latent_length, clip.audio_latent_length) == (512, 992, 31, 157)
    assert (clip.first_frame, clip.image_path) == (None, None)
    assert text_of(tasks, clip.texts[0]) == clip.prompt
    assert clip.clip_id == tasks.clips.column("clip_id")[1].as_py()


@pytest.mark.parametrize("index", [-1, 1])
def test_a_clip_that_is_not_there_is_refused(tasks_of, index):
    with pytest.raises(IndexError, match=f"clip {index} of 1"):
        tasks_of({"text_prompt": "A dog"}).clip(index)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.sampled_from(["a", "b ", " b", "&amp;", "c"])] * 3), min_size=1, max_size=10))
def test_every_clip_points_to_its_own_texts(tasks_of, rows):
    tasks = tasks_of(
        *(
            {"text_prompt": prompt, "video_negative_prompt": video, "audio_negative_prompt": audio}
            for prompt, video, audio in rows
        )
    )
    for row, numbers in zip(rows, tasks.clip_texts, strict=True):
        assert [clean(text_of(tasks, number)) for number in numbers] == [clean(text) for text in row]
    assert tasks.texts.num_rows == len({clean(text) for row in rows for text in row})
    assert np.array_equal(np.unique(tasks.clip_texts), np.arange(tasks.texts.num_rows))
