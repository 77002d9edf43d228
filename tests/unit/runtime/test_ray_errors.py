"""Ray's errors in one line, for messages."""

import pytest
from ray.exceptions import RayError

from ovi_ray.runtime.ray_errors import reason

LOW_MEMORY = """\
The actor died because of an error raised in its creation task.
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: a740) was 23.21GB used / \
23.54GB limit (0.985978)
OOM kill reason: Memory usage 24885813248B exceeded threshold of 24012677120B (95.0% of 25276502016B limit)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
13117\t19.19\tpython of_another_user.py
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/
"""


def test_a_worker_that_ray_killed_for_memory_has_a_reason_without_the_processes_of_others():
    told = reason(RayError(LOW_MEMORY))
    assert "23.21GB of 23.54GB" in told
    assert "another_user" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ray::Worker()\n  File x\nOSError: no such device\n", "OSError: no such device"),
        (
            "  File x\novi.errors.InvalidWeights: 2 problems:\na.pth\n  truncated",
            "ovi.errors.InvalidWeights: 2 problems: a.pth truncated",
        ),
        (
            "The actor died.\n\tpid: 5\nThe actor is dead because its process has died.",
            "The actor is dead because its process has died.",
        ),
    ],
)
def test_the_reason_is_the_exception_in_the_worker_or_what_ray_says_last(text, told):
    assert reason(RayError(text)) == told
