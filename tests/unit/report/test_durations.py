"""Text forms of durations."""

import pytest

from ovi_ray.report.durations import format_duration, format_duration_in_words


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (90_000, "1 day, 1:00:00")]
)
def test_a_duration_is_rounded_to_whole_seconds(seconds, clock):
    assert format_duration(seconds) == clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.34, "12.3 s"), (59.97, "1 min"), (200, "3 min 20 s"), (86_460, "1 d"), (90_000, "1 d 1 h")],
)
def test_a_duration_in_words_has_its_two_largest_units(seconds, words):
    assert format_duration_in_words(seconds) == words
