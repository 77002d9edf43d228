import pytest

from ovi_ray.runtime.remaining_time import RemainingTimeEstimator


def estimator_after(*ends):
    estimator = RemainingTimeEstimator()
    for end in ends:
        estimator.clip_ended(end)
    return estimator


def test_nothing_is_known_without_a_plan_and_without_ended_clips():
    assert estimator_after().remaining(5, 10.0, None) is None
    assert estimator_after().remaining(5, 10.0, 0.0) is None  # a plan that is over
    assert estimator_after().clips_per_hour(10.0) is None


def test_until_clips_have_ended_the_plan_counts_with_a_wide_range():
    left = estimator_after(60.0).remaining(9, 61.0, 540.0)
    assert (left.low_s, left.expected_s, left.high_s) == (270.0, 540.0, 1141.0)


def test_a_plan_that_is_nearly_over_leaves_open_that_the_run_takes_twice_as_long():
    assert estimator_after().remaining(1, 180.0, 1.0).high_s == 182.0


def test_a_steady_rate_needs_no_plan_and_has_no_spread():
    estimator = estimator_after(*(60.0 * (number + 1) for number in range(10)))
    left = estimator.remaining(30, 600.0, 1.0)
    assert left.low_s == left.expected_s == left.high_s == 1800.0
    assert estimator.clips_per_hour(600.0) == 60.0


def test_an_uneven_rate_has_a_range_that_narrows_with_every_clip():
    def spread(clips):
        ends = [60.0 * number + (20.0 if number % 2 else -20.0) for number in range(1, clips + 1)]
        left = estimator_after(*ends).remaining(100, 60.0 * clips + 20.0, None)
        assert left.low_s < left.expected_s < left.high_s
        return (left.high_s - left.low_s) / left.expected_s

    assert spread(50) < spread(10) < spread(4)


@pytest.mark.parametrize("plan_s", [None, 0.0, 3.0])
@pytest.mark.parametrize("ended", [0, 3, 100])
def test_it_is_never_zero_while_a_clip_is_left(plan_s, ended):
    left = estimator_after(*([0.5] * ended)).remaining(1, 0.5, plan_s)
    assert left is None or min(left.low_s, left.expected_s) >= 1.0
    assert estimator_after().remaining(0, 1.0, None).expected_s == 0.0


def test_a_job_that_comes_to_a_halt_takes_longer_and_longer():
    estimator = estimator_after(10.0, 20.0, 30.0)
    assert estimator.remaining(10, 30.0, None).expected_s < estimator.remaining(10, 300.0, None).expected_s
