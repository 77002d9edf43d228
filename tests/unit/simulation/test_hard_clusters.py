"""Clusters on which placement is hard: how near the production scheduler comes to the bound on each."""

import dataclasses
import itertools
import random

import pytest
from yardsticks.baseline_policies import dynamic_queue
from yardsticks.clusters import (
    CPU,
    GPU_80GB,
    devices,
    misdeclared,
    mixed_lengths,
    one_fast,
    slow_encoders,
    slow_loading,
    specialists,
    steps,
    unbalanced,
    undeclared,
    with_rates,
)
from yardsticks.random_clusters import KINDS, random_clusters
from yardsticks.scenarios import Scenario, make_workload, measure

from ovi.stages import Stage
from ovi_ray.simulation.virtual_cluster import simulate

HARD = [
    *((scenario, 1.15) for scenario in undeclared((10, 20))),
    *((scenario, 1.15) for scenario in misdeclared((2, 3, 9))),
    *((scenario, 1.05) for scenario in slow_encoders((60,))),
    *((scenario, 1.05) for scenario in specialists(((30, 24),), clips=120)),
    *((scenario, 1.1) for scenario in slow_loading()[:3]),
    *((scenario, 1.1) for scenario in one_fast((2, 5, 10))),
    *((scenario, 1.1) for scenario in one_fast((7,), slow=12, times=8)),
    *((scenario, 1.1) for scenario in mixed_lengths(((8, 60), (16, 30), (4, 40)))),
    *((scenario, 1.05 if scenario.workload.clips >= 100 else 1.15) for scenario in unbalanced()[:4]),
]


@pytest.mark.parametrize(
    ("scenario", "most"), HARD, ids=lambda value: value.name if isinstance(value, Scenario) else ""
)
def test_production_is_near_the_bound_where_placement_is_hard(scenario, most):
    found = measure(scenario)
    assert found.outcome.failed == 0
    assert found.ratio < most


@pytest.mark.parametrize(("seed", "most"), [("2 56", 1.15), ("5 8", 1.12)])
def test_devices_with_slow_loads_wait_for_latents_where_decodes_take_the_time(seed, most):
    here, workload = KINDS["decode dominated"](random.Random(seed), 10)
    assert measure(Scenario(name=seed, workload=workload, devices=here)).ratio < most


def test_copies_are_for_the_clips_that_end_last_as_soon_as_that_is_known():
    here, workload = KINDS["declared alike"](random.Random("2 37"), 10)
    assert measure(Scenario(name="2 37", workload=workload, devices=here)).ratio < 1.5


def test_a_text_host_that_denoises_encodes_first_what_is_needed_meanwhile():
    slow = with_rates(GPU_80GB, "text host", denoise=1 / 10)
    no_text = dataclasses.replace(GPU_80GB, stages=frozenset(Stage) - {Stage.ENCODE_TEXT})
    outcome = simulate(make_workload(80), devices((no_text, 4), (slow, 1)), keep_spans=True)
    (first, *_) = (s for s in outcome.spans if s.device == slow.name and s.task.stage is Stage.DENOISE and s.task.items)
    before = sum(
        len(s.task.items) for s in outcome.spans if s.task.stage is Stage.ENCODE_TEXT and s.start_s < first.start_s
    )
    assert before > 4 * (first.end_s - first.start_s) / 73.2


def test_clusters_drawn_at_random_are_the_same_for_a_seed():
    (again, other), of_kind = random_clusters(2, seed=3), dict(random_clusters(2, seed=3))
    assert [again[1].devices, other[1].devices] == [scenario.devices for scenario in of_kind.values()]
    assert len(dict(random_clusters(len(KINDS)))) == len(KINDS)
    assert next(random_clusters(1, seed=4))[1].devices != again[1].devices


def test_helpers_that_are_too_slow_to_help_cost_nothing():
    job = make_workload(30, kinds=[steps(4)])
    alone = simulate(job, devices((GPU_80GB, 4))).makespan_s
    for count in (1, 16):
        assert simulate(job, devices((GPU_80GB, 4), (CPU, count))).makespan_s < 1.03 * alone


def test_texts_and_first_frames_are_encoded_in_turn():
    """Not all of one before the other: the first clip could not be denoised until then."""
    job = unbalanced()[4].workload
    outcome = simulate(job, devices((GPU_80GB, 8)), keep_spans=True)
    first = {stage: min(s.start_s for s in outcome.spans if s.task.stage is stage and s.task.items) for stage in Stage}
    frames_before = [
        s for s in outcome.spans if s.task.stage is Stage.ENCODE_FIRST_FRAME and s.end_s <= first[Stage.ENCODE_TEXT]
    ]
    assert len(frames_before) < 16
    assert first[Stage.DENOISE] < 20


def test_latents_wait_in_memory_while_specialists_denoise_ahead():
    (scenario,) = specialists(((10, 10),), clips=60)
    outcome = simulate(scenario.workload, scenario.devices, keep_spans=True)
    decoded_on = {s.device for s in outcome.spans if s.task.stage is Stage.DECODE}
    assert decoded_on == {"decoder"}


@pytest.mark.parametrize(("clips", "count"), [*itertools.product((8, 20), (2, 4))])
def test_production_is_never_far_behind_a_queue_of_whole_clips(clips, count):
    job, here = make_workload(clips), devices((GPU_80GB, count))
    queue = simulate(job, here, scheduler=dynamic_queue(job)).makespan_s
    assert simulate(job, here).makespan_s < 1.02 * queue
