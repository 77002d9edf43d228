"""The time in which a task has not gone on."""

from ovi_ray.workers.quiet_time import QuietTime


def test_it_is_counted_from_the_begin_of_the_work_and_from_each_step_and_not_outside_of_work():
    now = [0.0]
    quiet = QuietTime(lambda: now[0])
    now[0] = 1000.0
    quiet.goes_on()
    assert (quiet.seconds, quiet.longest_s) == (0.0, 0.0)
    quiet.begins()
    now[0] += 5.0
    assert (quiet.seconds, quiet.longest_s) == (5.0, 0.0)
    quiet.goes_on()
    now[0] += 2.0
    quiet.goes_on()
    now[0] += 1.0
    assert (quiet.seconds, quiet.longest_s) == (1.0, 5.0)
    quiet.ends()
    now[0] += 60.0
    assert quiet.seconds == 0.0
    quiet.begins()
    assert quiet.longest_s == 0.0
