"""When a slot is given up: after several new tasks in a row, or starts, that killed its workers."""

from ovi.stages import Stage
from ovi_ray.runtime.slot_history import SlotHistory, causes_of
from ovi_ray.scheduling.task import Task


def denoise(clip, attempt=1):
    return Task(stage=Stage.DENOISE, items=(clip,), attempt=attempt)


def test_different_tasks_that_kill_its_workers_break_a_slot():
    history = SlotHistory()
    for clip in range(3):
        assert not history.is_broken(3)
        history = history.failed_at(causes_of([denoise(clip)]))
    assert history.is_broken(3)


def test_a_task_that_failed_before_says_nothing_of_the_slot():
    history = SlotHistory()
    for clip in range(3):
        history = history.failed_at(causes_of([denoise(clip, attempt=2)]))
    assert not history.is_broken(1)


def test_a_success_clears_the_failures():
    assert not SlotHistory().failed_at(causes_of([denoise(0)])).succeeded().is_broken(1)
