"""The virtual cluster, the bound, and how near the scheduler comes to it."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yardsticks.baseline_policies import SCHEDULERS, dynamic_queue, mean_speed, production, static_striding
from yardsticks.integral_bound import integral_bound
from yardsticks.scenarios import MIXED_KINDS, Scenario, bound_of, make_workload, measure, scenarios, tails

from ovi.stages import STAGES, Stage
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.scheduling.device_profile import StageRates
from ovi_ray.simulation.lower_bound import bound_problem, makespan_bound
from ovi_ray.simulation.virtual_cluster import SimulationError, VirtualDevice, simulate, virtual_devices
from tests.support.scheduling import BIG, ENCODER, MIDDLE, SLOW, SMALL_CARD

PROFILES = Path(__file__).parents[3] / "cluster" / "profiles"


def devices(*profiles, **changes):
    return [VirtualDevice(name=f"{p.name}-{i}", profile=p, **changes) for i, p in enumerate(profiles)]


def cluster(name):
    return tuple(virtual_devices(read_profile(PROFILES / f"{name}.yaml")))


# --- the virtual cluster


def test_a_clip_takes_its_stages_and_its_loads():
    outcome = simulate(make_workload(1), devices(BIG))
    busy = outcome.busy_s["80gb"]
    assert outcome.makespan_s == pytest.approx(sum(busy.values()) + outcome.load_s["80gb"])
    assert busy[Stage.DENOISE] == pytest.approx(73.2, abs=0.1)


def test_work_that_straddles_a_slowdown_is_slow_from_there_on():
    device = VirtualDevice(name="d", profile=BIG, slowdowns=((10.0, 2.0), (30.0, 4.0)))
    assert device.work_ends(0.0, 10.0) == 10.0
    assert device.work_ends(0.0, 15.0) == 20.0
    assert device.work_ends(0.0, 25.0) == 50.0
    assert device.work_ends(40.0, 1.0) == 44.0


def test_the_simulation_is_the_same_every_time():
    job, here = make_workload(40), devices(BIG, MIDDLE, SMALL_CARD)
    assert simulate(job, here, keep_spans=True) == simulate(job, here, keep_spans=True)


def test_jitter_varies_but_not_from_run_to_run():
    job = make_workload(10)
    calm, rough = simulate(job, devices(BIG)), simulate(job, devices(BIG, jitter=0.2))
    assert calm.makespan_s != rough.makespan_s == simulate(job, devices(BIG, jitter=0.2)).makespan_s


def test_spans_never_overlap_on_a_device():
    outcome = simulate(make_workload(60, kinds=MIXED_KINDS), devices(BIG, BIG, MIDDLE, SMALL_CARD), keep_spans=True)
    by_worker = itertools.groupby(sorted(outcome.spans, key=lambda s: (s.worker, s.start_s)), key=lambda s: s.worker)
    for _, spans in by_worker:
        for before, after in itertools.pairwise(list(spans)):
            assert before.end_s <= after.start_s


def test_clips_that_fit_nowhere_end_failed():
    assert simulate(make_workload(3), devices(ENCODER, SMALL_CARD)).failed == 3


def test_a_cluster_that_empties_is_an_error():
    with pytest.raises(SimulationError, match="no events are left"):
        simulate(make_workload(30), devices(BIG, leaves_at_s=100.0))


# --- the bound


@settings(max_examples=15, deadline=None)
@given(
    clips=st.integers(1, 25),
    profiles=st.lists(st.sampled_from([BIG, MIDDLE, SMALL_CARD, SLOW]), min_size=1, max_size=6),
    mixed=st.booleans(),
    kept=st.integers(0, 25),
    change=st.sampled_from(["", "slowdowns", "leaves_at_s", "joins_at_s"]),
    at_s=st.floats(1, 500),
)
def test_no_policy_beats_the_bound(clips, profiles, mixed, kept, change, at_s):
    here = devices(BIG, *profiles)
    if change:
        here[1] = dataclasses.replace(here[1], **{change: ((at_s, 3.0),) if change == "slowdowns" else at_s})
    job = make_workload(clips, kinds=MIXED_KINDS if mixed else MIXED_KINDS[:1])
    job = dataclasses.replace(job, clips_with_latents=np.arange(min(clips, kept)))
    bound = bound_of(Scenario(name="any", workload=job, devices=tuple(here)))
    for make_scheduler in SCHEDULERS.values():
        assert simulate(job, here, scheduler=make_scheduler(job)).makespan_s >= bound * 0.999


def test_the_bound_of_equal_devices_is_their_work_shared():
    job, here = make_workload(800), devices(*[BIG] * 8)
    assert makespan_bound(job, here) == pytest.approx(100 * (73.2 + 9.4), rel=0.01)


def test_a_device_that_joins_late_or_leaves_early_counts_for_its_time():
    job = make_workload(400)
    whole = makespan_bound(job, devices(BIG, BIG))
    late = makespan_bound(job, [*devices(BIG), VirtualDevice(name="late", profile=BIG, joins_at_s=whole / 2)])
    early = makespan_bound(job, [*devices(BIG), VirtualDevice(name="early", profile=BIG, leaves_at_s=whole / 2)])
    assert late == pytest.approx(1.25 * whole, rel=0.01)
    assert early == pytest.approx(1.5 * whole, rel=0.01)


@pytest.mark.parametrize("has_image", [False, True])
def test_whole_clips_take_whole_rounds(has_image):
    kind = dataclasses.replace(make_workload(1).kinds[0], has_image=has_image)
    job, here = make_workload(3, kinds=[kind]), devices(BIG, BIG)
    assert integral_bound(job, here) > 2 * 73.2 > makespan_bound(job, here)


def test_a_device_that_leaves_does_whole_clips_before():
    """The time of a part of a second clip is of no use."""
    job = make_workload(3)
    early, late = ([*devices(MIDDLE), *devices(BIG, leaves_at_s=at)] for at in (125.0, 150.0))
    assert makespan_bound(job, late) < 0.98 * makespan_bound(job, early)
    assert integral_bound(job, late) == pytest.approx(integral_bound(job, early), rel=0.003)


def test_clips_that_slow_devices_denoise_last_are_not_all_decoded_on_one_fast_device():
    """Between the ends of all those denoises and the end of the job there is no time for it."""
    slow = dataclasses.replace(BIG, name="slow", rates=StageRates(**{s.value: BIG.rates.of(s) / 17.7 for s in Stage}))
    job, here = make_workload(100), devices(BIG, *[slow] * 50)
    two_s = 2 * slow.prior_seconds(Stage.DENOISE, STAGES[Stage.DENOISE].tflop(MIXED_KINDS[0]))
    assert makespan_bound(job, here) < two_s < 1.05 * two_s < integral_bound(job, here)


def test_the_integral_bound_is_for_jobs_of_one_kind():
    with pytest.raises(ValueError, match="one kind"):
        integral_bound(make_workload(4, kinds=MIXED_KINDS), devices(BIG))


def best_by_exhaustion(clips: int, here: list[VirtualDevice]) -> float:
    """The best end over every assignment of denoises, each decoded at once on any device, none of it overlapping."""
    from yardsticks.scenarios import KIND_5S

    def load(device, stage):
        return sum(device.profile.load_seconds(c) for c in STAGES[stage].components)

    def work(device, stage):
        return device.profile.prior_seconds(stage, STAGES[stage].tflop(KIND_5S))

    best = math.inf
    able = [i for i, d in enumerate(here) if d.profile.fits(Stage.DENOISE, KIND_5S)]
    for denoise in itertools.combinations_with_replacement(able, clips):
        for decode in itertools.product(range(len(here)), repeat=clips):
            free = [0.0] * len(here)
            held: list[set] = [set() for _ in here]
            for where, stage in zip(denoise, [Stage.DENOISE] * clips, strict=True):
                free[where] += (0.0 if held[where] else load(here[where], stage)) + work(here[where], stage)
                held[where].add(stage)
            ready, done = {}, [0.0] * len(here)
            for clip, where in enumerate(denoise):
                done[where] += work(here[where], Stage.DENOISE)
                ready[clip] = load(here[where], Stage.DENOISE) + done[where]
            for clip in sorted(ready, key=ready.get):
                where = decode[clip]
                begin = max(free[where], ready[clip])
                extra = 0.0 if Stage.DECODE in held[where] else load(here[where], Stage.DECODE)
                held[where].add(Stage.DECODE)
                free[where] = begin + extra + work(here[where], Stage.DECODE)
            used = [f for i, f in enumerate(free) if i in denoise or i in decode]
            best = min(best, max(used))
    return best


@pytest.mark.parametrize("profiles", [(BIG, BIG), (BIG, MIDDLE, SMALL_CARD), (BIG, SLOW)])
def test_four_clips_end_within_15_percent_of_the_best_of_all_assignments(profiles):
    job, here = make_workload(4), devices(*profiles)
    best = best_by_exhaustion(4, here)
    assert simulate(job, here).makespan_s <= 1.15 * best
    assert integral_bound(job, here) <= best + bound_problem(job, here).first_denoise_s


# --- how near the scheduler comes


@pytest.mark.parametrize(("name", "clips"), [("a", 400), ("b", 600), ("c", 800)])
def test_production_is_near_the_bound_on_every_cluster(name, clips):
    here = cluster(name)
    assert measure(Scenario(name=name, workload=make_workload(clips), devices=here)).ratio < 1.03


def test_production_beats_what_others_do_on_a_mixed_cluster():
    scenario = Scenario(name="b", workload=make_workload(200), devices=cluster("b"))
    policies = (production, mean_speed, dynamic_queue, static_striding)
    ratios = [measure(scenario, make_scheduler).ratio for make_scheduler in policies]
    assert ratios[0] < 1.04
    assert ratios[1] > 1.1
    assert ratios[2] > 1.2
    assert ratios[3] > 3.0


@pytest.mark.parametrize("position", range(12))
def test_production_adapts_within_five_percent_of_hindsight(position):
    scenario = scenarios(read_profile(PROFILES / "b.yaml"), 200)[position]
    found = measure(scenario)
    assert found.outcome.failed == 0
    assert found.ratio < 1.05, scenario.name


@pytest.mark.parametrize("position", range(5))
def test_the_tail_is_within_15_percent_of_whole_clips_at_best(position):
    scenario = tails(read_profile(PROFILES / "b.yaml"))[position]
    assert measure(scenario).ratio < 1.15, scenario.name


def test_copies_of_stragglers_shorten_the_tail():
    *_, without, with_copies = tails(read_profile(PROFILES / "b.yaml"))
    slow, quick = measure(without), measure(with_copies)
    assert quick.outcome.makespan_s < 0.5 * slow.outcome.makespan_s


def test_a_slow_device_never_begins_a_clip_that_a_fast_one_would_end_earlier():
    outcome = simulate(make_workload(20), cluster("b"), keep_spans=True)
    denoised_on = {span.device for span in outcome.spans if span.task.stage is Stage.DENOISE and span.task.items}
    assert denoised_on == {"nvidia-80gb", "amd-192gb"}


def test_components_are_swapped_once_for_many_clips():
    here = cluster("c")
    outcome = simulate(make_workload(400), here)
    work = sum(outcome.busy_s["nvidia-24gb"].values())
    assert outcome.load_s["nvidia-24gb"] < 0.01 * work
