"""Illegal moves raise; every state can be reached, and only ends have no way out."""

import re
from pathlib import Path

import pytest

import ovi_ray.scheduling
from ovi.stages import CLIP_STAGES, Stage
from ovi_ray.scheduling.circuit_breaker import CircuitBreaker
from ovi_ray.scheduling.config import CircuitBreakerConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.states import (
    BREAKER_TRANSITIONS,
    CLIP_STAGE_STATES,
    CLIP_TRANSITIONS,
    INPUT_TRANSITIONS,
    WORKER_TRANSITIONS,
    ClipState,
    IllegalTransition,
    InputState,
    WorkerStatus,
    check_transition,
)
from ovi_ray.scheduling.task import BreakerState
from tests.support.scheduling import make_workload

TABLES = [
    (CLIP_TRANSITIONS, ClipState.PENDING, {ClipState.DONE, ClipState.FAILED}),
    (INPUT_TRANSITIONS, InputState.ABSENT, {InputState.BAD}),
    (WORKER_TRANSITIONS, WorkerStatus.IDLE, {WorkerStatus.LOST}),
    (BREAKER_TRANSITIONS, BreakerState.CLOSED, set()),
]


@pytest.mark.parametrize(("table", "first", "ends"), TABLES)
def test_every_state_is_reachable_and_only_ends_have_no_way_out(table, first, ends):
    reached, frontier = {first}, [first]
    while frontier:
        frontier = [state for old in frontier for state in table[old] if state not in reached]
        reached |= set(frontier)
    assert reached == set(table) == set(type(first))
    assert {state for state, allowed in table.items() if not allowed} == ends


@pytest.mark.parametrize("table", [CLIP_TRANSITIONS, WORKER_TRANSITIONS, BREAKER_TRANSITIONS])
def test_the_readme_draws_every_transition_and_no_other(table):
    names = {state.name for state in table}
    text = (Path(ovi_ray.scheduling.__file__).parent / "README.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)", text, re.MULTILINE))
    declared = {(old.name, new.name) for old, allowed in table.items() for new in allowed}
    assert {(old, new) for old, new in drawn if {old, new} <= names} == declared


def test_an_illegal_move_names_the_subject_and_both_states():
    with pytest.raises(IllegalTransition, match="clip 3 cannot go from DONE to READY"):
        check_transition(CLIP_TRANSITIONS[ClipState.DONE], "clip 3", ClipState.DONE, ClipState.READY)


def test_a_clip_that_is_not_denoised_cannot_be_decoded():
    job = JobState(make_workload(1))
    with pytest.raises(IllegalTransition, match="from PENDING to DECODING"):
        job.start(Stage.DECODE, 0)


def test_a_text_that_no_worker_encodes_cannot_be_finished():
    job = JobState(make_workload(1))
    with pytest.raises(IllegalTransition, match="text 0 cannot go from ABSENT to HELD"):
        job.complete(Stage.ENCODE_TEXT, 0)


def test_a_breaker_opens_once_and_closes_only_after_a_probe():
    breaker = CircuitBreaker("w0", Stage.DENOISE, CircuitBreakerConfig())
    breaker.record_failure((0,), "broken")
    breaker.trip(now=0.0)
    with pytest.raises(IllegalTransition, match="circuit breaker of w0 for denoise cannot go from OPEN to OPEN"):
        breaker.trip(now=1.0)
    with pytest.raises(IllegalTransition, match="from OPEN to CLOSED"):
        breaker.record_success()
    breaker.half_open()
    assert breaker.record_success()


def test_the_states_of_a_clip_are_in_the_order_of_its_stages():
    states = [CLIP_STAGE_STATES[stage] for stage in CLIP_STAGES]
    assert [ready for each in states for ready in each[:2]] == sorted(ready for each in states for ready in each[:2])
    assert states[-1].finished is ClipState.DONE
