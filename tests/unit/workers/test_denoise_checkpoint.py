"""When a denoise is checkpointed, without a model."""

from concurrent.futures import Future

import torch

from ovi.config import SamplingParams
from ovi.sampling.denoise import DenoiseState
from ovi.sampling.solvers import SolverState
from ovi.types import Latents
from ovi_ray.protocol.messages import Denoise
from ovi_ray.workers.denoise_checkpoint import DenoiseCheckpointer


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


def at_once(write):
    done = Future()
    done.set_result(write())
    return done


class Later:
    """Writes that begin when somebody waits for them."""

    def __init__(self):
        self.begun = 0

    def __call__(self, write):
        future, later = Future(), self

        def result():
            if not future.done():
                later.begun += 1
                future.set_result(write())

        future.result = result
        return future


def make_checkpointer(tmp_path, *, start=at_once, **changes):
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
    return DenoiseCheckpointer(work, start=start, clock=clock), clock


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


def test_a_checkpoint_is_written_beside_the_next_steps_and_none_is_due_meanwhile(tmp_path):
    later = Later()
    checkpointer, clock = make_checkpointer(tmp_path, start=later)
    clock.time = 61.0
    checkpointer.step_done()
    checkpointer.save_state(make_state(1))
    clock.time = 200.0
    checkpointer.step_done()
    assert (later.begun, (tmp_path / "checkpoint").exists(), checkpointer.is_due()) == (0, False, False)
    checkpointer.settle()
    assert (later.begun, (tmp_path / "checkpoint").exists(), checkpointer.is_due()) == (1, True, True)


def test_the_latents_are_written_after_the_checkpoint_which_is_then_removed(tmp_path):
    later = Later()
    checkpointer, _ = make_checkpointer(tmp_path, start=later)
    checkpointer.save_state(make_state(1))
    checkpointer.save_latents(Latents(video=torch.zeros(1), audio=torch.zeros(1)), {})
    assert later.begun == 1
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_a_checkpoint_that_cannot_be_written_is_told_when_it_has_ended(tmp_path):
    checkpointer, _ = make_checkpointer(tmp_path, checkpoint_path=str(tmp_path / "gone" / "checkpoint"))
    checkpointer.save_state(make_state(1))
    checkpointer.settle()
    assert "No such file" in checkpointer.storage_error


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
