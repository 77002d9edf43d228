"""GPUs as the kernel's drivers show them, in a made-up file system."""

import pytest

from ovi_ray.devices.kernel_gpus import counts_in_words, gpus_by_vendor


def make_files(root, *paths, **contents):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(contents.get(path.rsplit("/")[-2], ""), encoding="utf-8")


def node(number):
    return f"sys/class/kfd/kfd/topology/nodes/{number}/gpu_id"


def test_processors_among_the_nodes_of_the_compute_driver_are_no_gpus(tmp_path):
    make_files(tmp_path, "dev/kfd", node("0"), node("1"), node("2"), **{"0": "0\n", "1": "5138\n", "2": "61200\n"})
    assert gpus_by_vendor(tmp_path) == {"amd": 2}


def test_a_compute_driver_without_gpus_counts_for_none(tmp_path):
    make_files(tmp_path, "dev/kfd", node("0"), **{"0": "0\n"})
    assert gpus_by_vendor(tmp_path) == {}


def test_a_container_that_hides_the_nodes_has_a_gpu_where_it_has_the_driver(tmp_path):
    make_files(tmp_path, "dev/kfd")
    assert gpus_by_vendor(tmp_path) == {"amd": 1}


def test_nvidia_gpus_are_counted_by_their_numbers(tmp_path):
    make_files(tmp_path, *(f"dev/nvidia{name}" for name in ("ctl", "0", "1", "7", "-uvm", "-modeset")))
    assert gpus_by_vendor(tmp_path) == {"nvidia": 3}


def test_a_machine_without_drivers_has_no_gpus(tmp_path):
    assert gpus_by_vendor(tmp_path) == {}


@pytest.mark.parametrize(
    ("counts", "words"), [({"amd": 1}, "1 AMD GPU"), ({"amd": 2, "nvidia": 8}, "2 AMD GPUs and 8 NVIDIA GPUs")]
)
def test_counts_are_told_in_words(counts, words):
    assert counts_in_words(counts) == words
