"""The stages that fit on a device, their costs, and the learning of costs."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovi.config import Component
from ovi.quality import Quality, may_have_fp8_products
from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.config import CostModelConfig
from ovi_ray.scheduling.cost_model import CostModel
from ovi_ray.scheduling.device_profile import INT8_SIZES, DeviceProfile, StageRates
from ovi_ray.scheduling.workload import ClipKind, Workload


def make_kind(height=704, width=704, frames=31, steps=50) -> ClipKind:
    return ClipKind(model_name="720x720_5s", height=height, width=width, video_latent_length=frames, sample_steps=steps)


def measure(costs: CostModel, device: int, worker: int, seconds: list[float], stage=Stage.DENOISE, kind=0) -> float:
    """Feed measurements; return what is expected next."""
    for each in seconds:
        costs.observe(device, worker, stage, kind, 1.0, each)
    return costs.task_seconds(device, worker, stage, kind)


@pytest.mark.parametrize(
    ("kind", "denoise", "decode"),
    [
        (make_kind(704, 704), 23_800, 1_160),
        (make_kind(704, 1280), 55_300, 2_010),
        (make_kind(960, 960), 57_200, 2_060),
        (make_kind(960, 960, frames=61), 167_700, 4_090),
    ],
)
def test_operations_are_those_counted_on_the_modules(kind, denoise, decode):
    assert STAGES[Stage.DENOISE].tflop(kind) == pytest.approx(denoise, rel=0.02)
    assert STAGES[Stage.DECODE].tflop(kind) == pytest.approx(decode, rel=0.05)


def test_a_trimmed_prompt_of_128_tokens_costs_1_2_tflop():
    assert 128 * STAGES[Stage.ENCODE_TEXT].tflop(make_kind()) == pytest.approx(1.2, rel=0.01)


def test_steps_count_in_proportion():
    assert STAGES[Stage.DENOISE].tflop(make_kind(steps=100)) == 2 * STAGES[Stage.DENOISE].tflop(make_kind(steps=50))


def test_a_small_card_decodes_and_encodes_first_frames_but_does_not_denoise():
    card = DeviceProfile(name="12gb", memory_gb=10.8, sizes=INT8_SIZES)
    assert card.fits(Stage.ENCODE_FIRST_FRAME, make_kind())
    assert card.fits(Stage.DECODE, make_kind(960, 960, frames=61))
    assert card.why_not(Stage.DENOISE, make_kind()) == "12gb has 10.8 GB and denoise needs 14.4 GB"
    assert card.why_not(Stage.ENCODE_TEXT, None) == "12gb has 10.8 GB and encode_text needs 13.0 GB"


@pytest.mark.parametrize(
    ("has_fp8_products", "quality", "fits"), [(True, "exact", True), (True, "fast", False), (False, "fast", True)]
)
def test_a_quality_with_8_bit_products_takes_memory_where_there_are_such(has_fp8_products, quality, fits):
    card = DeviceProfile(name="24gb", memory_gb=26.0, has_fp8_products=has_fp8_products)
    kind = replace(make_kind(), quality=Quality(quality))
    assert card.fits(Stage.DENOISE, kind) == fits
    assert card.needed_gb(Stage.DECODE, kind) == card.needed_gb(Stage.DECODE, make_kind())


@pytest.mark.parametrize(
    ("architecture", "may_have"),
    [
        *((name, False) for name in ("sm70", "sm86", "gfx90a", "gfx1151")),
        *((name, True) for name in ("sm89", "sm90", "sm120", "gfx942", "gfx950", "gfx1201", "")),
    ],
)
def test_architectures_with_8_bit_products_are_known(architecture, may_have):
    assert may_have_fp8_products(architecture) == may_have


def test_a_stage_that_is_not_allowed_says_so():
    device = DeviceProfile(name="host", stages=frozenset({Stage.DECODE}))
    assert device.why_not(Stage.DENOISE, make_kind()) == "host does not run denoise"


def test_what_is_resident_counts():
    card = DeviceProfile(name="24gb", memory_gb=22.5, sizes=INT8_SIZES)
    beside = frozenset(Component)
    assert card.needed_gb(Stage.DECODE, make_kind(), beside) > 22.5 > card.needed_gb(Stage.DECODE, make_kind())


def test_the_first_measurement_replaces_a_prior_that_is_far_off():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="cpu"))
    assert measure(costs, device, 0, [0.02]) == pytest.approx(0.02, rel=0.15)


def test_what_one_worker_measures_is_expected_of_its_class():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    before = costs.task_seconds(device, 7, Stage.DENOISE, 0)
    measure(costs, device, 0, [2 * before] * 3)
    assert costs.task_seconds(device, 7, Stage.DENOISE, 0) == pytest.approx(2 * before, rel=0.1)


def test_what_is_measured_on_one_size_is_expected_of_the_others():
    costs = CostModel((make_kind(), make_kind(960, 960)))
    device = costs.register(DeviceProfile(name="gpu"))
    before = costs.seconds(device, Stage.DENOISE, 1)
    measure(costs, device, 0, [2 * costs.seconds(device, Stage.DENOISE, 0)])
    assert costs.seconds(device, Stage.DENOISE, 1) == pytest.approx(2 * before, rel=0.1)


def test_stages_and_classes_are_learned_apart():
    costs = CostModel((make_kind(),))
    one = costs.register(DeviceProfile(name="one"))
    other = costs.register(DeviceProfile(name="other", rates=StageRates(denoise=10)))
    decode, elsewhere = costs.seconds(one, Stage.DECODE, 0), costs.seconds(other, Stage.DENOISE, 0)
    measure(costs, one, 0, [500.0])
    assert costs.seconds(one, Stage.DECODE, 0) == decode
    assert costs.seconds(other, Stage.DENOISE, 0) == elsewhere


def test_equal_profiles_are_one_class():
    costs = CostModel((make_kind(),))
    assert costs.register(DeviceProfile(name="x")) == costs.register(DeviceProfile(name="x"))
    assert costs.register(DeviceProfile(name="y")) == 1


def test_one_outlier_moves_little():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    settled = measure(costs, device, 0, [100.0] * 20)
    assert measure(costs, device, 0, [1000.0]) < 1.2 * settled


def test_a_worker_that_slows_down_by_half_is_noticed_within_four_clips():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    for _ in range(10):
        for worker in range(4):
            measure(costs, device, worker, [100.0])
    assert measure(costs, device, 0, [200.0] * 4) == pytest.approx(200.0, rel=0.1)
    assert costs.task_seconds(device, 1, Stage.DENOISE, 0) == pytest.approx(100.0, rel=0.2)


def test_many_tasks_that_end_together_do_not_correct_the_same_error_twice():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    for worker in range(64):
        measure(costs, device, worker, [100.0])
    for worker in range(64):
        assert costs.task_seconds(device, worker, Stage.DENOISE, 0) == pytest.approx(100.0, rel=0.05)


def test_the_first_load_replaces_the_prior_and_later_ones_move_it_with_caution():
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    transformer = frozenset({Component.TRANSFORMER})
    before = costs.load_seconds(device, transformer)
    costs.observe_load(device, before, before / 100)
    first = costs.load_seconds(device, transformer)
    assert first == pytest.approx(before / 100)
    costs.observe_load(device, first, 100 * first)
    assert first < costs.load_seconds(device, transformer) < 2 * first


def test_learning_can_be_switched_off():
    costs = CostModel((make_kind(),), CostModelConfig(learn=False))
    device = costs.register(DeviceProfile(name="gpu"))
    before = costs.seconds(device, Stage.DENOISE, 0)
    assert measure(costs, device, 0, [1.0, 1.0]) == before


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), truth=st.floats(0.01, 1e4), noise=st.floats(0, 0.1))
def test_estimates_converge_to_noisy_measurements(seed, truth, noise):
    rng = random.Random(seed)
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    for _ in range(60):
        measure(costs, device, rng.randrange(3), [truth * math.exp(rng.gauss(0, noise))])
    assert costs.seconds(device, Stage.DENOISE, 0) == pytest.approx(truth, rel=0.35)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(1e-6, 1e9), max_size=60))
def test_estimates_stay_positive_and_finite_whatever_is_measured(values):
    costs = CostModel((make_kind(),))
    device = costs.register(DeviceProfile(name="gpu"))
    expected = measure(costs, device, 0, values)
    assert 0 < expected < math.inf


def test_a_workload_names_the_row_that_points_nowhere():
    with pytest.raises(ValueError, match=r"clip_texts\[1, 2\] is 9; expected 0 to 2"):
        Workload(kinds=(make_kind(),), clip_kind=[0, 0], clip_texts=[[0, 1, 2], [0, 1, 9]], text_tokens=[1, 2, 3])


def test_a_workload_says_what_shape_its_texts_should_have():
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        Workload(kinds=(make_kind(),), clip_kind=[0, 0], clip_texts=[[0, 1]], text_tokens=[1, 2])
