"""Calls to a head that may never answer."""

import threading

import pytest

from ovi_ray.runtime.head_calls import HeadCalls
from tests.support.waiting import PATIENCE_S, wait_until


def test_a_call_gives_its_result_or_what_it_raises():
    calls = HeadCalls(patience_s=PATIENCE_S)
    assert calls(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="no head"):
        calls(lambda: (_ for _ in ()).throw(RuntimeError("no head")))
    assert calls(lambda: 4) == 4


def test_a_call_that_does_not_come_back_is_left_and_no_other_is_begun_before_it_does():
    calls, answer, begun = HeadCalls(patience_s=0.01), threading.Event(), []
    with pytest.raises(TimeoutError):
        calls(answer.wait)
    with pytest.raises(TimeoutError, match="the call before"):
        calls(lambda: begun.append("early"))
    answer.set()

    def again():
        try:
            return calls(lambda: "late")
        except TimeoutError:
            return None

    assert wait_until(again) == "late"
    assert not begun
