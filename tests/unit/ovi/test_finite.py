"""Numbers that are not finite, wherever they stand and whatever their dtype."""

import math

import pytest
import torch

from ovi.finite import FirstNonFinite, all_finite, clamp_finite_, count_non_finite

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 57, -1])
def test_one_number_is_found_in_any_place(dtype, value, place):
    numbers = torch.randn(4, 25, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(numbers)
    numbers.view(-1)[place] = value
    assert not all_finite(numbers)
    assert not all_finite(numbers.T)
    assert count_non_finite(numbers) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_numbers_are_finite(dtype):
    numbers = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(numbers)
    assert count_non_finite(numbers) == 0


@pytest.mark.parametrize(
    ("dtype", "spoilt"), [(torch.float8_e4m3fn, 2), (torch.float8_e5m2, 8), (torch.float8_e4m3fnuz, 1)]
)
def test_8_bit_floats_are_counted_by_their_bits(dtype, spoilt):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    assert count_non_finite(every) == spoilt
    assert count_non_finite(torch.ones(8).to(dtype)) == 0


def test_counting_goes_over_parts_of_a_large_tensor_and_leaves_integers_alone():
    numbers = torch.zeros(3, 2**21)
    numbers[0, 0] = numbers[1, 7] = numbers[2, -1] = NAN
    assert count_non_finite(numbers) == 3
    assert count_non_finite(numbers.T) == 3
    assert count_non_finite(torch.full((4,), -1, dtype=torch.int8)) == 0
    assert count_non_finite(torch.empty(0)) == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_clamping_hides_no_infinity(value):
    pixels = torch.tensor([-2.0, 0.5, 2.0])
    assert clamp_finite_(pixels.clone(), -1, 1).tolist() == [-1.0, 0.5, 1.0]
    pixels[1] = value
    assert clamp_finite_(pixels, -1, 1).isnan().all()


def test_the_first_step_of_each_tensor_is_kept():
    watch = FirstNonFinite(("video", "audio"), torch.device("cpu"))
    right, wrong = torch.ones(2), torch.tensor([1.0, INF])
    for step, tensors in enumerate([(right, right), (right, wrong), (wrong, right), (wrong, wrong)], start=1):
        watch.observe(step, *tensors)
    assert watch.read() == {"video": 3, "audio": 2}
    watch = FirstNonFinite(("video", "audio"), torch.device("cpu"))
    watch.observe(1, right, right)
    assert watch.read() == {}
