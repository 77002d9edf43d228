"""When a denoise is checkpointed, without a model."""

import torch

from ovi.config import SamplingParams
from ovi.sampling.denoise import DenoiseState
from ovi.sampling.solvers import SolverState
from ovi_ray.protocol.messages import Denoise
from ovi_ray.workers.denoise_checkpoint import DenoiseCheckpointer


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


def make_checkpointer(tmp_path, **changes):
    clock = Clock()
    work = Denoise(
        **{
            "params": SamplingParams(video_frame_height_width=(64, 64)),
            "clip_id": "a",
            "latents_path": str(tmp_path / "latents"),
            "checkpoint_path": str(tmp_path / "checkpoint"),
            "checkpoint_s": 60.0,
            **changes,
        }
    )
    return DenoiseCheckpointer(work, clock=clock), clock


def make_state(step):
    video, audio = (SolverState(sample=torch.full((2, 3), float(step)), index=step) for _ in range(2))
    return DenoiseState(video=video, audio=audio)


def test_a_checkpoint_is_due_after_its_interval_and_at_least_one_step(tmp_path):
    checkpointer, clock = make_checkpointer(tmp_path)
    clock.time = 61.0
    assert not checkpointer.is_due()
    checkpointer.step_done()
    assert checkpointer.is_due()
    clock.time = 59.0
    assert not checkpointer.is_due()


def test_asking_whether_a_checkpoint_is_due_changes_nothing(tmp_path):
    checkpointer, clock = make_checkpointer(tmp_path)
    checkpointer.step_done()
    clock.time = 61.0
    assert [checkpointer.is_due() for _ in range(5)] == [True] * 5


def test_after_a_checkpoint_the_interval_starts_again(tmp_path):
    checkpointer, clock = make_checkpointer(tmp_path)
    clock.time = 61.0
    checkpointer.step_done()
    checkpointer.save_state(make_state(1))
    checkpointer.step_done()
    assert not checkpointer.is_due()
    clock.time = 122.0
    assert checkpointer.is_due()


def test_the_time_of_earlier_tasks_counts(tmp_path):
    first, clock = make_checkpointer(tmp_path)
    clock.time = 100.0
    first.save_state(make_state(4))
    second, clock = make_checkpointer(tmp_path)
    assert second.state().step == 4
    clock.time = 20.0
    assert second.spent_s == 120.0


def test_a_state_that_is_no_further_than_the_checkpoint_is_not_written(tmp_path):
    checkpointer, _ = make_checkpointer(tmp_path)
    checkpointer.save_state(make_state(4))
    (tmp_path / "checkpoint").unlink()
    checkpointer.save_state(make_state(4))
    assert not (tmp_path / "checkpoint").exists()


def test_without_a_path_nothing_is_ever_due(tmp_path):
    checkpointer, clock = make_checkpointer(tmp_path, checkpoint_path="")
    checkpointer.step_done()
    clock.time = 1e6
    assert not checkpointer.is_due()
