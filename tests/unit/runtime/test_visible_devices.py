"""A choice of AMD GPUs in the environment, put so that Ray hands it on."""

import pytest

from ovi_ray.runtime.visible_devices import choose_as_ray_does

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("given", "counts_amd", "expected"),
    [
        ({ROCR: "2,3"}, True, {ROCR: "2,3", HIP: "0,1"}),
        ({ROCR: "GPU-4b2f,GPU-77aa,GPU-0c11"}, True, {ROCR: "GPU-4b2f,GPU-77aa,GPU-0c11", HIP: "0,1,2"}),
        ({ROCR: ""}, True, {ROCR: "", HIP: ""}),
        ({ROCR: "2,3", HIP: "1"}, True, {ROCR: "2,3", HIP: "1"}),
        ({HIP: "1"}, True, {HIP: "1"}),
        ({HIP: "2,3"}, False, {CUDA: "2,3"}),
        ({ROCR: "2,3", HIP: "1"}, False, {ROCR: "2,3", CUDA: "1"}),
        ({ROCR: "2,3"}, False, {ROCR: "2,3"}),
        ({CUDA: "1"}, False, {CUDA: "1"}),
    ],
)
def test_a_choice_of_gpus_is_one_that_ray_hands_on(given, counts_amd, expected):
    environment = dict(given)
    choose_as_ray_does(environment, rocm=True, counts_amd=lambda: counts_amd)
    assert environment == expected


def test_what_was_changed_is_told(caplog):
    choose_as_ray_does({ROCR: "2"}, rocm=True, counts_amd=lambda: True)
    choose_as_ray_does({HIP: "2"}, rocm=True, counts_amd=lambda: False)
    assert [ROCR in line for line in caplog.messages] == [True, False]
    assert all(HIP in line for line in caplog.messages)


def test_the_environment_of_nvidia_gpus_is_left_alone():
    environment = {CUDA: "0,1", HIP: "0"}
    choose_as_ray_does(environment, rocm=False, counts_amd=lambda: False)
    assert environment == {CUDA: "0,1", HIP: "0"}
