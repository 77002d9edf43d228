"""Retries: how often, where, beside what, and whose fault a failure was."""

import pytest

from ovi.stages import Stage
from ovi_ray.scheduling.config import RetryConfig
from ovi_ray.scheduling.retry_tracker import RetryTracker

CLIP = (Stage.DENOISE, 7)


def tracker(**config):
    return RetryTracker(RetryConfig(**config))


def test_an_item_without_failures_may_run_anywhere():
    retries = tracker()
    assert not retries
    assert retries.allows(CLIP, "w0")
    assert retries.next_attempt(CLIP) == 1


def test_an_error_sends_the_item_elsewhere_until_it_was_tried_often_enough():
    retries = tracker(max_attempts=2)
    assert retries.record_error(CLIP, "w0")
    assert not retries.allows(CLIP, "w0")
    assert retries.allows(CLIP, "w1")
    assert retries.next_attempt(CLIP) == 2
    assert not retries.record_error(CLIP, "w1")


def test_out_of_memory_runs_the_item_alone_first_and_then_elsewhere():
    retries = tracker(max_attempts=9)
    assert not retries.runs_alone(CLIP)
    retries.record_out_of_memory(CLIP, "w0", 24.0)
    assert retries.runs_alone(CLIP)
    assert retries.allows(CLIP, "w0")
    retries.record_out_of_memory(CLIP, "w0", 24.0)
    assert not retries.allows(CLIP, "w0")
    assert retries.allows(CLIP, "w1")


def test_memory_is_too_small_once_an_item_ran_out_of_it_on_two_devices():
    retries = tracker(max_attempts=9)
    retries.record_out_of_memory(CLIP, "w0", 80.0)
    retries.record_error(CLIP, "w2")
    assert retries.too_small_gb(CLIP) == 0.0
    retries.record_out_of_memory(CLIP, "w1", 24.0)
    assert retries.too_small_gb(CLIP) == 24.0


def test_errors_and_out_of_memory_count_together():
    retries = tracker(max_attempts=2)
    assert retries.record_out_of_memory(CLIP, "w0", 24.0)
    assert not retries.record_error(CLIP, "w0")


def test_crashes_are_counted_apart_from_errors():
    retries = tracker(max_attempts=1, max_crashes=2)
    assert retries.record_crash(CLIP, "w0")
    assert not retries.record_crash(CLIP, "w1")


def test_an_uncharged_failure_is_avoided_but_not_counted():
    retries = tracker(max_attempts=1)
    assert retries.record_error(CLIP, "w0", charged=False)
    assert not retries.allows(CLIP, "w0")
    assert retries.record_error(CLIP, "w1", charged=False)


def test_what_failed_on_a_faulty_device_is_not_counted_any_more():
    retries = tracker(max_attempts=2)
    retries.record_error(CLIP, "w0")
    retries.forgive("w0", Stage.DECODE)
    assert retries.failed_on(CLIP)
    retries.forgive("w0", Stage.DENOISE)
    assert not retries.failed_on(CLIP)
    assert retries.record_error(CLIP, "w1")


@pytest.mark.parametrize("everything", [True, False])
def test_restrictions_can_be_lifted_but_an_item_out_of_memory_still_runs_alone(everything):
    retries = tracker(max_attempts=9)
    for _ in range(2):
        retries.record_out_of_memory(CLIP, "w0", 24.0)
    if everything:
        assert retries.lift_all_restrictions()
        assert not retries.lift_all_restrictions()
    else:
        retries.lift_restrictions(CLIP)
    assert retries.allows(CLIP, "w0")
    assert retries.runs_alone(CLIP)


def test_a_success_clears_the_history():
    retries = tracker()
    retries.record_suspicion(CLIP)
    assert retries.has_failed(CLIP)
    retries.clear(CLIP)
    assert not retries


def test_an_item_whose_worker_died_comes_last_until_all_restrictions_are_lifted():
    retries = tracker()
    retries.record_crash(CLIP, "w0")
    retries.lift_restrictions(CLIP)
    assert CLIP in retries.last_items
    assert retries.lift_all_restrictions()
    assert CLIP not in retries.last_items
