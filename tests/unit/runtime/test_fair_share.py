"""Jobs share a cluster by priority, without starving any, and without waiting for dead ones."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_ray.runtime.fair_share import Demand, FairShare, shares
from tests.support.fake_executor import FakeClock
from tests.support.fake_table import FakeTable


def demand(workers, priority=0):
    return Demand(priority=priority, workers={"GPU": workers})


@pytest.mark.parametrize(
    ("capacity", "demands", "expected"),
    [
        (8, {"a": demand(8), "b": demand(8)}, {"a": 4, "b": 4}),
        (9, {"a": demand(9, priority=100), "b": demand(9)}, {"a": 6, "b": 3}),
        (8, {"a": demand(8, priority=1000), "b": demand(8, priority=-1000)}, {"a": 7, "b": 1}),
        (8, {"a": demand(8), "b": demand(1)}, {"a": 7, "b": 1}),
        (1, {"a": demand(1), "b": demand(1, priority=1)}, {"a": 0, "b": 1}),
        (8, {"a": demand(2), "b": demand(2)}, {"a": 2, "b": 2}),
        (0, {"a": demand(2)}, {"a": 0}),
    ],
)
def test_shares_follow_the_priorities(capacity, demands, expected):
    assert shares(capacity, demands, "GPU") == expected


@given(
    st.integers(0, 64),
    st.dictionaries(st.text(max_size=3), st.builds(demand, st.integers(0, 70), st.integers(-1000, 1000)), min_size=1),
)
def test_nothing_is_left_over_and_no_job_starves(capacity, demands):
    given_ = shares(capacity, demands, "GPU")
    wanted = {key: demand.workers["GPU"] for key, demand in demands.items()}
    assert sum(given_.values()) == min(capacity, sum(wanted.values()))
    assert all(0 <= given_[key] <= wanted[key] for key in demands)
    if capacity >= len(demands):
        assert all(given_[key] >= min(1, wanted[key]) for key in demands)


def share_of(table, clock, **options):
    return FairShare(table=table, devices=lambda: {"GPU": 4}, clock=clock.now, **{"priority": 0, **options})


def test_a_job_alone_has_all_and_gives_half_to_another_until_that_ends():
    table, clock = FakeTable(), FakeClock()
    first, second = share_of(table, clock), share_of(table, clock)
    assert first.allowed({"GPU": 4}) == {"GPU": math.inf}
    assert second.allowed({"GPU": 4}) == {"GPU": 2}
    assert first.allowed({"GPU": 4}) is None  # not due
    clock.sleep(2.0)
    assert first.allowed({"GPU": 4}) == {"GPU": 2}
    second.leave()
    clock.sleep(2.0)
    assert first.allowed({"GPU": 4}) == {"GPU": math.inf}


def test_the_record_of_a_driver_that_died_counts_for_half_a_minute_and_is_removed():
    table, clock = FakeTable(), FakeClock()
    share_of(table, clock).allowed({"GPU": 4})
    job = share_of(table, clock)
    found = []
    for _ in range(20):
        found.append(job.allowed({"GPU": 4})["GPU"])
        clock.sleep(2.0)
    assert (found[0], found[-1]) == (2, math.inf)
    assert len(table.records) == 1


def test_the_record_of_a_driver_that_is_known_to_have_ended_is_removed_and_gives_nothing_away():
    table, clock, ended = FakeTable(), FakeClock(), {"01000000"}
    share_of(table, clock, driver="01000000").allowed({"GPU": 4})
    share_of(table, clock, driver="03000000").allowed({"GPU": 4})
    job = share_of(table, clock, driver="02000000", ended=lambda: ended)
    assert job.allowed({"GPU": 4}) == {"GPU": 2}
    assert [json.loads(text)["driver"] for text in table.records.values()] == ["03000000", "02000000"]
    ended.add("03000000")
    clock.sleep(2.0)
    assert job.allowed({"GPU": 4}) == {"GPU": math.inf}
    assert list(map(json.loads, table.records.values())) == [
        {"priority": 0, "workers": {"GPU": 4}, "driver": "02000000", "beat": 2}
    ]


def test_the_record_of_an_older_version_that_names_no_driver_counts_until_it_is_silent():
    table, clock = FakeTable(), FakeClock()
    table.records["old"] = json.dumps({"priority": 0, "workers": {"GPU": 4}, "beat": 1})
    job = share_of(table, clock, driver="02000000", ended=lambda: {"01000000"})
    assert job.allowed({"GPU": 4}) == {"GPU": 2}


def test_records_that_cannot_be_read_do_not_count():
    table, clock = FakeTable(), FakeClock()
    table.records |= {"x": "no json", "y": "[]", "z": json.dumps({"priority": "high", "workers": {"GPU": 4}})}
    assert share_of(table, clock).allowed({"GPU": 4}) == {"GPU": math.inf}


def test_a_head_that_does_not_answer_changes_nothing():
    table, clock = FakeTable(), FakeClock()

    def fail(key, text):
        raise RuntimeError("no answer")

    table.put = fail
    assert share_of(table, clock).allowed({"GPU": 4}) is None
